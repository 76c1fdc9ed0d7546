"""The sigmoid losses of detectors with index labels.

BCE, focal, quality focal, varifocal, matchability-aware, EFL, EQFL and EQL v2.

For a logit z of class j, with p = sigmoid(z) and p_t = p for a positive and 1 - p for a negative,
the focal loss is -alpha_t w_j (1 - p_t)^gamma_j log p_t with gamma_j = gamma and w_j = 1; BCE has
gamma_j = 0. The equalized focal loss (Li et al., CVPR 2022) has gamma_j = gamma_b + scale (1 - g_j)
and w_j = gamma_j / gamma_b, where g_j in [0, 1] is the balance of the class's gradients so far.

Shapes: M rows (samples), C classes. Labels are 0..C-1, C for background and -1 for ignored rows,
which contribute nothing, whatever they hold; a label above C counts as background. All losses are
sums; half precision is computed in float32. How they are computed in one pass is described in
:mod:`d2ext.ops.sigmoid_kernel`.

``class_weights`` (C,) multiply the columns of a loss, positives and negatives alike; constants, see
:mod:`d2ext.ops.class_weights`. The gradients that the equalized losses return contain them.

Every finite logit has a finite loss and gradient. A NaN in a valid row makes the loss NaN. An
infinite logit on the wrong side makes it infinite or NaN, and so its gradient.
"""

from typing import Optional, Tuple

import torch
from torch.nn import functional as F

from .sigmoid_factors import (
    alphas,
    checked_weights,
    equalized_factors,
    require_quality,
    weighted,
)
from .sigmoid_kernel import check_shapes, compute_dtype, fused_sigmoid_loss, split_labels
from .sigmoid_rows import sigmoid_loss_per_row

__all__ = [
    "equalization_v2_loss",
    "equalization_v2_weights",
    "equalized_focal_loss",
    "equalized_quality_focal_loss",
    "matchability_aware_loss",
    "quality_focal_loss",
    "sigmoid_bce_loss",
    "sigmoid_focal_loss",
    "sigmoid_loss_per_row",
    "varifocal_loss",
]


def sigmoid_bce_loss(
    logits: torch.Tensor, labels: torch.Tensor, *, class_weights: Optional[torch.Tensor] = None
) -> torch.Tensor:
    """Binary cross entropy over all classes of all valid rows.

    Args:
        logits: (M, C).
        labels: (M,) class of each row; C is background, -1 ignored.
        class_weights: (C,) weight of each class; None: 1.

    Returns:
        The sum, a scalar.
    """
    pos, neg = weighted(class_weights, logits, 1.0, 1.0)
    return fused_sigmoid_loss(logits, labels, gamma=0.0, pos_weight=pos, neg_weight=neg)[0]


def sigmoid_focal_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    *,
    alpha: float = 0.25,
    gamma: float = 2.0,
    class_weights: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """Focal loss (Lin et al., 2017), summed.

    Args:
        logits: (M, C).
        labels: (M,) class of each row; C is background, -1 ignored.
        alpha: weight of positives, ``1 - alpha`` of negatives; below 0: no weights.
        gamma: focusing exponent.
        class_weights: (C,) weight of each class; None: 1.
    """
    pos, neg = weighted(class_weights, logits, *alphas(alpha))
    return fused_sigmoid_loss(logits, labels, gamma=float(gamma), pos_weight=pos, neg_weight=neg)[0]


def quality_focal_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    quality: torch.Tensor,
    *,
    gamma: float = 2.0,
    class_weights: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """Quality focal loss (Li et al., 2020), summed: a positive's target is its quality, not 1.

    Args:
        logits: (M, C).
        labels: (M,) class of each row; C is background, -1 ignored.
        quality: (M,) target in [0, 1] of the positives, usually the IoU of the predicted box.
            Values of other rows are not used. It gets no gradient.
        gamma: focusing exponent.
        class_weights: (C,) weight of each class; None: 1.
    """
    require_quality(quality)
    pos, neg = weighted(class_weights, logits, 1.0, 1.0)
    return fused_sigmoid_loss(
        logits, labels, quality=quality, gamma=float(gamma), pos_weight=pos, neg_weight=neg
    )[0]


