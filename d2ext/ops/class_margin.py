"""Effective class margins for long tails (ECM; Cho and Kraehenbuehl, ECCV 2022).

Shapes: M rows (proposals), C classes; logits have C + 1 columns, the background last, which are
C + 1 binary problems. Labels are 0..C-1 classes, C background and -1 ignored.
"""

from typing import Any, Dict, Sequence, Tuple, Union

import torch

from .precision import full_precision
from .sigmoid_kernel import compute_dtype
from .sigmoid_losses import sigmoid_bce_loss, sigmoid_loss_per_row

__all__ = ["class_margin_scores", "class_margins", "effective_class_margin_loss"]

Counts = Union[Sequence[float], torch.Tensor]


def class_margins(
    counts: Counts, *, background_ratio: float = 6.3313
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Margin and weight of each column, from how often the classes occur.

    With ``n`` the counts and ``background_ratio`` times their sum for the background, and
    ``a = (sum(n) - n_j) / n_j``, the margin is ``log(a) / 4`` and the weight ``a log(1 + 1 / a)``.

    Args:
        counts: (C,) images that show each class; 0 counts as 1.
        background_ratio: background over foreground rows of a training batch.

    Returns:
        two (C + 1,) tensors, float64.
    """
    counts = torch.as_tensor(counts, dtype=torch.float64).clamp(min=1)
    counts = torch.cat([counts, background_ratio * counts.sum().reshape(1)])
    rest = (counts.sum() - counts) / counts
    return rest.log() / 4, rest * torch.log1p(1 / rest)


def effective_class_margin_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    counts: Counts,
    *,
    background_ratio: float = 6.3313,
    reduction: str = "sum",
) -> torch.Tensor:
    """Binary cross entropy with margins and weights of the classes, over all C + 1 columns.

    ``p_j = sigmoid(2 z_j - margin_j)``: the authors' surrogate ``e^(z + d) / (e^(z + d) +
    e^(-z - d'))`` without its overflow. A background row is a positive of the last column.

    Args:
        logits: (M, C + 1).
        labels: (M,).
        counts, background_ratio: see :func:`class_margins`.
        reduction: "sum", or "none" for the loss of each row, which is 0 if it is ignored.

    Returns:
        a scalar, or (M,).
    """
    margin, weight = class_margins(counts, background_ratio=background_ratio)
    if logits.shape[1] != len(margin):
        raise ValueError(
            f"The class margins are for {len(margin) - 1} classes and a background, but the logits "
            f"have {logits.shape[1]} columns."
        )
    to: Dict[str, Any] = {"device": logits.device, "dtype": compute_dtype(logits)}
    with torch.autocast(device_type=logits.device.type, enabled=False):
        margin, weight = margin.to(**to), weight.to(**to)
        shifted = 2 * full_precision(logits) - margin
        labels = labels.clamp(max=len(margin) - 1)
        if reduction == "none":
            return sigmoid_loss_per_row(shifted, labels, kind="bce", class_weights=weight)
        return sigmoid_bce_loss(shifted, labels, class_weights=weight)


def class_margin_scores(logits: torch.Tensor) -> torch.Tensor:
    """Scores at inference, ``sigmoid(z_j) (1 - sigmoid(z_background))``: (M, C)."""
    logits = full_precision(logits)
    return logits[:, :-1].sigmoid() * (-logits[:, -1:]).sigmoid()
