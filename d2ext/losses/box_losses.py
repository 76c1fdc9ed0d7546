"""Box losses: one class each, chosen by name.

Shapes: K positive samples.
"""

import torch
from torch import nn

from d2ext.ops import boxes as ops

from .positives import Positives

__all__ = ["BoxLoss", "CIoULoss", "DIoULoss", "GIoULoss", "IoULoss", "SmoothL1Loss"]


class BoxLoss(nn.Module):
    """Base class of box losses.

    A box loss sees the positive samples and returns one number for each, (K,), or one for each
    coordinate, (K, 4). It neither sums nor normalises: couplings need the single values.

    Attributes:
        overlap: True if it measures how far the boxes overlap, so that another such loss beside it
            would count the overlap twice.
    """

    overlap = False

    def forward(self, positives: Positives) -> torch.Tensor:
        raise NotImplementedError(f"{type(self).__name__} must define forward(positives).")


class SmoothL1Loss(BoxLoss):
    """Smooth L1 between predicted and target deltas; L1 for ``beta`` 0. Returns (K, 4)."""

    def __init__(self, beta: float = 0.0):
        super().__init__()
        if beta < 0:
            raise ValueError(f"The beta of smooth L1 must be 0 (plain L1) or more, not {beta}.")
        self.beta = beta

    def forward(self, positives: Positives) -> torch.Tensor:
        return ops.smooth_l1_loss(positives.deltas, positives.target_deltas, self.beta)

    def extra_repr(self) -> str:
        return f"beta={self.beta}"


class IoULoss(BoxLoss):
    """``1 - IoU`` of decoded and true boxes. Returns (K,)."""

    overlap = True

    def forward(self, positives: Positives) -> torch.Tensor:
        return ops.iou_loss(positives.decoded, positives.boxes)


class GIoULoss(BoxLoss):
    """Generalised IoU loss of decoded and true boxes. Returns (K,)."""

    overlap = True

    def forward(self, positives: Positives) -> torch.Tensor:
        return ops.giou_loss(positives.decoded, positives.boxes)


class DIoULoss(BoxLoss):
    """Distance-IoU loss of decoded and true boxes. Returns (K,)."""

    overlap = True

    def forward(self, positives: Positives) -> torch.Tensor:
        return ops.diou_loss(positives.decoded, positives.boxes)


class CIoULoss(BoxLoss):
    """Complete-IoU loss of decoded and true boxes. Returns (K,)."""

    overlap = True

    def forward(self, positives: Positives) -> torch.Tensor:
        return ops.ciou_loss(positives.decoded, positives.boxes)