def varifocal_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    quality: torch.Tensor,
    *,
    alpha: float = 0.75,
    gamma: float = 2.0,
    iou_weighted: bool = True,
    detach_weight: bool = False,
    class_weights: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """Varifocal loss (Zhang et al., CVPR 2021), summed: only negatives are focal.

    A positive has BCE with its quality as the target, times the quality; everything else
    ``alpha p^gamma BCE``. A positive of quality 0 is a negative, as in the paper.

    Args:
        logits: (M, C).
        labels: (M,) class of each row; C is background, -1 ignored.
        quality: (M,) target in [0, 1] of the positives; not read elsewhere, and without gradient.
        alpha: weight of negatives. Not the focal loss' alpha.
        gamma: focusing exponent of negatives.
        iou_weighted: whether positives weigh as much as their quality; else 1.
        detach_weight: p^gamma is a constant, as in RT-DETR and its heirs; the authors' has a
            gradient.
        class_weights: (C,) weight of each class; None: 1.
    """
    require_quality(quality)
    check_shapes(logits, labels, quality)
    labels = labels.masked_fill((labels >= 0) & (quality <= 0), logits.shape[1])
    weight = quality if iou_weighted else torch.ones_like(quality)
    return _negatives(logits, labels, alpha, gamma, detach_weight, class_weights) + _positives(
        logits, labels, quality, weight, class_weights
    )


def matchability_aware_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    quality: torch.Tensor,
    *,
    gamma: float = 1.5,
    alpha: float = 1.0,
    class_weights: Optional[torch.Tensor] = None,
) -> torch.Tensor:
    """Matchability-aware loss (MAL; Huang et al., DEIM, CVPR 2025), summed.

    A positive has BCE with the target ``quality^gamma`` and weight 1, so that a poor box still
    teaches; everything else ``alpha p^gamma BCE``, where p^gamma is a constant.

    Args:
        logits: (M, C).
        labels: (M,) class of each row; C is background, -1 ignored.
        quality: (M,) in [0, 1]; not read where the label is not a class, and without gradient.
        gamma: exponent of both.
        alpha: weight of negatives.
        class_weights: (C,) weight of each class; None: 1.
    """
    require_quality(quality)
    check_shapes(logits, labels, quality)
    target = quality.detach().to(compute_dtype(logits)).pow(gamma)
    return _negatives(logits, labels, alpha, gamma, True, class_weights) + _positives(
        logits, labels, target, torch.ones_like(target), class_weights
    )


def equalized_focal_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    grad_ratio: torch.Tensor,
    *,
    alpha: float = 0.25,
    gamma_b: float = 2.0,
    scale: float = 8.0,
    class_weights: Optional[torch.Tensor] = None,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Equalized focal loss, summed, and the gradients each class received.

    Args:
        logits: (M, C).
        labels: (M,) class of each row; C is background, -1 ignored.
        grad_ratio: (C,) g_j in [0, 1], accumulated positive over negative gradient; a constant.
        alpha: weight of positives, ``1 - alpha`` of negatives; below 0: no weights.
        gamma_b: focusing exponent of a balanced class (g_j = 1).
        scale: s, what is added to the exponent of a class that gets no positive gradient (g_j = 0).
        class_weights: (C,) weight of each class; None: 1.

    Returns:
        The sum (a scalar) and two (C,) tensors, not differentiable: sums of ``|d sum / d logits|``
        over the positive entries of each class and over its negative entries.
    """
    gamma, weight = equalized_factors(logits, grad_ratio, gamma_b, scale)
    pos, neg = weighted(class_weights, logits, *(alpha * weight for alpha in alphas(alpha)))
    return fused_sigmoid_loss(
        logits, labels, gamma=gamma, pos_weight=pos, neg_weight=neg, with_sums=True
    )


def equalized_quality_focal_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    quality: torch.Tensor,
    grad_ratio: torch.Tensor,
    *,
    gamma_b: float = 2.0,
    scale: float = 8.0,
    class_weights: Optional[torch.Tensor] = None,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Equalized quality focal loss, summed, and the gradients each class received.

    Arguments and results are those of :func:`quality_focal_loss` and :func:`equalized_focal_loss`.
    There is no alpha. A positive counts as positive in the sums whatever its quality.
    """
    gamma, weight = equalized_factors(logits, grad_ratio, gamma_b, scale)
    require_quality(quality)
    pos, neg = weighted(class_weights, logits, weight, weight)
    return fused_sigmoid_loss(
        logits,
        labels,
        quality=quality,
        gamma=gamma,
        pos_weight=pos,
        neg_weight=neg,
        with_sums=True,
    )


