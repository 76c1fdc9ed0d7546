"""Evaluating a model on data sets: plainly, augmented, and its moving average beside it."""

import logging
from collections import OrderedDict
from typing import Any, Callable, Dict, Iterable, Iterator, Optional

from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.evaluation import DatasetEvaluator, inference_on_dataset, print_csv_format
from detectron2.modeling import GeneralizedRCNNWithTTA
from detectron2.utils import comm
from torch import nn

from d2ext.data.tiles import TiledModel

from .hooks import ModelEMA
from .schedule import FAST_DEV_RUN_IMAGES

__all__ = ["augmented", "evaluate_data_sets", "max_batches_of", "tiled", "with_average"]

logger = logging.getLogger(__name__)

Results = Dict[str, Any]


def evaluate_data_sets(
    names: Iterable[str],
    model: nn.Module,
    build_loader: Callable[[str], Iterable],
    build_evaluator: Callable[[str], DatasetEvaluator],
    *,
    max_batches: Optional[int] = None,
) -> Results:
    """Evaluate a model on each of several data sets.

    Returns:
        Figures by task and name, by data set before that if there are several. Empty on all ranks
        but the first.
    """
    results: Results = OrderedDict()
    for name in names:
        loader = build_loader(name)
        if max_batches is not None:
            loader = _FirstBatches(loader, max_batches)
        results[name] = inference_on_dataset(model, loader, build_evaluator(name))
        if comm.is_main_process():
            logger.info(f"Results on {name}:")
            print_csv_format(results[name])
    return next(iter(results.values())) if len(results) == 1 else results


def max_batches_of(cfg: CfgNode) -> Optional[int]:
    """How much of a data set a dry run evaluates; None: all."""
    return FAST_DEV_RUN_IMAGES if cfg.ENGINE.FAST_DEV_RUN else None


def augmented(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """A model with Detectron2's test-time augmentation (TEST.AUG)."""
    logger.info("Evaluating with test-time augmentation.")
    model_with_augmentation = GeneralizedRCNNWithTTA(cfg, model)
    # An evaluation puts all modules back into the mode that the outermost one was in.
    model_with_augmentation.training = model.training
    return model_with_augmentation


def tiled(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """A model that looks at tiles, DATASETS.TILES, and merges what it finds."""
    side, overlap = cfg.DATASETS.TILES
    model_of_tiles = TiledModel(
        model,
        side=int(side),
        overlap=float(overlap),
        resize=T.ResizeShortestEdge(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST),
        max_detections=cfg.TEST.DETECTIONS_PER_IMAGE,
    )
    # As above.
    model_of_tiles.training = model.training
    return model_of_tiles


def with_average(evaluate: Callable[[str], Results], ema: Optional[ModelEMA]) -> Results:
    """Evaluate the model, and its moving average beside it as "ema".

    Args:
        evaluate: given the name of a sub-folder for predictions ("": none), evaluates the model.
        ema: the average; None: there is none to evaluate.
    """
    results = dict(evaluate(""))
    if ema is not None:
        # Another folder: its predictions must not overwrite the model's.
        with ema.applied():
            results["ema"] = evaluate("ema")
    return results


class _FirstBatches:
    """The first batches of a loader, with a length."""

    def __init__(self, loader: Any, count: int):
        self._loader, self._count = loader, count

    def __len__(self) -> int:
        return min(self._count, len(self._loader))

    def __iter__(self) -> Iterator[Any]:
        for k, batch in enumerate(self._loader):
            if k >= self._count:
                return
            yield batch
