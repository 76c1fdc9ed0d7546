"""What a trainer has, for the mixins that it is made of to rely on."""

from typing import Any, Dict, Iterable, List, Optional

import torch
from detectron2.engine import HookBase
from torch import nn

from .checkpoint import Checkpointer
from .module_state import ChangedAttributes
from .nonfinite import NonFiniteGuard
from .precision import Precision

__all__ = ["TrainerAttributes"]


class TrainerAttributes:
    """Declarations alone; :class:`Trainer` and Detectron2's ``TrainerBase`` set and define them."""

    cfg: Any  # a CfgNode; None for a trainer that was made from ready parts
    raw_model: nn.Module
    data_loader: Iterable
    optimizer: torch.optim.Optimizer
    precision: Precision
    guard: NonFiniteGuard
    checkpointer: Checkpointer
    output_dir: str
    results: Optional[Dict[str, Any]]
    storage: Any
    iter: int
    start_iter: int
    max_iter: int
    completed_steps: int
    finished: bool
    _attributes: ChangedAttributes
    _hooks: List[HookBase]
    _last_hooks: List[HookBase]

    def flush_metrics(self) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define flush_metrics.")

    def _after_step(self, hooks: List[HookBase]) -> None:
        raise NotImplementedError(f"{type(self).__name__} must define _after_step.")
