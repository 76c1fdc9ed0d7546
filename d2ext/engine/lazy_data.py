"""The data of a LazyConfig: its loaders, checked, and resumable where they can be."""

import contextlib
import copy
import functools
import logging
from typing import Any, Callable, Dict, Iterator, List, Tuple

import torch
from detectron2.config import instantiate
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from detectron2.utils.registry import locate
from omegaconf import OmegaConf
from omegaconf.errors import ConfigTypeError
from torch.utils.data import Sampler

from d2ext.data import FastMapper
from d2ext.data.checks import check_sample, checked_datasets

from .build_data import share_of_rank
from .data_loader import ResumableLoader
from .validation_data import ValidationBatches

__all__ = ["build_loader", "build_train_loader", "dataset_names", "validation_batches"]

logger = logging.getLogger(__name__)

_UPSTREAM = build_detection_train_loader
# What is carried over; a loader with more arguments is built as it says.
_ARGUMENTS = {
    "_target_", "dataset", "mapper", "sampler", "total_batch_size", "aspect_ratio_grouping",
    "num_workers",
}  # fmt: skip


def dataset_names(cfg: Any, key: str) -> List[str]:
    """The registered data sets of a loader; none where it is of another make."""
    names = None
    with contextlib.suppress(ConfigTypeError):  # a list of batches, say
        names = OmegaConf.select(cfg, f"dataloader.{key}.dataset.names")
    return [names] if isinstance(names, str) else list(names or ())


def build_loader(cfg: Any, key: str) -> Any:
    """``dataloader.train`` or ``dataloader.test``, whose data sets are checked as they load."""
    with checked_datasets(dataset_names(cfg, key), training=key == "train"):
        return instantiate(cfg.dataloader[key])


def build_train_loader(cfg: Any, accumulate: int = 1, seed: int = -1) -> Any:
    """``dataloader.train``; resumable if it is Detectron2's loader with a sampler of its own.

    Args:
        cfg: the LazyConfig.
        accumulate: micro-steps that share ``total_batch_size``.
        seed: of order and augmentation; below 0: a random one.
    """
    node = cfg.dataloader.train
    if not _can_resume(node):
        return build_loader(cfg, "train")
    images = node.total_batch_size
    batch_size = share_of_rank(images, accumulate, "dataloader.train.total_batch_size")
    with checked_datasets(dataset_names(cfg, "train")):
        dataset, mapper = instantiate(node.dataset), instantiate(node.mapper)
        indices = _Indices(node.get("sampler"), len(dataset))
    reads = type(mapper) in (DatasetMapper, FastMapper)
    return ResumableLoader(
        dataset,
        mapper,
        indices,
        batch_size=batch_size,
        batches_per_step=accumulate,
        aspect_ratio_grouping=node.get("aspect_ratio_grouping", True),
        num_workers=node.get("num_workers", 0),
        seed=seed if seed >= 0 else comm.shared_random_seed(),
        epoch_size=indices.epoch_size,
        pin_memory=torch.cuda.is_available() and str(cfg.train.device).startswith("cuda"),
        check=functools.partial(
            check_sample, images=reads, masks=bool(getattr(mapper, "use_instance_mask", False))
        ),
    )


def _can_resume(node: Any) -> bool:
    if not OmegaConf.is_dict(node) or set(node) - _ARGUMENTS or "_target_" not in node:
        return False
    sampler = node.get("sampler")
    kind = None if sampler is None else sampler.get("_target_")
    # Without a class of its own there is no way to give a sampler the saved seed.
    return _located(node["_target_"]) is _UPSTREAM and (sampler is None or kind is not None)


def _located(target: Any) -> Any:
    return locate(target) if isinstance(target, str) else target


class _Indices:
    """Seed -> this rank's endless stream of indices, by the sampler that a LazyConfig names."""

    def __init__(self, node: Any, size: int):
        self._kind: Callable[..., Sampler] = TrainingSampler
        self._arguments: Dict[str, Any] = {"size": size}
        if node is not None:
            self._kind = _located(node["_target_"])
            # Made once: repeat factors are counted from the annotations.
            self._arguments = {key: instantiate(node[key]) for key in node if key != "_target_"}
        factors = self._arguments.get("repeat_factors")
        self.epoch_size = float(size if factors is None else factors.double().sum())

    def __call__(self, seed: int) -> Sampler:
        return self._kind(**{**self._arguments, "seed": seed})


def validation_batches(cfg: Any, max_batches: int) -> Callable[[], Iterator[Tuple[Any, float]]]:
    """The images of ``dataloader.test`` with their ground truth; see :class:`ValidationBatches`."""
    node = cfg.dataloader.test

    def load() -> List[Dict[str, Any]]:
        with checked_datasets(dataset_names(cfg, "test")):
            return list(instantiate(node.dataset))

    def build_mapper() -> Callable[[Dict], Any]:
        # An evaluation's mapper leaves the ground truth out.
        mapper = copy.deepcopy(node.mapper)
        mapper.is_train = True
        mapper.use_instance_mask = cfg.dataloader.train.mapper.get("use_instance_mask", False)
        return instantiate(mapper)

    return ValidationBatches(
        load=load,
        build_mapper=build_mapper,
        masks=bool(cfg.dataloader.train.mapper.get("use_instance_mask", False)),
        num_workers=node.get("num_workers", 0),
        max_batches=max_batches,
    )
