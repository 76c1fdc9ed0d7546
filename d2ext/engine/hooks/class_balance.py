"""The hook that logs what a loss has learned about the balance of each group of classes.

Shapes: C classes.
"""

import logging
from typing import Any, Dict, Iterable, List, Optional, Sequence

from detectron2.config import CfgNode, configurable
from detectron2.data import MapDataset, MetadataCatalog
from detectron2.data.common import ToIterableDataset
from torch import nn
from torch.utils.data import DataLoader

from d2ext.losses import GradientBalancedLoss
from d2ext.ops.frequency import frequency_groups

from .base import HOOK_REGISTRY, HookBase

__all__ = [
    "ClassBalance",
    "build_class_balance",
    "dataset_of",
    "find_balanced_losses",
    "training_image_counts",
]

logger = logging.getLogger(__name__)


@HOOK_REGISTRY.register()
class ClassBalance(HookBase):
    """Logs the statistics of every :class:`GradientBalancedLoss` of the model.

    The figures are those of its ``stats``: ``class_balance/ratio_mean`` (g in EFL's paper) and, for
    EFL, ``class_balance/gamma_mean``; the same for each frequency group as ``ratio_rare``,
    ``ratio_common``, ``ratio_frequent``; the fractions of classes with g = 0 and g >= 1; and the
    number of forward passes that were left out. Several losses, as in a cascade, are numbered:
    ``class_balance0/...``.

    The buffers are read, and the device waited for, only when the log is written.

    Args:
        period: steps between two records; give that of the log.
        train_names: data sets that are trained on, for the frequency of classes.
    """

    @configurable
    def __init__(self, *, period: int, train_names: Sequence[str] = ()):
        self.period = period
        self.train_names = tuple(train_names)
        self._losses: Dict[str, GradientBalancedLoss] = {}
        self._groups: Dict[int, Dict[str, Sequence[int]]] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
        return {"period": cfg.ENGINE.LOG_PERIOD, "train_names": cfg.DATASETS.TRAIN}

    def before_train(self) -> None:
        losses = find_balanced_losses(self.trainer.raw_model)
        single = len(losses) == 1
        self._losses = {
            "class_balance" if single else f"class_balance{k}": loss
            for k, loss in enumerate(losses)
        }
        for num_classes in {loss.num_classes for loss in losses}:
            counts = training_image_counts(
                self.train_names, num_classes, dataset_of(self.trainer.data_loader)
            )
            groups: Dict[str, Sequence[int]] = {}
            if counts is not None:
                groups.update(frequency_groups(counts))
            self._groups[num_classes] = groups
            sizes = ", ".join(f"{len(index)} {name}" for name, index in groups.items())
            logger.info(
                f"The balance of {num_classes} classes ({sizes or 'of unknown frequency'}) is "
                f"logged as {', '.join(f'{prefix}/*' for prefix in self._losses)}."
            )

    def after_step(self) -> None:
        if not self._losses or not self.trainer.is_due(self.period):
            return
        for prefix, loss in self._losses.items():
            figures = loss.stats(self._groups[loss.num_classes])
            for name, value in figures.items():
                self.trainer.storage.put_scalar(f"{prefix}/{name}", value, smoothing_hint=False)
            if self.trainer.is_last_step:
                text = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
                logger.info(f"{prefix} in the end: {text}.")


def dataset_of(loader: Any) -> Optional[Iterable[Dict]]:
    """The elements of a loader before its mapper, or None."""
    dataset = getattr(loader, "dataset", None)
    # In Detectron2's loaders they are wrapped in others, which would load images.
    while isinstance(dataset, (DataLoader, ToIterableDataset, MapDataset)):
        dataset = dataset._dataset if isinstance(dataset, MapDataset) else dataset.dataset
    # One without a length may be endless.
    return dataset if hasattr(dataset, "__len__") else None


def find_balanced_losses(model: nn.Module) -> List[GradientBalancedLoss]:
    """All losses of a model that have statistics to log."""
    return [module for module in model.modules() if isinstance(module, GradientBalancedLoss)]


def training_image_counts(
    names: Sequence[str], num_classes: int, dataset: Optional[Iterable[Dict]] = None
) -> Optional[List[int]]:
    """The number of training images with each class.

    Args:
        names: data sets. If the metadata of all of them has ``class_image_count``, as that of LVIS
            has, the sum is taken; LVIS' groups are defined by it, not by what is left after
            images are filtered out.
        num_classes: C.
        dataset: otherwise dataset dicts to count in.

    Returns:
        C counts; None if there is nothing to count in, or the counts are of other classes.
    """
    tables = [MetadataCatalog.get(name).get("class_image_count") for name in names]
    if tables and all(tables):
        # By id, as for a federated loss: contiguous labels are in the order of ids.
        columns = [
            [entry["image_count"] for entry in sorted(table, key=lambda x: x["id"])]
            for table in tables
        ]
        if all(len(column) == num_classes for column in columns):
            return [sum(row) for row in zip(*columns)]
        return None
    return None if dataset is None else _count_images(dataset, num_classes)


def _count_images(dataset: Iterable[Dict], num_classes: int) -> Optional[List[int]]:
    counts = [0] * num_classes
    for element in dataset:
        if not isinstance(element, dict) or "annotations" not in element:
            return None
        for label in {annotation["category_id"] for annotation in element["annotations"]}:
            if not 0 <= label < num_classes:
                return None
            counts[label] += 1
    return counts


def build_class_balance(cfg: CfgNode, model: nn.Module) -> Optional[ClassBalance]:
    """The hook, if the model has a loss it is for and ``ENGINE.HOOKS`` does not name it."""
    if "ClassBalance" in cfg.ENGINE.HOOKS or not find_balanced_losses(model):
        return None
    return ClassBalance(cfg)
