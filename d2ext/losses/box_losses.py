"""Box losses: one class each, chosen by name.

Shapes: K positive samples.
"""

from typing import Callable

import torch
from torch import nn

from d2ext.ops import boxes as ops

from .positives import Positives

__all__ = [
    "BoxLoss",
    "CIoULoss",
    "DIoULoss",
    "GIoULoss",
    "IoULoss",
    "OverlapLoss",
    "SmoothL1Loss",
    "SquaredIoULoss",
]


class BoxLoss(nn.Module):
    """Base class of box losses.

    A box loss sees the positive samples and returns one number for each, (K,), or one for each
    coordinate, (K, 4). It neither sums nor normalises: couplings need the single values.

    Attributes:
        overlap: True if it measures how far the boxes overlap, so that another such loss beside it
            would count the overlap twice.
        needs_image_sizes: True if it reads ``positives.image_sizes``.
        needs_levels: True if it reads ``positives.levels``.
    """

    overlap = False
    needs_image_sizes = False
    needs_levels = False

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


class OverlapLoss(BoxLoss):
    """Base of losses of the decoded and the true boxes by how they overlap. Returns (K,).

    Attributes:
        function: of two (K, 4) tensors of boxes, predicted and true.
    """

    overlap = True
    function: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

    def forward(self, positives: Positives) -> torch.Tensor:
        return type(self).function(positives.decoded, positives.boxes)


class IoULoss(OverlapLoss):
    """``1 - IoU``."""

    function = staticmethod(ops.iou_loss)


class SquaredIoULoss(BoxLoss):
    """``1 - IoU^2``, as YOLOX has it."""

    overlap = True

    def forward(self, positives: Positives) -> torch.Tensor:
        return 1 - positives.iou.square()


class GIoULoss(OverlapLoss):
    """Generalised IoU loss."""

    function = staticmethod(ops.giou_loss)


class DIoULoss(OverlapLoss):
    """Distance-IoU loss."""

    function = staticmethod(ops.diou_loss)


class CIoULoss(OverlapLoss):
    """Complete-IoU loss."""

    function = staticmethod(ops.ciou_loss)
