"""The hook that counts objects and images of each class for the losses that wait for it.

Shapes: C classes.
"""

import logging
from typing import Any, Dict, Iterable, List, Optional, Tuple

import torch
from torch import nn

from d2ext.losses import ClsLoss, EffectiveClassMarginLoss
from d2ext.ops.class_weights import effective_weight, inverse_frequency_weights

from .base import HookBase
from .class_balance import dataset_of

__all__ = ["ClassWeights", "build_class_weights", "count_class_weights", "count_objects"]

logger = logging.getLogger(__name__)


class ClassWeights(HookBase):
    """Before the first step, gives class losses that wait for counts those of the data.

    A run that resumes keeps the weights of its checkpoint: other data must not change them. The log
    says what the weights make of the size of the class loss.
    """

    def before_train(self) -> None:
        trainer = self.trainer
        resumed = trainer.start_iter > 0 or getattr(trainer, "resumed", False)
        count_class_weights(trainer.raw_model, trainer.data_loader, keep_loaded=resumed)


def count_class_weights(model: nn.Module, loader: Any, *, keep_loaded: bool = False) -> None:
    """Fill in weights and margins of classes that are to follow from the data, in place.

    Args:
        model: with any number of class losses.
        loader: the training loader.
        keep_loaded: weights that came with a checkpoint stay; only missing ones are counted.
    """
    _count_class_margins(model, loader, keep_loaded)
    dataset = dataset_of(loader)
    for number, (loss, weights) in enumerate(_weighted_losses(model)):
        power = loss.uncounted_power
        counts = None if dataset is None else count_objects(dataset, len(weights))
        if power:
            if not (keep_loaded and bool(weights.any())):
                weights = _weights_of(counts, len(weights), power).to(weights)
            loss.weigh_classes(weights, from_data=True)
        if number == 0:
            _tell(weights, counts)


def build_class_weights(model: nn.Module) -> Optional[ClassWeights]:
    """The hook, if the model has a loss it is for."""
    return ClassWeights() if _weighted_losses(model) or _losses_with_margins(model) else None


def _weighted_losses(model: nn.Module) -> List[Tuple[ClsLoss, torch.Tensor]]:
    losses = [m for m in model.modules() if isinstance(m, ClsLoss)]
    return [(x, x.class_weights) for x in losses if x.class_weights is not None]


def _losses_with_margins(model: nn.Module) -> List[EffectiveClassMarginLoss]:
    return [m for m in model.modules() if isinstance(m, EffectiveClassMarginLoss)]


def _count_class_margins(model: nn.Module, loader: Any, keep_loaded: bool) -> None:
    """Give class losses with margins that wait for it the images of each class, in place."""
    losses = _losses_with_margins(model)
    for loss in losses:
        if not loss.waits_for_counts:
            continue
        counts: Any = loss.counts
        if not (keep_loaded and bool(loss.counts.any())):
            dataset, classes = dataset_of(loader), len(loss.counts)
            counts = None if dataset is None else count_objects(dataset, classes, images=True)
            if counts is None:
                raise ValueError(
                    f"The images of {classes} classes cannot be counted in the training data of "
                    "this loader; set MODEL.ECM.COUNTS to a file with the number of each class."
                )
        loss.take_image_counts(counts)
    if losses:
        seen = losses[0].counts
        logger.info(
            f"Class margins from {int(seen.min())} to {int(seen.max())} images with a class."
        )


def _weights_of(counts: Optional[List[int]], num_classes: int, power: float) -> torch.Tensor:
    if counts is None:
        raise ValueError(
            f"The objects of {num_classes} classes cannot be counted in the training data of this "
            "loader; set MODEL.CLASS_WEIGHTS.COUNTS to the number of boxes of each class."
        )
    return inverse_frequency_weights(counts, power=power)


def _tell(weights: torch.Tensor, counts: Optional[List[int]]) -> None:
    text = f"Class weights from {float(weights.min()):.3g} to {float(weights.max()):.3g}"
    if counts is None:
        logger.info(f"{text}; how often each class occurs is not known.")
        return
    mean = effective_weight(weights, counts)
    logger.info(
        f"{text}; an object weighs {mean:.3g} on average, so the class loss is about that much of "
        "what it would be without."
    )


def count_objects(
    dataset: Iterable[Dict], num_classes: int, *, images: bool = False
) -> Optional[List[int]]:
    """The boxes of each class that are trained on, C numbers; None where they cannot be counted.

    Args:
        dataset: dataset dicts.
        num_classes: C.
        images: count the images with the class instead.
    """
    counts = [0] * num_classes
    for element in dataset:
        if not isinstance(element, dict) or "annotations" not in element:
            return None
        kept = (a for a in element["annotations"] if not a.get("iscrowd", 0))
        classes = [annotation["category_id"] for annotation in kept]
        for category in set(classes) if images else classes:
            if not 0 <= category < num_classes:
                return None
            counts[category] += 1
    return counts
