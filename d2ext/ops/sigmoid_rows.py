"""The sigmoid losses of single rows, in plain differentiable operations.

Shapes: M rows (samples), C classes. Labels are 0..C-1, C for background and -1 for ignored rows.
"""

from typing import Optional, Tuple

import torch
from torch.nn import functional as F

from .sigmoid_factors import alphas, equalized_factors, require_quality, weighted
from .sigmoid_kernel import Factor, check_shapes, compute_dtype, split_labels

__all__ = ["sigmoid_loss_per_row"]

_KINDS = ("bce", "focal", "qfl", "varifocal", "mal", "efl", "eqfl")


def sigmoid_loss_per_row(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    kind: str = "focal",
    alpha: float = 0.25,
    gamma: float = 2.0,
    grad_ratio: Optional[torch.Tensor] = None,
    gamma_b: float = 2.0,
    scale: float = 8.0,
    quality: Optional[torch.Tensor] = None,
    class_weights: Optional[torch.Tensor] = None,
    iou_weighted: bool = True,
    detach_weight: bool = False,
) -> torch.Tensor:
    """Loss of each row summed over its classes, in plain differentiable operations.

    Meant for a few rows, such as the positives that a coupling of losses looks at: it keeps several
    (M, C) tensors for the backward pass. Rows sum to what the fused functions return.

    Args:
        logits: (M, C).
        labels: (M,) class of each row; C is background, -1 ignored (its loss is 0).
        kind: "bce", "focal", "qfl", "varifocal", "mal", "efl" or "eqfl".
        alpha, gamma, grad_ratio, gamma_b, scale, quality, class_weights: those of the function of
            that kind.
        iou_weighted, detach_weight: those of :func:`d2ext.ops.sigmoid_losses.varifocal_loss`.

    Returns:
        (M,) losses, in float32 or float64.
    """
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(_KINDS)}, not '{kind}'.")
    soft = kind in ("qfl", "varifocal", "mal", "eqfl")
    if soft:
        require_quality(quality)
    check_shapes(logits, labels, quality if soft else None)
    if kind == "varifocal" and quality is not None:
        labels = labels.masked_fill((labels >= 0) & (quality <= 0), logits.shape[1])
    with torch.autocast(device_type=logits.device.type, enabled=False):
        is_pos, ignored, column = split_labels(labels, logits.shape[1])
        # Not only the result is masked: its zero gradient times NaN would be NaN.
        z = logits.to(compute_dtype(logits)).masked_fill(ignored[:, None], 0.0)
        if z.shape[1] == 0:
            return z.sum(dim=1)
        power, weight = _power_and_weight(kind, logits, gamma, grad_ratio, gamma_b, scale)
        (weight,) = weighted(class_weights, logits, weight)
        power_own, weight_own = (f[column] if torch.is_tensor(f) else f for f in (power, weight))
        alpha_pos, alpha_neg = alphas(alpha if kind in ("focal", "efl") else -1.0)
        if kind in ("varifocal", "mal"):
            alpha_neg = alpha

        modulation = torch.exp(power * F.logsigmoid(z))
        if kind == "mal" or (kind == "varifocal" and detach_weight):
            modulation = modulation.detach()
        terms = alpha_neg * weight * modulation * -F.logsigmoid(-z)
        own = z.gather(1, column[:, None])[:, 0]
        if quality is not None and soft:
            target = quality.detach().to(z.dtype).masked_fill(~is_pos, 0.0)
            target = target.pow(gamma) if kind == "mal" else target
            lever = kind if kind != "varifocal" or iou_weighted else ""
            positive = weight_own * _soft_positives(lever, own, target, power_own)
        else:
            positive = alpha_pos * weight_own * torch.exp(power_own * F.logsigmoid(-own))
            positive = positive * -F.logsigmoid(own)
        kept = terms.gather(1, column[:, None])[:, 0]
        terms = terms.scatter(1, column[:, None], torch.where(is_pos, positive, kept)[:, None])
        return terms.sum(dim=1).masked_fill(ignored, 0.0)


def _power_and_weight(
    kind: str,
    logits: torch.Tensor,
    gamma: float,
    grad_ratio: Optional[torch.Tensor],
    gamma_b: float,
    scale: float,
) -> Tuple[Factor, Factor]:
    """The focusing exponent and the weight of classes."""
    if kind not in ("efl", "eqfl"):
        return 0.0 if kind == "bce" else gamma, 1.0
    if grad_ratio is None:
        raise ValueError(f"kind '{kind}' needs grad_ratio, the (C,) ratios of gradients.")
    return equalized_factors(logits, grad_ratio, gamma_b, scale)


def _soft_positives(
    kind: str, own: torch.Tensor, target: torch.Tensor, power: Factor
) -> torch.Tensor:
    """(M,) losses of logits whose target is soft; "qfl", "eqfl" and "varifocal" weigh them."""
    bce = F.binary_cross_entropy_with_logits(own, target, reduction="none")
    if kind in ("qfl", "eqfl"):
        return bce * _power((target - own.sigmoid()).abs(), power)
    return bce * target if kind == "varifocal" else bce


def _power(size: torch.Tensor, exponent: Factor) -> torch.Tensor:
    """``size ** exponent`` with the gradient 0 at 0, where it is infinite for exponents below 1."""
    hit = size == 0
    if isinstance(exponent, (int, float)) and exponent == 0:
        return torch.ones_like(size)
    return size.masked_fill(hit, 1.0).pow(exponent).masked_fill(hit, 0.0)
