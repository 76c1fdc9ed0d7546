"""Class losses: one class each, chosen by name.

Shapes: M samples (anchors, points or proposals of all images), C classes, K of the samples
positive. Labels are Detectron2's: 0..C-1 classes, C background, -1 ignored.
"""

from typing import Optional, Union

import torch
from torch import nn
from torch.nn import functional as F

from d2ext.ops.sigmoid_losses import (
    quality_focal_loss,
    sigmoid_bce_loss,
    sigmoid_focal_loss,
    sigmoid_loss_per_row,
)

__all__ = ["BCELoss", "ClsLoss", "FocalLoss", "QualityFocalLoss", "SoftmaxLoss"]


class ClsLoss(nn.Module):
    """Base class of class losses.

    Attributes:
        sigmoid: True if a sample's classes are independent (logits (M, C)), False if they are one
            softmax with the background last (logits (M, C + 1)).
        needs_quality: True if ``forward`` wants the IoU of each positive.
        objectness: True for independent classes beside a column of its own for the background
            (logits (M, C + 1)); the loss then defines ``scores``, (M, C) for inference.
        counts_first: True if ``forward`` takes the batch into its statistics before it computes the
            loss: single samples are then to be asked for after it, and otherwise before it, so that
            both see the same statistics.
        place: "dense", "rpn" or "roi" if it was built from a config, else "".
    """

    place = ""
    sigmoid = True
    needs_quality = False
    objectness = False
    counts_first = False

    def forward(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        normalizer: Union[float, torch.Tensor] = 1.0,
        quality: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """Sum over all valid samples, divided by ``normalizer``: a scalar."""
        raise NotImplementedError(f"{type(self).__name__} must define forward.")

    def per_row(
        self, logits: torch.Tensor, labels: torch.Tensor, quality: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        """Loss of each of a few samples, summed over classes: (K,), differentiable."""
        raise NotImplementedError(
            f"{type(self).__name__} has no per-sample form; choose another class loss or turn the "
            "coupling off."
        )


class FocalLoss(ClsLoss):
    """Sigmoid focal loss (Lin et al., 2017).

    Args:
        alpha: weight of positives, ``1 - alpha`` of negatives; below 0: no weights.
        gamma: focusing exponent.
    """

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0):
        super().__init__()
        if gamma < 0:
            raise ValueError(f"The gamma of the focal loss must be 0 or more, not {gamma}.")
        self.alpha = alpha
        self.gamma = gamma

    def forward(self, logits, labels, normalizer=1.0, quality=None):
        return sigmoid_focal_loss(logits, labels, alpha=self.alpha, gamma=self.gamma) / normalizer

    def per_row(self, logits, labels, quality=None):
        return sigmoid_loss_per_row(
            logits, labels, kind="focal", alpha=self.alpha, gamma=self.gamma
        )

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}, gamma={self.gamma}"


class BCELoss(ClsLoss):
    """Plain sigmoid cross entropy over all classes of every valid sample."""

    def forward(self, logits, labels, normalizer=1.0, quality=None):
        return sigmoid_bce_loss(logits, labels) / normalizer

    def per_row(self, logits, labels, quality=None):
        return sigmoid_loss_per_row(logits, labels, kind="bce")


class QualityFocalLoss(ClsLoss):
    """Quality focal loss (Li et al., 2020): a positive's target is its IoU instead of 1."""

    needs_quality = True

    def __init__(self, gamma: float = 2.0):
        super().__init__()
        if gamma < 0:
            raise ValueError(f"The gamma of the focal loss must be 0 or more, not {gamma}.")
        self.gamma = gamma

    def forward(self, logits, labels, normalizer=1.0, quality=None):
        return quality_focal_loss(logits, labels, quality, gamma=self.gamma) / normalizer

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}"


class SoftmaxLoss(ClsLoss):
    """Softmax cross entropy over C classes and the background, which is the last column."""

    sigmoid = False

    def forward(self, logits, labels, normalizer=1.0, quality=None):
        return F.cross_entropy(logits, labels, reduction="sum", ignore_index=-1) / normalizer

    def per_row(self, logits, labels, quality=None):
        return F.cross_entropy(logits, labels, reduction="none", ignore_index=-1)
