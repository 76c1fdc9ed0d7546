"""The hooks of the trainer. Detectron2's own (``detectron2.engine.hooks``) work beside them."""

from .base import HOOK_REGISTRY, HookBase, build_registered_hooks
from .ema import ModelEMA
from .evaluate import BestCheckpointer, EarlyStopping, Evaluate
from .loss_weights import LossWeights, build_loss_weights
from .save import PeriodicCheckpointer, PeriodicWriter, PreciseBN
from .signals import StopOnSignal
from .validation_loss import ValidationLoss

__all__ = [
    "HOOK_REGISTRY",
    "BestCheckpointer",
    "EarlyStopping",
    "Evaluate",
    "HookBase",
    "LossWeights",
    "ModelEMA",
    "PeriodicCheckpointer",
    "PeriodicWriter",
    "PreciseBN",
    "StopOnSignal",
    "ValidationLoss",
    "build_loss_weights",
    "build_registered_hooks",
]
