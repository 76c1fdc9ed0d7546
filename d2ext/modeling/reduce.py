"""Sums and means over ranks that cost nothing on one process and always run on several."""

import torch
from detectron2.utils import comm

__all__ = ["reduce_mean", "reduce_sum"]


def reduce_sum(tensor: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over all ranks; every rank must call it. Returns a new tensor, no graph."""
    tensor = tensor.detach().clone()
    if comm.get_world_size() > 1:
        torch.distributed.all_reduce(tensor)
    return tensor


def reduce_mean(tensor: torch.Tensor) -> torch.Tensor:
    """Mean of a tensor over all ranks; every rank must call it. Returns a new tensor, no graph."""
    return reduce_sum(tensor) / comm.get_world_size()
