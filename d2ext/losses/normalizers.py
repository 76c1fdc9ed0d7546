"""What sums of losses are divided by: pure functions, or modules whose state is a buffer."""

from typing import Any, Dict, Tuple, Union

import torch
from torch import nn

from d2ext.ops.reduce import reduce_mean

__all__ = [
    "EMANormalizer",
    "Normalizer",
    "PositiveNormalizer",
    "divisor_and_mean",
]

# A number of positives, or a sum of weights on the device.
Count = Union[int, torch.Tensor]
Divisor = Union[float, torch.Tensor]


def divisor_and_mean(
    normalizer: nn.Module, count: Count, like: torch.Tensor, total: torch.Tensor
) -> Tuple[Divisor, torch.Tensor]:
    """The divisor for ``count`` positives, and the mean of another number over ranks.

    Both in one message, if the normaliser is one of d2ext's.
    """
    if isinstance(normalizer, Normalizer):
        return normalizer.divisor_and_mean(count, like, total)
    return normalizer(count, like), reduce_mean(total)


class Normalizer(nn.Module):
    """Base of the normalisers: forms the divisor from the mean count over ranks, or from its own.

    Args:
        sync: take the mean over ranks.
    """

    def __init__(self, sync: bool):
        super().__init__()
        self.sync = sync

    def divisor(self, count: Count, like: torch.Tensor) -> Divisor:
        """The divisor for a count: a number, or a float64 scalar that is the mean over ranks."""
        raise NotImplementedError(f"{type(self).__name__} must define divisor.")

    def wants_count(self) -> bool:
        """Whether the divisor depends on the count now."""
        return True

    def forward(self, count: Count, like: torch.Tensor) -> Divisor:
        """The divisor for ``count`` positives or weights; ``like`` gives the device and type."""
        if self.sync and self.wants_count():
            count = reduce_mean(_float64(count, like.device))
        return self.divisor(count, like)

    def divisor_and_mean(
        self, count: Count, like: torch.Tensor, total: torch.Tensor
    ) -> Tuple[Divisor, torch.Tensor]:
        """As the function of this name says."""
        if not (self.sync and self.wants_count()):
            return self.divisor(count, like), reduce_mean(total)
        both = torch.stack([_float64(count, total.device), total.detach().double()])
        count, mean = reduce_mean(both).unbind()
        return self.divisor(count, like), mean.to(total.dtype)


def _float64(count: Count, device: torch.device) -> torch.Tensor:
    if torch.is_tensor(count):
        return count.detach().double()
    return torch.tensor(float(count), dtype=torch.float64, device=device)


class PositiveNormalizer(Normalizer):
    """The number of positives of this step, at least 1.

    Args:
        sync: take the mean over ranks before the floor of 1.
        initial: accepted so that all normalisers are built alike; unused.
    """

    def __init__(self, sync: bool = False, initial: float = 1.0):
        super().__init__(sync)

    def divisor(self, count: Count, like: torch.Tensor) -> Divisor:
        if torch.is_tensor(count):
            return count.clamp(min=1).to(like.dtype)
        return float(max(count, 1))


class EMANormalizer(Normalizer):
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

    value: torch.Tensor

    def __init__(self, sync: bool = False, initial: float = 100.0, momentum: float = 0.9):
        super().__init__(sync)
        self.initial = initial
        self.momentum = momentum
        # float64 because upstream's float is one; the division then happens in the loss' type.
        self.register_buffer("value", torch.tensor(float(initial), dtype=torch.float64))

    def wants_count(self) -> bool:
        return self.training and torch.is_grad_enabled()

    def divisor(self, count: Count, like: torch.Tensor) -> Divisor:
        """The divisor after taking in ``count``; passes without gradients take in nothing."""
        if self.wants_count():
            new = count.clamp(min=1) if torch.is_tensor(count) else max(count, 1)
            self.value.mul_(self.momentum).add_(new * (1 - self.momentum))
        # A copy also in float64: a loss keeps it for its backward pass, and the value moves on.
        return self.value.to(like.dtype, copy=True)

    def _save_to_state_dict(
        self, destination: Dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if float(self.value) == self.initial:
            destination.pop(prefix + "value")

    def _load_from_state_dict(
        self, state_dict: Dict[str, Any], prefix: str, *args: Any, **kwargs: Any
    ) -> None:
        state_dict.setdefault(prefix + "value", self.value.new_tensor(self.initial))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        return f"initial={self.initial}, momentum={self.momentum}, sync={self.sync}"
