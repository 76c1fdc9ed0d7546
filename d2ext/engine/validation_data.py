"""Validation images with their ground truth, in equal shares for all ranks."""

import functools
import math
from typing import Any, Dict, Iterator, List, Tuple

from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.utils import comm
from torch.utils.data import DataLoader, Dataset

from d2ext.data.checks import check_sample

from .build_data import build_mapper, load_dicts
from .data_loader import NamedErrors, ignore_stop_signals

__all__ = ["ValidationBatches"]


class ValidationBatches:
    """Calling it yields (batch, number of images that count) over DATASETS.TEST.

    Images have test size and no augmentation. Every rank gets the same number of batches; where
    the images do not divide, a rank repeats one with weight 0.
    """

    def __init__(self, cfg: CfgNode):
        self._cfg = cfg

    def __call__(self) -> Iterator[Tuple[List[Dict[str, Any]], float]]:
        cfg = self._cfg
        parts = load_dicts(
            cfg.DATASETS.TEST,
            cfg.DATASETS.PROPOSAL_FILES_TEST if cfg.MODEL.LOAD_PROPOSALS else None,
            bad_annotations=cfg.DATALOADER.BAD_ANNOTATIONS,
        )
        dicts = [item for part in parts for item in part]
        rank, world_size = comm.get_rank(), comm.get_world_size()
        share = math.ceil(len(dicts) / world_size)
        places = [rank + k * world_size for k in range(share)]
        if cfg.TEST.VAL_LOSS.MAX_BATCHES > 0:
            places = places[: cfg.TEST.VAL_LOSS.MAX_BATCHES]
        resize = T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST)
        # The training mapper: an evaluation's leaves the ground truth out.
        mapper = build_mapper(cfg, is_train=True, augmentations=[resize])
        check = functools.partial(check_sample, masks=cfg.MODEL.MASK_ON)
        loader: DataLoader = DataLoader(
            _Mapped([dicts[p % len(dicts)] for p in places], NamedErrors(mapper, check)),
            batch_size=1,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            collate_fn=_identity,
            worker_init_fn=ignore_stop_signals,
        )
        for place, batch in zip(places, loader):
            yield batch, float(place < len(dicts))


class _Mapped(Dataset):
    def __init__(self, dicts: List[Dict], mapper: NamedErrors):
        self._dicts, self._mapper = dicts, mapper

    def __len__(self) -> int:
        return len(self._dicts)

    def __getitem__(self, index: int) -> Dict[str, Any]:
        return self._mapper(self._dicts[index])


def _identity(batch: List[Any]) -> List[Any]:
    return batch
