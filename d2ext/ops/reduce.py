"""Sums and means over ranks that cost nothing on one process and always run on several.

A message between ranks costs about the same for one number as for a thousand. What a step needs at
once (the divisor of its losses) is reduced at once; what only later steps need (statistics of
methods) can wait for the message that the trainer sends at the end of a step anyway.
"""

import contextlib
from typing import Callable, Iterator, List, Optional, Tuple

import torch
from torch import distributed

__all__ = ["Deferred", "deferring", "reduce_later", "reduce_mean", "reduce_sum", "world_size"]


class Deferred(List[Tuple[torch.Tensor, Callable[[torch.Tensor], None]]]):
    """Tensors that wait for their sum over ranks, each with what takes the sum in."""


_waiting: Optional[Deferred] = None


def world_size() -> int:
    """The number of ranks; 1 without a process group."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_world_size()
    return 1


def reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over all ranks; every rank must call it. Returns a new tensor, no graph."""
    tensor = tensor.detach().clone()
    if world_size() > 1:
        distributed.all_reduce(tensor)
    return tensor


def reduce_mean(tensor: torch.Tensor) -> torch.Tensor:
    """Mean of a tensor over all ranks; every rank must call it. Returns a new tensor, no graph."""
    return reduce_sum(tensor) / world_size()


def reduce_later(tensor: torch.Tensor, take_in: Callable[[torch.Tensor], None]) -> None:
    """Call ``take_in`` with the sum of a tensor over all ranks: at the end of this step, or now.

    Now, if there is one rank, if no :func:`deferring` will send it, or if the
    message, which is in float32, would round it. Every rank must call it.
    """
    if world_size() == 1 or _waiting is None or tensor.dtype != torch.float32:
        take_in(reduce_sum(tensor))
    else:
        _waiting.append((tensor.detach(), take_in))


@contextlib.contextmanager
def deferring(collected: Deferred, *, enabled: bool = True) -> Iterator[None]:
    """Collect what is reduced later; the caller must reduce it and call each ``take_in``.

    Args:
        collected: gets pairs of a tensor and its ``take_in``.
        enabled: if not, nothing is collected and all is reduced now.
    """
    global _waiting
    outer, _waiting = _waiting, collected if enabled else None
    try:
        yield
    finally:
        _waiting = outer
