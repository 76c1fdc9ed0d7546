"""When a forward pass of a loss counts towards its statistics."""

from typing import Any, Callable, NamedTuple, Tuple

import torch
from torch import nn

from .cls_losses import ClsLoss

__all__ = ["Counted", "CountedLoss", "Levels", "running_counts"]


class Levels(NamedTuple):
    """The pyramid level of each of some samples, for losses that count level by level.

    Attributes:
        of: (M,) int64, the level of each sample.
        number: how many levels there are.
    """

    of: torch.Tensor
    number: int


def running_counts(
    before: torch.Tensor, now: torch.Tensor, momentum: float
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Running means of counts after each of several levels, which come one after the other.

    A region that a level leaves empty keeps its mean.

    Args:
        before: (B,) the means so far.
        now: (L, B) counts of each level.
        momentum: how much of the old counts stays with each level.

    Returns:
        (L, B) the means as each level sees them, and (B,) after the last.
    """
    seen = []
    for row in now:  # each starts from what the one before has left
        before = torch.where(row > 0, momentum * before + (1 - momentum) * row, before)
        seen.append(before)
    return torch.stack(seen), before


class Counted(nn.Module):
    """Base of losses whose statistics, in buffers, move with every training step.

    A forward pass counts if the module is in training mode and gradients are enabled. Evaluation
    and passes under ``no_grad`` leave no trace, and a forward pass that activation checkpointing
    repeats is counted once.
    """

    _counted_last_forward = False

    def is_repetition(self) -> bool:
        """Whether activation checkpointing is repeating a forward pass that was counted.

        A forward pass inside a backward pass is checkpointing at work. In its non-reentrant form
        the first pass had gradients enabled and was counted. In its reentrant form the first pass
        ran under no_grad, so that the repetition is the one to count.
        """
        in_backward = torch._C._current_graph_task_id() != -1
        return in_backward and torch.is_grad_enabled() and self._counted_last_forward

    def counts_now(self) -> bool:
        """Whether this forward pass is to be counted; to be asked once in each."""
        if self.is_repetition():
            return False
        counts = self.training and torch.is_grad_enabled()
        if self.training and torch._C._current_graph_task_id() == -1:
            self._counted_last_forward = counts
        return counts

    def _apply(
        self, fn: Callable[[torch.Tensor], torch.Tensor], *args: Any, **kwargs: Any
    ) -> "Counted":
        """Move the module, but keep the statistics in float32 or wider.

        A sum over a whole training would stop growing in half precision.
        """
        kept = dict(self.named_buffers(recurse=False))
        super()._apply(fn, *args, **kwargs)
        for name, before in kept.items():
            now = getattr(self, name)
            if now.dtype in (torch.float16, torch.bfloat16):
                setattr(self, name, before.to(now.device))
        return self


class CountedLoss(Counted, ClsLoss):
    """A class loss with such statistics."""
