"""What sums of losses are divided by: pure functions, or modules whose state is a buffer."""

from typing import Union

import torch
from torch import nn

from ..reduce import reduce_mean
from ..registry import Registry

__all__ = ["NORMALIZER_REGISTRY", "EMANormalizer", "PositiveNormalizer"]

NORMALIZER_REGISTRY = Registry("loss normaliser")


def _mean_over_ranks(count: int, device: torch.device) -> torch.Tensor:
    return reduce_mean(torch.tensor(float(count), dtype=torch.float64, device=device))


@NORMALIZER_REGISTRY.register("positives")
class PositiveNormalizer(nn.Module):
    """The number of positives of this step, at least 1.

    Args:
        sync: take the mean over ranks before the floor of 1.
        initial: accepted so that all normalisers are built alike; unused.
    """

    def __init__(self, sync: bool = False, initial: float = 1.0):
        super().__init__()
        self.sync = sync

    def forward(self, count: int, like: torch.Tensor) -> Union[float, torch.Tensor]:
        """The divisor for ``count`` positives; ``like`` gives the device and type."""
        if self.sync:
            return _mean_over_ranks(count, like.device).clamp(min=1).to(like.dtype)
        return float(max(count, 1))


@NORMALIZER_REGISTRY.register("ema")
class EMANormalizer(nn.Module):
    """Detectron2's running mean of the number of positives, kept in a buffer.

    Upstream keeps it in a plain float that no checkpoint holds, so each resume starts at
    ``initial`` again and the losses jump. Here it is a buffer of the state dict, but only once it
    has moved: a model that has not trained yet has upstream's state-dict keys, and a model-zoo
    checkpoint without the value loads without a complaint.

    Args:
        sync: take the mean of the counts over ranks.
        initial: value before the first step (Detectron2: 100 for RetinaNet, 300 for FCOS).
        momentum: weight of the old value.
    """

    def __init__(self, sync: bool = False, initial: float = 100.0, momentum: float = 0.9):
        super().__init__()
        self.sync = sync
        self.initial = initial
        self.momentum = momentum
        # float64 because upstream's float is one; the division then happens in the loss' type.
        self.register_buffer("value", torch.tensor(float(initial), dtype=torch.float64))

    def forward(self, count: int, like: torch.Tensor) -> torch.Tensor:
        """The divisor after taking in ``count``; passes without gradients take in nothing."""
        if self.training and torch.is_grad_enabled():
            new = max(count, 1)
            if self.sync:
                new = _mean_over_ranks(count, self.value.device).clamp(min=1)
            self.value.mul_(self.momentum).add_(new * (1 - self.momentum))
        return self.value.to(like.dtype)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if float(self.value) == self.initial:
            destination.pop(prefix + "value")

    def _load_from_state_dict(self, state_dict, prefix, *args, **kwargs):
        state_dict.setdefault(prefix + "value", self.value.new_tensor(self.initial))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return f"initial={self.initial}, momentum={self.momentum}, sync={self.sync}"
