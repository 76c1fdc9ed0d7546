"""The hooks of the trainer. Detectron2's own (``detectron2.engine.hooks``) work beside them."""

from .base import HOOK_REGISTRY, HookBase, build_registered_hooks
from .class_balance import ClassBalance, build_class_balance
from .class_weights import ClassWeights, count_class_weights
from .default import build_ema, default_hooks
from .ema import ModelEMA
from .evaluate import BestCheckpointer, EarlyStopping, Evaluate
from .logit_norm import CollectLogits, build_collect_logits
from .loss_weights import LossWeights, build_loss_weights
from .measure_prior import MeasurePrior, build_measure_prior
from .results import ResultsTable, tell_results
from .save import PeriodicCheckpointer, PeriodicWriter, PreciseBN
from .signals import StopOnSignal
from .validation_loss import ValidationLoss

__all__ = [
    "HOOK_REGISTRY",
    "BestCheckpointer",
    "ClassBalance",
    "ClassWeights",
    "CollectLogits",
    "EarlyStopping",
    "Evaluate",
    "HookBase",
    "LossWeights",
    "MeasurePrior",
    "ModelEMA",
    "PeriodicCheckpointer",
    "PeriodicWriter",
    "PreciseBN",
    "ResultsTable",
    "StopOnSignal",
    "ValidationLoss",
    "build_class_balance",
    "count_class_weights",
    "build_ema",
    "build_loss_weights",
    "build_collect_logits",
    "build_measure_prior",
    "build_registered_hooks",
    "default_hooks",
    "tell_results",
]
