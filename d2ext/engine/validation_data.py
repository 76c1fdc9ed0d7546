"""Validation images with their ground truth, in equal shares for all ranks."""

import functools
import math
from typing import Any, Callable, Dict, Iterator, List, Tuple

from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from d2ext.data.checks import check_sample

from .build_data import build_mapper, load_dicts
from .data_loader import NamedErrors, ignore_stop_signals

__all__ = ["ValidationBatches"]


class ValidationBatches:
    """Calling it yields (batch, number of images that count).

    Every rank gets the same number of batches; where the images do not divide, a rank repeats one
    with weight 0. A config gives the images of DATASETS.TEST, at test size and not augmented.

    Args:
        load: returns dataset dicts.
        build_mapper: makes the mapper, which keeps the ground truth.
        masks: whether the model needs masks.
        num_workers: worker processes.
        max_batches: batches of a rank; 0: all.
    """

    @configurable
    def __init__(
        self,
        *,
        load: Callable[[], List[Dict[str, Any]]],
        build_mapper: Callable[[], Callable[[Dict], Any]],
        masks: bool = False,
        num_workers: int = 0,
        max_batches: int = 0,
    ):
        self._load, self._build_mapper = load, build_mapper
        self._check = functools.partial(check_sample, masks=masks)
        self._num_workers, self._max_batches = num_workers, max_batches

    @classmethod
    def from_config(cls, cfg: CfgNode) -> Dict[str, Any]:
        resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        return {
            "load": functools.partial(_load_test_sets, cfg),
            # The training mapper: an evaluation's leaves the ground truth out.
            "build_mapper": functools.partial(
                build_mapper, cfg, is_train=True, augmentations=[resize]
            ),
            "masks": cfg.MODEL.MASK_ON,
            "num_workers": cfg.DATALOADER.NUM_WORKERS,
            "max_batches": cfg.TEST.VAL_LOSS.MAX_BATCHES,
        }

    def __call__(self) -> Iterator[Tuple[List[Dict[str, Any]], float]]:
        dicts = self._load()
        rank, world_size = comm.get_rank(), comm.get_world_size()
        share = math.ceil(len(dicts) / world_size)
        places = [rank + k * world_size for k in range(share)]
        if self._max_batches > 0:
            places = places[: self._max_batches]
        mapper = NamedErrors(self._build_mapper(), self._check)
        loader: DataLoader = DataLoader(
            _Mapped([dicts[p % len(dicts)] for p in places], mapper),
            batch_size=1,
            num_workers=self._num_workers,
            collate_fn=_identity,
            worker_init_fn=ignore_stop_signals,
        )
        for place, batch in zip(places, loader):
            yield batch, float(place < len(dicts))


def _load_test_sets(cfg: CfgNode) -> List[Dict[str, Any]]:
    parts = load_dicts(
        cfg.DATASETS.TEST,
        cfg.DATASETS.PROPOSAL_FILES_TEST if cfg.MODEL.LOAD_PROPOSALS else None,
        bad_annotations=cfg.DATALOADER.BAD_ANNOTATIONS,
    )
    return [item for part in parts for item in part]


class _Mapped(Dataset):
    def __init__(self, dicts: List[Dict], mapper: NamedErrors):
        self._dicts, self._mapper = dicts, mapper

    def __len__(self) -> int:
        return len(self._dicts)

    def __getitem__(self, index: int) -> Dict[str, Any]:
        return self._mapper(self._dicts[index])


def _identity(batch: List[Any]) -> List[Any]:
    return batch
