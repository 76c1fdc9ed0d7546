"""Class losses whose positives aim at the quality of their boxes: varifocal and MAL.

Shapes: M samples, C classes.
"""

from typing import Any, Dict, Optional

import torch

from d2ext.ops.sigmoid_factors import require_quality
from d2ext.ops.sigmoid_losses import (
    matchability_aware_loss,
    sigmoid_loss_per_row,
    varifocal_loss,
)

from .cls_losses import ClsLoss
from .normalizers import Divisor

__all__ = ["MatchabilityAwareLoss", "VarifocalLoss"]


class VarifocalLoss(ClsLoss):
    """Varifocal loss (Zhang et al., CVPR 2021): negatives are focal, positives weigh their quality.

    Args:
        alpha, gamma, iou_weighted, detach_weight: see
            :func:`d2ext.ops.sigmoid_losses.varifocal_loss`.
        kwargs: arguments of the base.
    """

    needs_quality = True
    weighs_classes = True

    def __init__(
        self,
        alpha: float = 0.75,
        gamma: float = 2.0,
        iou_weighted: bool = True,
        detach_weight: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        _check(alpha, gamma)
        self.options: Dict[str, Any] = {
            "alpha": alpha,
            "gamma": gamma,
            "iou_weighted": iou_weighted,
            "detach_weight": detach_weight,
        }

    def forward(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        normalizer: Divisor = 1.0,
        quality: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        options = {**self.options, "class_weights": self.weights_of_classes}
        aim = require_quality(quality)
        return varifocal_loss(logits, labels, aim, **options) / normalizer

    def per_row(
        self, logits: torch.Tensor, labels: torch.Tensor, quality: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        options = {**self.options, "class_weights": self.weights_of_classes}
        return sigmoid_loss_per_row(logits, labels, kind="varifocal", quality=quality, **options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.options.items())


class MatchabilityAwareLoss(ClsLoss):
    """MAL (Huang et al., DEIM, CVPR 2025): poor boxes keep teaching. Made for DETR.

    Args:
        gamma, alpha: see :func:`d2ext.ops.sigmoid_losses.matchability_aware_loss`.
        kwargs: arguments of the base.
    """

    needs_quality = True
    weighs_classes = True

    def __init__(self, gamma: float = 1.5, alpha: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        _check(alpha, gamma)
        self.options: Dict[str, Any] = {"alpha": alpha, "gamma": gamma}

    def forward(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        normalizer: Divisor = 1.0,
        quality: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        options = {**self.options, "class_weights": self.weights_of_classes}
        aim = require_quality(quality)
        return matchability_aware_loss(logits, labels, aim, **options) / normalizer

    def per_row(
        self, logits: torch.Tensor, labels: torch.Tensor, quality: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        options = {**self.options, "class_weights": self.weights_of_classes}
        return sigmoid_loss_per_row(logits, labels, kind="mal", quality=quality, **options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.options.items())


def _check(alpha: float, gamma: float) -> None:
    for name, value in (("alpha", alpha), ("gamma", gamma)):
        if not value >= 0:
            raise ValueError(f"{name} must be 0 or more, not {value}.")
