"""The number format in which losses are computed, and the least gradient that is kept."""

import torch
from torch.nn import functional as F

__all__ = ["drop_negligible", "full_precision", "smallest_gradient"]


def full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision to float32: exponentials, areas and sums of losses leave its range."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def smallest_gradient(dtype: torch.dtype) -> float:
    """The size up to which an entry of a loss's gradient becomes 0: 2^-100 in float32.

    Such entries are lost in every sum with others. As subnormal numbers, below 2^-126, they make a
    convolution's backward pass on a CPU several times slower. The margin is for the factors that
    follow, such as one over the number of positives.
    """
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return torch.finfo(wide).tiny * 2.0**26


def drop_negligible(grad: torch.Tensor) -> torch.Tensor:
    """The gradient with 0 for what is not above :func:`smallest_gradient`; a NaN stays."""
    return F.hardshrink(grad, smallest_gradient(grad.dtype))
