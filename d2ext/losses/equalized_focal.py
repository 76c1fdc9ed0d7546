"""Equalized focal loss (Li et al., CVPR 2022) as a class loss that keeps its own statistics.

Shapes: M samples (anchors, points or proposals of all images), C classes. Labels are Detectron2's:
0..C-1 classes, C background, -1 ignored.
"""

from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

import torch

from d2ext.ops.sigmoid_factors import require_quality
from d2ext.ops.sigmoid_losses import (
    equalized_focal_loss,
    equalized_quality_focal_loss,
    sigmoid_loss_per_row,
)

from .gradient_balanced import GradientBalancedLoss

__all__ = ["EqualizedFocalLoss", "EqualizedQualityFocalLoss"]


class EqualizedFocalLoss(GradientBalancedLoss):
    """Focal loss whose focusing and weight follow each class's balance of gradients.

    A class j that has collected as much positive as negative gradient (g_j = 1) has the plain focal
    loss; one that collects next to none (g_j = 0) has the exponent ``gamma_b + scale``, and its
    loss is weighted by ``(gamma_b + scale) / gamma_b``.

    For what is collected, and when, see :class:`GradientBalancedLoss`. The derivative through g
    is deliberately not taken: g is a constant of the iteration.

    Args:
        num_classes: C, without background.
        alpha: weight of positives, ``1 - alpha`` of negatives; below 0: no weights. Not used with
            ``quality``.
        gamma_b: focusing exponent of a balanced class.
        scale: s, the most that is added to the exponent of an unbalanced class; 0 is the focal
            loss.
        loss_weight: factor of the loss, seen by the statistics.
        quality: the quality variant, EQFL, in which a positive's target is its IoU.
        kwargs: arguments of :class:`ClsLoss`.
    """

    def __init__(
        self,
        num_classes: int,
        alpha: float = 0.25,
        gamma_b: float = 2.0,
        scale: float = 8.0,
        loss_weight: float = 1.0,
        quality: bool = False,
        **kwargs: Any,
    ):
        super().__init__(num_classes, loss_weight=loss_weight, **kwargs)
        if gamma_b <= 0:
            raise ValueError(f"gamma_b must be above 0, not {gamma_b}; set 2.0 as the paper does.")
        if scale < 0:
            raise ValueError(f"scale must be 0 or more, not {scale}; 0 is the plain focal loss.")
        self.alpha = alpha
        self.gamma_b = gamma_b
        self.scale = scale
        self.needs_quality = quality

    weighs_classes = True
    plain_form = "a plain focal loss"

    def is_plain(self, ratio: torch.Tensor) -> torch.Tensor:
        return (ratio >= 1) & (self.scale > 0)

    def compute(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        quality: Optional[torch.Tensor],
        ratio: torch.Tensor,
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        factors: Dict[str, Any] = {
            "gamma_b": self.gamma_b,
            "scale": self.scale,
            "class_weights": self.weights_of_classes,
        }
        if self.needs_quality:
            aim = require_quality(quality)
            return equalized_quality_focal_loss(logits, labels, aim, ratio, **factors)
        return equalized_focal_loss(logits, labels, ratio, alpha=self.alpha, **factors)

    def compute_rows(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        quality: Optional[torch.Tensor],
        ratio: torch.Tensor,
    ) -> torch.Tensor:
        return sigmoid_loss_per_row(
            logits,
            labels,
            kind="eqfl" if self.needs_quality else "efl",
            alpha=self.alpha,
            grad_ratio=ratio,
            gamma_b=self.gamma_b,
            scale=self.scale,
            quality=quality,
            class_weights=self.weights_of_classes,
        )

    @property
    def gamma(self) -> torch.Tensor:
        """(C,) focusing exponents that the next forward pass uses."""
        return self.gamma_b + self.scale * (1.0 - self.pos_neg)

    def stats(self, groups: Optional[Mapping[str, Sequence[int]]] = None) -> Dict[str, float]:
        """As in :class:`GradientBalancedLoss`, and ``gamma_mean`` and ``gamma_<group>``."""
        result = super().stats(groups)
        gamma = self.gamma.detach().double().cpu()
        result["gamma_mean"] = float(gamma.mean())
        result.update(self._group_means("gamma", gamma, groups))
        return result

    def extra_repr(self) -> str:
        text = f"num_classes={self.num_classes}, gamma_b={self.gamma_b}, scale={self.scale}"
        text += "" if self.needs_quality else f", alpha={self.alpha}"
        return text + f", loss_weight={self.loss_weight}, quality={self.needs_quality}"


class EqualizedQualityFocalLoss(EqualizedFocalLoss):
    """:class:`EqualizedFocalLoss` in its quality variant."""

    def __init__(
        self,
        num_classes: int,
        alpha: float = -1.0,
        gamma_b: float = 2.0,
        scale: float = 8.0,
        loss_weight: float = 1.0,
        **kwargs: Any,
    ):
        super().__init__(num_classes, alpha, gamma_b, scale, loss_weight, quality=True, **kwargs)
