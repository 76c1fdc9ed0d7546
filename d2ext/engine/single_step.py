"""A training step without a training, for what times steps or looks at them."""

import math
from typing import Any, Callable, Dict, Iterator, Optional

import torch
from torch import nn

from ..data.packed_batch import batch_on
from .precision import Precision

__all__ = ["take_step"]


def take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterator[Any],
    *,
    precision: Optional[Any] = None,
    accumulate: int = 1,
    clip: Optional[Callable[[torch.optim.Optimizer], Any]] = None,
) -> Dict[str, float]:
    """One step of :class:`~d2ext.engine.Trainer`, without its hooks.

    Args:
        model: gives a dictionary of losses (or one loss) for a batch.
        optimizer: of its parameters; it does nothing if a loss is not finite.
        batches: one is taken for each micro-step.
        precision: a :class:`~d2ext.engine.Precision`; float32 by default.
        accumulate: micro-steps, SOLVER.ACCUMULATE.
        clip: called with the optimizer before the update.

    Returns:
        the losses by name, their means over the micro-steps
    """
    precision = precision or Precision()
    device = next(model.parameters()).device
    means: Dict[str, torch.Tensor] = {}
    optimizer.zero_grad(set_to_none=True)
    for _ in range(accumulate):
        batch = batch_on(next(batches), device)
        with precision.autocast():
            losses = model(batch)
        losses = losses if isinstance(losses, dict) else {"total_loss": losses}
        precision.scale(sum(losses.values()) / accumulate).backward()
        for name, loss in losses.items():
            share = loss.detach() / accumulate
            means[name] = means[name] + share if name in means else share
    values = {name: float(mean) for name, mean in means.items()}
    if all(math.isfinite(value) for value in values.values()):
        precision.unscale(optimizer)
        if clip is not None:
            clip(optimizer)
        precision.step(optimizer)
    return values
