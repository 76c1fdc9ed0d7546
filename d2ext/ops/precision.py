"""The number format in which losses are computed."""

import torch

__all__ = ["full_precision"]


def full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision to float32: exponentials, areas and sums of losses leave its range."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor
