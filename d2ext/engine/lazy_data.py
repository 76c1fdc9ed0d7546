"""The data of a LazyConfig: its loaders, checked, and resumable where they can be."""

import contextlib
import copy
import functools
import logging
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple, Union

import torch
from detectron2.config import instantiate
from detectron2.data import (
    DatasetMapper,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.samplers import TrainingSampler
from detectron2.utils import comm
from detectron2.utils.registry import locate
from omegaconf import OmegaConf
from omegaconf.errors import ConfigTypeError
from torch.utils.data import ConcatDataset, Sampler

from d2ext.data import FastMapper
from d2ext.data.checks import check_sample

from .build_data import load_dicts, share_of_rank
from .data_loader import ResumableLoader
from .validation_data import ValidationBatches

__all__ = [
    "build_loader",
    "build_train_loader",
    "dataset_names",
    "load_dataset",
    "validation_batches",
]

logger = logging.getLogger(__name__)

_UPSTREAM = build_detection_train_loader
# What is carried over; a loader with more arguments is built as it says.
_ARGUMENTS = {
    "_target_", "dataset", "mapper", "sampler", "total_batch_size", "aspect_ratio_grouping",
    "num_workers",
}  # fmt: skip


def dataset_names(cfg: Any, key: str) -> List[str]:
    """The registered data sets of a loader; empty for other kinds of loaders."""
    names = None
    with contextlib.suppress(ConfigTypeError):  # a list of batches, say
        names = OmegaConf.select(cfg, f"dataloader.{key}.dataset.names")
    return [names] if isinstance(names, str) else list(names or ())


def build_loader(cfg: Any, key: str) -> Any:
    """``dataloader.train`` or ``dataloader.test``, whose data sets are checked as they load."""
    return instantiate(_with_checks(cfg, key).dataloader[key])


def _with_checks(cfg: Any, key: str, training: Optional[bool] = None) -> Any:
    """The config, with ``load_dataset`` instead of Detectron2's function in one of its loaders.

    Samplers may refer to the data set of their loader: they get the checked one, too.
    """
    names = dataset_names(cfg, key)
    if not names:
        return cfg
    cfg = copy.deepcopy(cfg)
    node = cfg.dataloader[key].dataset
    if _located(node.get("_target_")) is not get_detection_dataset_dicts:
        logger.warning(
            f"Unchecked: dataloader.{key}.dataset is not made by get_detection_dataset_dicts."
        )
        return cfg
    OmegaConf.set_struct(node, False)
    node["_target_"] = f"{__name__}.{load_dataset.__name__}"
    node["training"] = key == "train" if training is None else training
    return cfg


def load_dataset(
    names: Union[str, Sequence[str]],
    filter_empty: bool = True,
    min_keypoints: int = 0,
    proposal_files: Optional[Sequence[str]] = None,
    check_consistency: bool = True,
    *,
    training: bool = True,
) -> Any:
    """``detectron2.data.get_detection_dataset_dicts`` with data sets that are checked.

    Args:
        names, filter_empty, min_keypoints, proposal_files, check_consistency: as there.
        training: whether the annotations are trained on.
    """
    parts = load_dicts(
        [names] if isinstance(names, str) else names,
        proposal_files,
        filter_empty=filter_empty,
        min_keypoints=min_keypoints,
        same_classes=check_consistency,
        training=training,
    )
    if isinstance(parts[0], list):
        return [item for part in parts for item in part]
    return parts[0] if len(parts) == 1 else ConcatDataset(parts)


def build_train_loader(cfg: Any, accumulate: int = 1, seed: int = -1) -> Any:
    """``dataloader.train``; resumable if it is Detectron2's loader with a sampler of its own.

    Args:
        cfg: the LazyConfig.
        accumulate: micro-steps that share ``total_batch_size``.
        seed: of order and augmentation; below 0: a random one.
    """
    if not _can_resume(cfg.dataloader.train):
        return build_loader(cfg, "train")
    node = _with_checks(cfg, "train").dataloader.train
    images = node.total_batch_size
    batch_size = share_of_rank(images, accumulate, "dataloader.train.total_batch_size")
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
        # With ground truth, so that it is checked as a training's is.
        return list(instantiate(_with_checks(cfg, "test", training=True).dataloader.test.dataset))

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
