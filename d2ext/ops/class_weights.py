"""Weights of classes against imbalance: fixed before training, the simplest rival of EFL.

Shapes: M rows (samples), C classes. Labels are 0..C-1, C for background and -1 for ignored rows.
"""

from typing import Optional, Sequence, Union

import torch
from torch.nn import functional as F

from .precision import full_precision

__all__ = ["effective_weight", "inverse_frequency_weights", "softmax_loss"]

Counts = Union[Sequence[float], torch.Tensor]


def inverse_frequency_weights(counts: Counts, *, power: float = 1.0) -> torch.Tensor:
    """``count^-power`` of each class, scaled to a mean of 1 over the classes.

    A class without objects gets the mean weight of the others; if no class has any, all weigh 1.

    Args:
        counts: (C,) annotated objects of each class.
        power: in [0, 1]; 0: all weigh the same.

    Returns:
        (C,) float64.
    """
    if not 0 <= power <= 1:
        raise ValueError(f"power must be in [0, 1], not {power}: 0 is off, 1 is 1 / count.")
    counts = torch.as_tensor(counts, dtype=torch.float64)
    if not bool((counts >= 0).all()):
        raise ValueError(f"Counts of objects must be 0 or more, not {counts.min().item():g}.")
    seen = counts > 0
    if not bool(seen.any()):
        return torch.ones_like(counts)
    weights = torch.where(seen, counts, 1.0) ** -power
    weights = torch.where(seen, weights, weights[seen].mean())
    return weights / weights.mean()


def effective_weight(weights: torch.Tensor, counts: Counts) -> float:
    """The mean weight of an object: what the weights make of the size of the class loss.

    A mean of 1 over classes is not one over objects: with a long tail the loss shrinks.

    Args:
        weights, counts: (C,).
    """
    counts = torch.as_tensor(counts, dtype=torch.float64)
    total = float(counts.sum())
    return float((weights.double().cpu() * counts).sum()) / total if total else 1.0


def softmax_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    class_weights: Optional[torch.Tensor] = None,
    reduction: str = "sum",
) -> torch.Tensor:
    """Softmax cross entropy; each row counts with the weight of its class.

    Unlike the mean of torch's ``cross_entropy``, it is never divided by the sum of the weights.

    Args:
        logits: (M, C + 1), the background last.
        labels: (M,) class of each row; C is background, -1 ignored.
        class_weights: (C,), the background weighs 1; or (C + 1,). None: 1.
        reduction: "sum", or "none" for the loss of each row, (M,), which is 0 if it is ignored.
    """
    with torch.autocast(device_type=logits.device.type, enabled=False):
        logits = full_precision(logits)
        weight = None if class_weights is None else _with_background(class_weights, logits)
        return F.cross_entropy(logits, labels, weight, reduction=reduction, ignore_index=-1)


def _with_background(weights: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    columns = logits.shape[1]
    weights = weights.detach().to(logits)
    if len(weights) == columns - 1:
        weights = torch.cat([weights, weights.new_ones(1)])
    if weights.shape != (columns,):
        raise ValueError(
            f"class_weights must hold one value a class, ({columns - 1},), or one a column, "
            f"({columns},), not {tuple(weights.shape)}."
        )
    return weights
