"""The trainer, its hooks, its checkpoints, and how its processes start."""

from .. import _detectron2  # noqa: F401  (first: it may be missing)
from .._arguments import argument_parser
from .batch_file import load_batch, save_batch
from .build_data import build_mapper, build_train_loader
from .checkpoint import Checkpointer
from .data_loader import DataError, ResumableLoader
from .ddp import create_ddp_model
from .errors import EXIT_NONFINITE, EXIT_PREEMPTED, NonFiniteLossError, RunError, WriteError
from .hooks import HOOK_REGISTRY, HookBase
from .launch import launch
from .lazy import build_lazy_trainer, train_lazy
from .nonfinite import NonFiniteGuard
from .output_lock import OutputInUseError, OutputLock
from .precision import GlobalNormClipper, Precision
from .run import main, run
from .schedule import resolve_schedule
from .setup import choose_device, default_setup, import_modules
from .trainer import Trainer

__all__ = [
    "Checkpointer",
    "DataError",
    "EXIT_NONFINITE",
    "EXIT_PREEMPTED",
    "GlobalNormClipper",
    "HOOK_REGISTRY",
    "HookBase",
    "NonFiniteGuard",
    "NonFiniteLossError",
    "OutputInUseError",
    "OutputLock",
    "Precision",
    "ResumableLoader",
    "RunError",
    "Trainer",
    "WriteError",
    "argument_parser",
    "build_lazy_trainer",
    "build_mapper",
    "build_train_loader",
    "choose_device",
    "create_ddp_model",
    "default_setup",
    "import_modules",
    "launch",
    "load_batch",
    "main",
    "resolve_schedule",
    "run",
    "save_batch",
    "train_lazy",
]
