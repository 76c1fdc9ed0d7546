"""Whether model, data and checkpoint mean the same classes, asked before anything is computed."""

import logging
from typing import Any, Dict, Optional, Sequence

from torch import nn

from d2ext.data.checks import BadDataError
from d2ext.data.class_names import classes_of, require_same_classes

__all__ = [
    "check_checkpoint_classes",
    "check_classes",
    "check_labels",
    "check_trained",
    "num_classes_of",
]

logger = logging.getLogger(__name__)


def num_classes_of(model: nn.Module) -> Optional[int]:
    """The number of classes a detector predicts, if it says so."""
    for part in (model, getattr(model, "roi_heads", None)):
        count = getattr(part, "num_classes", None)
        if isinstance(count, int):
            return count
    return None


def check_classes(model: nn.Module, train: Sequence[str], test: Sequence[str], key: str) -> None:
    """Refuse data with more classes than the model, or with others to test than to train on.

    Fewer classes than the model has are warned of.

    Args:
        model: the detector.
        train, test: names of data sets.
        key: what sets the model's number of classes, for the advice.

    Raises:
        BadDataError: in a sentence with both numbers, or both lists
    """
    count = num_classes_of(model)
    known = {name: classes for name in (*train, *test) if (classes := classes_of(name))}
    for name, classes in known.items():
        if count is None:
            break
        if len(classes) > count:
            raise BadDataError(
                f"'{name}' has {len(classes)} classes and the model {count}; set {key} to "
                f"{len(classes)}."
            )
        if len(classes) < count:
            logger.warning(
                f"'{name}' has {len(classes)} classes and the model {count}, so that some of its "
                f"outputs only learn to stay silent; set {key} to {len(classes)}."
            )
    first = next((name for name in train if name in known), None)
    for name in test:
        if first is None:
            break
        require_same_classes(f"'{first}'", known[first], f"'{name}'", known.get(name))


def check_labels(dicts: Sequence[Dict[str, Any]], count: Optional[int], key: str) -> None:
    """Refuse labels that the model has no class for; ``dicts`` are in Detectron2's form."""
    if count is None:
        return
    for item in dicts:
        for thing in item.get("annotations", ()):
            label = thing.get("category_id", 0)
            if not 0 <= label < count:
                raise BadDataError(
                    f"{item.get('file_name', 'An image')} has an object of class {label}, and the "
                    f"model has {count} classes, 0 to {count - 1}; set {key} to the number of "
                    "classes of the data."
                )


def check_checkpoint_classes(path: str, known: Optional[Sequence[str]], names: Any) -> None:
    """Refuse to use a checkpoint on data whose labels mean something else.

    Args:
        path: the checkpoint.
        known: its classes.
        names: names of data sets.
    """
    for name in names:
        require_same_classes(f"The checkpoint {path}", known, f"'{name}'", classes_of(name))


def check_trained(model: nn.Module, path: str, incompatible: Any) -> None:
    """Refuse to evaluate, or to go on with, a model of which a checkpoint filled a part only.

    Args:
        model: the model.
        path: the checkpoint; "": none was given.
        incompatible: what a checkpointer reports of it.
    """
    if not path:
        raise ValueError(
            "There are no weights to evaluate; name a checkpoint in MODEL.WEIGHTS, or give "
            "--resume with an OUTPUT_DIR that has one."
        )
    if incompatible is None:
        return
    # Statistics of losses and measured priors are buffers, which evaluation does without.
    weights = {name for name, _ in model.named_parameters()}
    missing = [name for name in incompatible.missing_keys if name in weights]
    shapes = [row for row in incompatible.incorrect_shapes if row[0] in weights]
    if shapes:
        name, theirs, ours = shapes[0]
        raise ValueError(
            f"{path} does not fit the model: {name} has the shape {tuple(theirs)} there and "
            f"{tuple(ours)} here ({len(shapes)} such weights); use the config, and the number "
            "of classes, that it was trained with."
        )
    if missing:
        raise ValueError(
            f"{path} has no weights for {missing[0]} ({len(missing)} of the model's "
            f"{len(weights)} are missing), so that a part of the model would be random; name a "
            "checkpoint of this detector."
        )