def equalization_v2_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    grad_ratio: torch.Tensor,
    *,
    gamma: float = 12.0,
    mu: float = 0.8,
    alpha: float = 4.0,
    class_weights: Optional[torch.Tensor] = None,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Equalization loss v2 (Tan et al., CVPR 2021), summed, and the gradients of each class.

    BCE in which the negatives of class j weigh f(g_j) = 1 / (1 + e^(-gamma (g_j - mu))) and its
    positives 1 + alpha (1 - f(g_j)).

    Args:
        logits: (M, C).
        labels: (M,) class of each row; C is background, -1 ignored.
        grad_ratio: (C,) g_j, accumulated positive over negative gradient; infinity for a class that
            is left unchanged. A constant.
        gamma, mu, alpha: those of the formulas.
        class_weights: (C,) weight of each class; None: 1.

    Returns:
        What :func:`equalized_focal_loss` returns.
    """
    pos, neg = equalization_v2_weights(grad_ratio, gamma=gamma, mu=mu, alpha=alpha)
    pos, neg = (w.to(device=logits.device, dtype=compute_dtype(logits)) for w in (pos, neg))
    pos_weight, neg_weight = weighted(class_weights, logits, pos, neg)
    return fused_sigmoid_loss(
        logits, labels, gamma=0.0, pos_weight=pos_weight, neg_weight=neg_weight, with_sums=True
    )


def equalization_v2_weights(
    grad_ratio: torch.Tensor, *, gamma: float = 12.0, mu: float = 0.8, alpha: float = 4.0
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Weights of the positives and of the negatives of each class in EQL v2, (C,) each."""
    if not gamma > 0:
        raise ValueError(
            f"The gamma of EQL v2 must be above 0, not {gamma}: it would not leave a class of "
            "infinite ratio as it is."
        )
    ratio = grad_ratio.detach().to(compute_dtype(grad_ratio))
    neg = torch.sigmoid(gamma * (ratio - mu))
    return 1.0 + alpha * (1.0 - neg), neg


def _negatives(
    logits: torch.Tensor,
    labels: torch.Tensor,
    alpha: float,
    gamma: float,
    detach: bool,
    class_weights: Optional[torch.Tensor],
) -> torch.Tensor:
    """The focal losses of all entries but those of positives, summed."""
    (weight,) = weighted(class_weights, logits, alpha)
    return fused_sigmoid_loss(
        logits,
        labels,
        gamma=float(gamma),
        pos_weight=0.0,
        neg_weight=weight,
        detach_modulation=detach,
    )[0]


def _positives(
    logits: torch.Tensor,
    labels: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor,
    class_weights: Optional[torch.Tensor],
) -> torch.Tensor:
    """BCE of the positives' own entries with soft targets, (M,) as their weights, summed."""
    if logits.numel() == 0:
        return logits.new_zeros((), dtype=compute_dtype(logits))
    with torch.autocast(device_type=logits.device.type, enabled=False):
        is_pos, _, column = split_labels(labels, logits.shape[1])
        own = logits.gather(1, column[:, None])[:, 0].to(compute_dtype(logits))
        # Whatever other rows hold, NaN included, has neither value nor gradient.
        own, target, weight = (
            x.to(own.dtype).masked_fill(~is_pos, 0.0)
            for x in (own, target.detach(), weight.detach())
        )
        if class_weights is not None:
            weight = weight * checked_weights(class_weights, logits)[column]
        return F.binary_cross_entropy_with_logits(own, target, weight, reduction="sum")
