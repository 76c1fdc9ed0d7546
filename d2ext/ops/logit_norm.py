"""Normalised logits for long tails, after training (LogN; Zhao et al., IJCV 2024).

Shapes: M rows (proposals), C classes; logits have C + 1 columns, the background last.
"""

from typing import Tuple

import torch

from .precision import full_precision

__all__ = ["normalize_logits", "update_logit_statistics"]

# The least variance: a class whose logit never moved would be divided by 0.
MIN_VARIANCE = 1e-11


@torch.no_grad()
def update_logit_statistics(
    mean: torch.Tensor, var: torch.Tensor, logits: torch.Tensor, *, momentum: float
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Running mean and variance of every column with M more rows.

    Args:
        mean, var: (C + 1,) so far; the authors begin at 0 and 1.
        logits: (M, C + 1). No row changes nothing; one has no variance and leaves ``var``.
        momentum: share of the new; the authors' is 1e-4.
    """
    logits = full_precision(logits).to(mean.dtype)
    if len(logits) == 0:
        return mean, var
    new_mean = (1 - momentum) * mean + momentum * logits.mean(dim=0)
    if len(logits) == 1:
        return new_mean, var
    return new_mean, (1 - momentum) * var + momentum * logits.var(dim=0)


def normalize_logits(logits: torch.Tensor, mean: torch.Tensor, var: torch.Tensor) -> torch.Tensor:
    """Logits of the classes standardised by the statistics of the training set.

    ``(z_j - mean_j + least mean) / sigma_j``; the background's stays. The usual softmax follows.

    Args:
        logits: (M, C + 1).
        mean, var: (C + 1,); those of the background are not used.
    """
    logits = full_precision(logits)
    mean, var = mean.to(logits)[:-1], var.to(logits)[:-1]
    classes = (logits[:, :-1] - mean + mean.min()) / var.clamp(min=MIN_VARIANCE).sqrt()
    return torch.cat([classes, logits[:, -1:]], dim=1)
