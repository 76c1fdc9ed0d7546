"""The weights of classes that a config asks for: see :mod:`d2ext.ops.class_weights`."""

from typing import Any

import torch

from d2ext.combinations import check, present
from d2ext.config.validate import validate
from d2ext.losses import ClsLoss
from d2ext.ops.class_weights import inverse_frequency_weights

__all__ = ["weigh_classes"]


def weigh_classes(cfg: Any, loss: ClsLoss, num_classes: int) -> bool:
    """Give a class loss what ``cfg.MODEL.CLASS_WEIGHTS`` says; whether that is anything.

    Without counts in the config the loss waits for those of the training data, which the trainer
    counts before the first step.
    """
    validate(cfg, "MODEL.CLASS_WEIGHTS")
    node = cfg.MODEL.CLASS_WEIGHTS
    if not (len(node.VALUES) or node.POWER):
        return False
    check(
        "class weights",
        *present(
            given_weights=len(node.VALUES),
            power=node.POWER,
            ignores_weights=not loss.weighs_classes,
        ),
        loss=type(loss).__name__,
    )
    for key in ("VALUES", "COUNTS"):
        if len(node[key]) not in (0, num_classes):
            raise ValueError(
                f"MODEL.CLASS_WEIGHTS.{key} has {len(node[key])} entries for {num_classes} "
                "classes; give one for each class."
            )
    if len(node.VALUES):
        loss.weigh_classes(torch.tensor([float(x) for x in node.VALUES]))
    elif len(node.COUNTS):
        loss.weigh_classes(inverse_frequency_weights(node.COUNTS, power=node.POWER))
    else:
        loss.expect_counts(num_classes, node.POWER)
    return True
