"""Equalization loss v2 (Tan et al., CVPR 2021), for ROI heads.

Shapes: M proposals, C classes. Labels are Detectron2's: 0..C-1 classes, C background, -1 ignored.
"""

import math
from typing import Any, Dict, Optional, Tuple

import torch
from torch.nn import functional as F

from d2ext.ops.precision import full_precision
from d2ext.ops.sigmoid_losses import equalization_v2_loss, equalization_v2_weights

from .gradient_balanced import GradientBalancedLoss

__all__ = ["EQLv2Loss"]


class EQLv2Loss(GradientBalancedLoss):
    """BCE that weighs down the negatives, and up the positives, of classes short of positives.

    With ``g_j`` the ratio of positive to negative gradients so far, the negatives of class j weigh
    ``f(g_j) = 1 / (1 + e^(-gamma (g_j - mu)))`` and its positives ``1 + alpha (1 - f(g_j))``.
    ``g_j`` is not cut at 1 and starts at 100, so that the first iteration is plain BCE. The
    statistics are those of the sum, before the normalizer, as in the authors' code.

    Made for ROI heads: by its authors' account it fails in single-stage detectors, where EFL takes
    its place.

    Args:
        num_classes: C, without background.
        gamma, mu, alpha: those of the formulas.
        loss_weight: factor of the loss.
        objectness: whether the logits have a last column of their own for the background, which
            learns from all proposals with weight 1 and takes part in no statistics. :meth:`scores`
            then scales the classes by one minus its probability.
        kwargs: arguments of :class:`ClsLoss`.
    """

    collects_normalized = False
    weighs_classes = True
    plain_form = "plain binary cross entropy"

    def __init__(
        self,
        num_classes: int,
        gamma: float = 12.0,
        mu: float = 0.8,
        alpha: float = 4.0,
        loss_weight: float = 1.0,
        objectness: bool = False,
        **kwargs: Any,
    ):
        kwargs.update(loss_weight=loss_weight, initial_ratio=100.0, max_ratio=None)
        super().__init__(num_classes, **kwargs)
        self.gamma = gamma
        self.mu = mu
        self.alpha = alpha
        self.objectness = objectness

    def is_plain(self, ratio: torch.Tensor) -> torch.Tensor:
        _, neg = equalization_v2_weights(ratio, **self._factors())
        return neg > 0.999

    def compute(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        quality: Optional[torch.Tensor],
        ratio: torch.Tensor,
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        weights = self.weights_of_classes
        if weights is not None:
            weights = self._columns(weights, 1.0)
        total, pos, neg = equalization_v2_loss(
            logits, labels, self._columns(ratio), class_weights=weights, **self._factors()
        )
        return total, pos[: self.num_classes], neg[: self.num_classes]

    def compute_rows(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        quality: Optional[torch.Tensor],
        ratio: torch.Tensor,
    ) -> torch.Tensor:
        pos, neg = equalization_v2_weights(self._columns(ratio), **self._factors())
        z = full_precision(logits)
        width = z.shape[1]
        # One extra column, for the rows without a positive class.
        target = F.one_hot(labels.clamp(min=0), self.num_classes + 1)[:, :width].to(z.dtype)
        loss = F.binary_cross_entropy_with_logits(z, target, reduction="none")
        loss = loss * (pos * target + neg * (1 - target))
        if self.weights_of_classes is not None:
            loss = loss * self._columns(self.weights_of_classes, 1.0)
        return loss.sum(dim=1).masked_fill(labels < 0, 0.0)

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """Scores of the C classes for inference, (M, C), from logits (M, C) or (M, C + 1)."""
        p = logits.sigmoid()
        if not self.objectness:
            return p
        return p[:, :-1] * (1 - p[:, -1:])

    def extra_repr(self) -> str:
        return (
            f"num_classes={self.num_classes}, gamma={self.gamma}, mu={self.mu}, "
            f"alpha={self.alpha}, objectness={self.objectness}"
        )

    def _factors(self) -> Dict[str, float]:
        return {"gamma": self.gamma, "mu": self.mu, "alpha": self.alpha}

    def _columns(self, values: torch.Tensor, objectness: float = math.inf) -> torch.Tensor:
        """A value of every column; an infinite ratio leaves the objectness unchanged."""
        if not self.objectness:
            return values
        return torch.cat([values, values.new_full((1,), objectness)])
