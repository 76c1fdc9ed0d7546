"""The training loader a config describes."""

import functools
import logging
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from detectron2.config import CfgNode
from detectron2.data import (
    DatasetCatalog,
    DatasetMapper,
    MetadataCatalog,
    build_detection_test_loader,
)
from detectron2.data.build import (
    filter_images_with_few_keypoints,
    filter_images_with_only_crowd_annotations,
    print_instances_class_histogram,
)
from detectron2.data.samplers import (
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset, Sampler

from d2ext.config import validate
from d2ext.config.classes import class_count_key, class_count_keys
from d2ext.data import FastMapper, require_dataset, why_not_fast
from d2ext.data.augment import AugmentingMapper, augmentation_of
from d2ext.data.checks import BadDataError, check_sample, is_voc, load_checked
from d2ext.data.checks.dicts import without_small
from d2ext.data.class_names import classes_of, require_same_classes
from d2ext.data.fast_mapper import read_image
from d2ext.data.image_cache import ImageCache
from d2ext.data.proposals import add_proposals
from d2ext.data.tiles import tiles_of

from .class_checks import check_labels
from .data_loader import NamedErrors, ResumableLoader
from .random_state import sample_seed
from .schedule import resolve_schedule

__all__ = ["build_mapper", "build_test_loader", "build_train_loader", "load_dicts", "share_of_rank"]

logger = logging.getLogger(__name__)


def build_train_loader(
    cfg: CfgNode, mapper: Optional[Callable[[Dict], Any]] = None
) -> ResumableLoader:
    """Like ``detectron2.data.build_detection_train_loader``, but resumable.

    The samplers are Detectron2's, with the config's seed; SOLVER.IMS_PER_BATCH is divided among
    ranks and micro-steps.

    Args:
        cfg: the config.
        mapper: turns a dataset dict into the model's input; DATALOADER.MAPPER by default.
    """
    batch_size = share_of_rank(cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE)
    dataset_dicts, source_sizes = _load_dataset_dicts(cfg)
    factors = _repeat_factors(cfg, dataset_dicts, source_sizes)
    epoch_size = _epoch_size(cfg, len(dataset_dicts), factors)
    if cfg.INPUT.MIN_BOX_SIZE > 0:
        # After the factors: small objects count for how often an image comes, like the others.
        dataset_dicts = without_small(dataset_dicts, cfg.INPUT.MIN_BOX_SIZE)
    if mapper is None:
        mapper = build_mapper(cfg, is_train=True, epoch_size=epoch_size)
    if type(mapper) in (FastMapper, AugmentingMapper):
        reader: Any = mapper
        reader.read = (
            ImageCache.if_wanted(
                cfg.DATALOADER.CACHE, dataset_dicts, read_image, sharers=comm.get_local_size()
            )
            or read_image
        )
    # Another mapper may read what Pillow cannot, and pixels of more than 8 bits.
    images = type(mapper) in (DatasetMapper, FastMapper, AugmentingMapper)
    return ResumableLoader(
        dataset_dicts,
        mapper,
        _IndexStream(cfg, len(dataset_dicts), factors),
        batch_size=batch_size,
        aspect_ratio_grouping=cfg.DATALOADER.ASPECT_RATIO_GROUPING,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
        # A random but shared seed where the config names none; it is saved with the checkpoint.
        seed=cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed(),
        epoch_size=epoch_size,
        batches_per_step=cfg.SOLVER.ACCUMULATE,
        pin_memory=cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available(),
        check=functools.partial(check_sample, images=images, masks=cfg.MODEL.MASK_ON),
    )


def share_of_rank(images: int, accumulate: int, key: str = "SOLVER.IMS_PER_BATCH") -> int:
    """The images of one rank in one micro-step, of those of a step."""
    shares = comm.get_world_size() * accumulate
    if images % shares or shares > images:
        raise ValueError(
            f"{key} is {images}, which {comm.get_world_size()} processes x {accumulate} "
            f"micro-steps cannot share; make it a multiple of {shares}."
        )
    return images // shares


def build_mapper(
    cfg: CfgNode,
    is_train: bool,
    *,
    augmentations: Optional[Sequence[Any]] = None,
    epoch_size: float = 0.0,
) -> DatasetMapper:
    """The mapper that DATALOADER.MAPPER, or DATALOADER.MAPPER_TEST, asks for.

    Args:
        cfg: the config.
        is_train: for training; a mapper for evaluation leaves the annotations out.
        augmentations: in place of all of the config's.
        epoch_size: images in an epoch, for a schedule in epochs.
    """
    arguments = DatasetMapper.from_config(cfg, is_train)
    if augmentations is not None:
        arguments["augmentations"] = list(augmentations)
    elif is_train:
        own = augmentation_of(cfg, resolve_schedule(cfg, epoch_size).SOLVER.MAX_ITER)
        if own is not None:
            logger.info("Mapper: AugmentingMapper, for INPUT.AUGMENTATION and its relatives.")
            return AugmentingMapper(**own, **arguments)
    key = "DATALOADER.MAPPER" if is_train else "DATALOADER.MAPPER_TEST"
    return _choose_mapper(key, cfg.DATALOADER[key.split(".")[1]], arguments)


def _choose_mapper(key: str, choice: str, arguments: Dict[str, Any]) -> DatasetMapper:
    if choice not in ("auto", "fast", "detectron2"):
        raise ValueError(f"{key} is '{choice}'; choose auto, fast or detectron2.")
    if choice == "detectron2":
        logger.info("Mapper: Detectron2's DatasetMapper.")
        return DatasetMapper(**arguments)
    reason = why_not_fast(arguments["augmentations"], arguments["image_format"])
    if reason is None:
        logger.info("Mapper: FastMapper, Detectron2's samples with pixels within one grey level.")
        return FastMapper(**arguments)
    if choice == "fast":
        raise ValueError(f"FastMapper does not cover {reason}; set {key} to auto or detectron2.")
    logger.info(f"Mapper: Detectron2's DatasetMapper, because FastMapper does not cover {reason}.")
    return DatasetMapper(**arguments)


def build_test_loader(cfg: CfgNode, name: str) -> DataLoader:
    """Detectron2's loader for one of DATASETS.TEST, with its proposals if the config asks for them.

    An error about a sample names its file.
    """
    # A tiled model cuts and resizes by itself.
    plain: Optional[List[Any]] = [] if cfg.DATASETS.TILES else None
    mapper = NamedErrors(build_mapper(cfg, is_train=False, augmentations=plain), check_sample)
    files = None
    if cfg.MODEL.LOAD_PROPOSALS:
        files = [cfg.DATASETS.PROPOSAL_FILES_TEST[list(cfg.DATASETS.TEST).index(name)]]
    (dicts,) = load_dicts([name], files, training=False)
    return build_detection_test_loader(
        dataset=dicts, mapper=mapper, num_workers=cfg.DATALOADER.NUM_WORKERS
    )


def load_dicts(
    names: Sequence[str],
    proposal_files: Optional[Sequence[str]] = None,
    *,
    filter_empty: bool = False,
    min_keypoints: int = 0,
    same_classes: bool = True,
    **checks: Any,
) -> List[List[Dict]]:
    """The checked dataset dicts of each data set, with its proposals.

    Args:
        names: registered data sets; those with annotations have the same classes.
        proposal_files: one a data set; None for none.
        filter_empty, min_keypoints: as in ``detectron2.data.get_detection_dataset_dicts``.
        same_classes: refuse data sets in which a label means different things.
        checks: further arguments of :func:`~d2ext.data.checks.load_checked`.
    """
    parts: List[List[Dict]] = []
    for k, name in enumerate(names):
        part = load_checked(name, filter_empty=filter_empty, **checks)
        if not isinstance(part, Dataset):
            part = _select(name, list(part), filter_empty, min_keypoints)
        if proposal_files is not None:
            add_proposals(part, proposal_files[k])
        parts.append(part)
    # A data set of the user's own kind is not a list.
    labelled = [n for n, p in zip(names, parts) if isinstance(p, list) and "annotations" in p[0]]
    if same_classes:
        _require_same_classes(labelled)
    return parts


def _select(name: str, dicts: List[Dict], filter_empty: bool, min_keypoints: int) -> List[Dict]:
    """What ``get_detection_dataset_dicts`` makes of the dicts of one data set."""
    labelled = bool(dicts) and "annotations" in dicts[0]
    if filter_empty and labelled:
        dicts = filter_images_with_only_crowd_annotations(dicts)
    if min_keypoints > 0 and labelled:
        dicts = filter_images_with_few_keypoints(dicts, min_keypoints)
    if not dicts:
        raise BadDataError(
            f"No valid data found in {name}: every image lacks objects or has less than "
            f"{min_keypoints} key points; annotate some."
        )
    classes = MetadataCatalog.get(name).get("thing_classes")
    if labelled and classes:
        print_instances_class_histogram(dicts, classes)
    return dicts


def _require_same_classes(names: Sequence[str]) -> None:
    """Refuse data sets in which a label means different things, as Detectron2 does in one call."""
    known = [(name, classes) for name in names if (classes := classes_of(name))]
    for name, classes in known[1:]:
        first, expected = known[0]
        require_same_classes(f"'{first}'", expected, f"'{name}'", classes)


class _IndexStream:
    """Seed -> this rank's endless stream of indices, by one of Detectron2's samplers."""

    def __init__(self, cfg: CfgNode, size: int, factors: Optional[torch.Tensor]):
        self.name, self.size, self.factors = cfg.DATALOADER.SAMPLER_TRAIN, size, factors
        self.subset_ratio = cfg.DATALOADER.RANDOM_SUBSET_RATIO
        logger.info(f"Training sampler: {self.name}.")

    def __call__(self, seed: int) -> Sampler:
        if self.factors is not None:
            return RepeatFactorTrainingSampler(self.factors, seed=seed)
        if self.name == "RandomSubsetTrainingSampler":
            return RandomSubsetTrainingSampler(
                self.size,
                self.subset_ratio,
                seed_shuffle=seed,
                seed_subset=sample_seed(seed, 1),
            )
        return TrainingSampler(self.size, seed=seed)


def _load_dataset_dicts(cfg: CfgNode) -> Tuple[List[Dict], List[int]]:
    """All dataset dicts, checked, and how many each of DATASETS.TRAIN gives."""
    if not cfg.DATASETS.TRAIN:
        raise ValueError("There is nothing to train on; name a data set in DATASETS.TRAIN.")
    for name in cfg.DATASETS.TRAIN:
        if name not in DatasetCatalog.list():
            require_dataset(name)  # says what is registered
    keypoints = cfg.MODEL.ROI_KEYPOINT_HEAD.MIN_KEYPOINTS_PER_IMAGE
    parts = load_dicts(
        cfg.DATASETS.TRAIN,
        cfg.DATASETS.PROPOSAL_FILES_TRAIN if cfg.MODEL.LOAD_PROPOSALS else None,
        filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        min_keypoints=keypoints if cfg.MODEL.KEYPOINT_ON else 0,
        bad_annotations=cfg.DATALOADER.BAD_ANNOTATIONS,
        masks=cfg.MODEL.MASK_ON,
        drop_difficult=_drops_difficult(cfg),
    )
    if cfg.DATASETS.TILES:
        keep_empty = not cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        parts = [tiles_of(part, *cfg.DATASETS.TILES, keep_empty=keep_empty) for part in parts]
        logger.info(f"{sum(map(len, parts))} tiles of the training images.")
    dicts = [item for part in parts for item in part]
    key = class_count_key(cfg)
    check_labels(dicts, class_count_keys(cfg).get(key), key)
    return dicts, [len(part) for part in parts]


def _drops_difficult(cfg: CfgNode) -> bool:
    """Whether difficult objects are left out; a config without any is refused."""
    drops = cfg.DATALOADER.VOC_DIFFICULT == "drop"
    if drops and not any(map(is_voc, cfg.DATASETS.TRAIN)):
        raise ValueError(
            "DATALOADER.VOC_DIFFICULT is 'drop', but none of DATASETS.TRAIN is a set of Pascal "
            "VOC's files, which alone know difficult objects; set it to 'train'."
        )
    return drops


def _repeat_factors(cfg: CfgNode, dicts: List[Dict], sizes: List[int]) -> Optional[torch.Tensor]:
    """How often each image comes in an epoch, or None where every image comes once."""
    name = cfg.DATALOADER.SAMPLER_TRAIN

    def by_category(dicts: List[Dict], threshold: float) -> torch.Tensor:
        found = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(dicts, threshold)
        # Newer Detectron2's key: t / f instead of its root. The largest of the squares over an
        # image's classes is the square of the largest.
        return found if cfg.DATALOADER.get("REPEAT_SQRT", True) else found.square()

    threshold = cfg.DATALOADER.REPEAT_THRESHOLD
    if name in ("TrainingSampler", "RandomSubsetTrainingSampler"):
        return None
    if name == "RepeatFactorTrainingSampler":
        factors = by_category(dicts, threshold)
    elif name in ("WeightedTrainingSampler", "WeightedCategoryTrainingSampler"):
        weights = dict(cfg.DATASETS.TRAIN_REPEAT_FACTOR)
        unknown = set(weights) - set(cfg.DATASETS.TRAIN)
        if unknown:
            raise ValueError(
                f"DATASETS.TRAIN_REPEAT_FACTOR names {sorted(unknown)}, "
                "which DATASETS.TRAIN does not."
            )
        factors = torch.cat(
            [torch.full((n,), float(weights.get(d, 1))) for d, n in zip(cfg.DATASETS.TRAIN, sizes)]
        )
        if name == "WeightedCategoryTrainingSampler":
            parts, start = [], 0
            for n in sizes:
                parts.append(by_category(dicts[start : start + n], threshold))
                start += n
            factors = torch.cat(parts) * factors
            factors = factors / factors.min()
    else:
        raise ValueError(f"DATALOADER.SAMPLER_TRAIN '{name}' is not one of Detectron2's samplers.")
    validate(cfg, "DATALOADER.REPEAT_ROUNDING")
    return factors.ceil() if cfg.DATALOADER.REPEAT_ROUNDING == "ceil" else factors


def _epoch_size(cfg: CfgNode, size: int, factors: Optional[torch.Tensor]) -> float:
    if factors is not None:
        return float(factors.double().sum())
    if cfg.DATALOADER.SAMPLER_TRAIN == "RandomSubsetTrainingSampler":
        return float(int(size * cfg.DATALOADER.RANDOM_SUBSET_RATIO))
    return float(size)
