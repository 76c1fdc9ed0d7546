"""The hooks of a run, in order: one list for trainings from YAML and from LazyConfigs."""

from typing import Any, Callable, Dict, Iterable, List, Optional

from detectron2.config import CfgNode
from detectron2.engine import HookBase as UpstreamHookBase
from detectron2.engine import hooks as upstream
from detectron2.utils.events import EventWriter
from torch import nn

from .class_weights import build_class_weights
from .ema import ModelEMA
from .evaluate import BestCheckpointer, EarlyStopping, Evaluate
from .results import ResultsTable
from .save import PeriodicCheckpointer, PeriodicWriter
from .signals import StopOnSignal
from .validation_loss import ValidationLoss

__all__ = ["build_ema", "default_hooks"]

Hook = Optional[UpstreamHookBase]


def build_ema(cfg: CfgNode, model: nn.Module) -> Optional[ModelEMA]:
    """The moving average that ``ENGINE.EMA`` asks for."""
    node = cfg.ENGINE.EMA
    return ModelEMA(model, node.DECAY, node.WARMUP, node.RULE) if node.ENABLED else None


def default_hooks(
    cfg: CfgNode,
    model: nn.Module,
    *,
    writers: List[EventWriter],
    ema: Optional[ModelEMA] = None,
    measure_prior: Hook = None,
    scheduler: Any = None,
    given: Iterable[Hook] = (),
    class_balance: Hook = None,
    precise_bn: Hook = None,
    collect_logits: Hook = None,
    validation_batches: Optional[Callable[[], Iterable]] = None,
    evaluate: Optional[Callable[[], Dict[str, Any]]] = None,
    evaluate_augmented: Optional[Callable[[], Dict[str, Any]]] = None,
) -> List[Hook]:
    """All hooks of a run. Every rank has the same ones.

    Args:
        cfg: its ENGINE section, periods and TEST.VAL_LOSS are read, but no key of the model.
        model: the model without a wrapper.
        writers: where figures go; none on ranks but the first.
        ema: see :func:`build_ema`.
        measure_prior: measures the prior of training without sampling.
        scheduler: a learning-rate multiplier or scheduler; None: the trainer's.
        given: what weighs the losses, and the user's own.
        class_balance, precise_bn, collect_logits: as named.
        validation_batches: see :class:`ValidationLoss`; None: there is nothing to validate on.
        evaluate: returns figures; None: there is nothing to evaluate on.
        evaluate_augmented: the same with test-time augmentation, at the end of the run.
    """
    engine, val_loss = cfg.ENGINE, cfg.TEST.VAL_LOSS
    best, stopping = engine.BEST_CHECKPOINT, engine.EARLY_STOPPING
    measured: List[Hook] = []
    if val_loss.PERIOD > 0 and validation_batches is not None:
        measured.append(ValidationLoss(val_loss.PERIOD, model, validation_batches))
    if evaluate is not None:
        measured.append(Evaluate(cfg.TEST.EVAL_PERIOD, evaluate))
    if evaluate_augmented is not None:
        measured.append(Evaluate(0, evaluate_augmented))
    evaluates_before_the_end = 0 < cfg.TEST.EVAL_PERIOD < cfg.SOLVER.MAX_ITER
    if best.METRIC and (best.METRIC != "auto" or (evaluate and evaluates_before_the_end)):
        measured.append(BestCheckpointer(best.METRIC, best.MODE))
    if stopping.PATIENCE > 0:
        terms = (stopping.METRIC, stopping.PATIENCE, stopping.MODE, stopping.MIN_DELTA)
        measured.append(EarlyStopping(*terms))
    return [
        # First: they change the model that later hooks may copy.
        measure_prior,
        build_class_weights(model),
        upstream.IterationTimer(),
        StopOnSignal(engine.STOP_SIGNALS),
        upstream.LRScheduler(scheduler=scheduler),
        *given,
        class_balance,
        precise_bn,
        collect_logits,
        ema,
        *measured,
        ResultsTable(cfg.OUTPUT_DIR),
        PeriodicWriter(writers, engine.LOG_PERIOD),
        PeriodicCheckpointer(cfg.SOLVER.CHECKPOINT_PERIOD),
    ]
