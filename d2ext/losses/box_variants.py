"""Later box losses: NWD, MPDIoU, log IoU, Inner-IoU, Wise-IoU and GHM-R.

Shapes: K positive samples. Each returns (K,) but GHM-R, which returns (K, 4).
"""

from typing import Any, Dict, Optional

import torch

from d2ext.ops import box_variants as ops
from d2ext.ops.boxes import iou_loss
from d2ext.ops.reduce import reduce_sum

from .box_losses import BoxLoss, OverlapLoss
from .counted import Counted, Levels, running_counts
from .positives import Positives

__all__ = [
    "GHMRLoss",
    "InnerIoULoss",
    "LegacyLogIoULoss",
    "LogIoULoss",
    "MPDIoULoss",
    "NWDLoss",
    "WiseIoULoss",
]


class NWDLoss(BoxLoss):
    """Normalised Gaussian Wasserstein distance (Wang et al., 2021), for tiny objects.

    Args:
        constant: mean size of the data set's objects in pixels of the network's input.
    """

    def __init__(self, constant: float = 12.8):
        super().__init__()
        _above_0(constant=constant)
        self.constant = constant

    def forward(self, positives: Positives) -> torch.Tensor:
        return ops.nwd_loss(positives.decoded, positives.boxes, constant=self.constant)

    def extra_repr(self) -> str:
        return f"constant={self.constant}"


class MPDIoULoss(BoxLoss):
    """IoU and the distances of two corners, in diagonals of the input image (Ma and Xu, 2023)."""

    overlap = True
    needs_image_sizes = True

    def forward(self, positives: Positives) -> torch.Tensor:
        if positives.image_sizes is None:
            raise ValueError(
                "The MPDIoU loss needs the sizes of the images; pass image_sizes to Positives, or "
                "choose another box loss."
            )
        return ops.mpdiou_loss(positives.decoded, positives.boxes, positives.image_sizes)


class LogIoULoss(OverlapLoss):
    """``-log(IoU)`` (Yu et al., UnitBox, 2016)."""

    function = staticmethod(ops.log_iou_loss)


class LegacyLogIoULoss(OverlapLoss):
    """``-log((I + 1) / (U + 1))`` in pixels, the IoU loss of the first FCOS."""

    function = staticmethod(ops.legacy_log_iou_loss)


class InnerIoULoss(BoxLoss):
    """A loss of overlaps with the IoU of scaled boxes in it (Zhang et al., 2023).

    Args:
        ratio: of the scaled boxes' sides: below 1 where overlaps are high, above for tiny objects.
        base: "iou", "giou", "diou" or "ciou". With "iou" nothing pulls disjoint boxes together.
    """

    overlap = True

    def __init__(self, ratio: float = 0.7, base: str = "ciou"):
        super().__init__()
        _above_0(ratio=ratio)
        self.ratio = ratio
        self.base = base

    def forward(self, positives: Positives) -> torch.Tensor:
        boxes = positives.decoded, positives.boxes
        return ops.inner_iou_loss(*boxes, ratio=self.ratio, base=self.base)

    def extra_repr(self) -> str:
        return f"ratio={self.ratio}, base={self.base}"


class WiseIoULoss(Counted, BoxLoss):
    """Wise-IoU (Tong et al., 2023), versions 1 and 3.

    Version 3 keeps the running mean of ``1 - IoU`` over all ranks in the buffer ``mean``. It moves
    before it is used, in training with gradients; every rank must run as many such passes as the
    others. Its factor is about 1 on average only by luck.

    Args:
        version: 1, without the factor of the running mean, or 3.
        alpha, delta: see :func:`d2ext.ops.box_variants.wise_iou_loss`.
        momentum: share of the new in the mean.
    """

    overlap = True
    mean: torch.Tensor

    def __init__(
        self, version: int = 3, alpha: float = 1.9, delta: float = 3.0, momentum: float = 1e-4
    ):
        super().__init__()
        if version not in (1, 3):
            raise ValueError(f"version must be 1 or 3, not {version}.")
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum must be above 0 and at most 1, not {momentum}.")
        _above_0(alpha=alpha, delta=delta)
        self.version = version
        self.alpha = alpha
        self.delta = delta
        self.momentum = momentum
        if version == 3:
            self.register_buffer("mean", torch.ones((), dtype=torch.float64))

    def forward(self, positives: Positives) -> torch.Tensor:
        boxes = positives.decoded, positives.boxes
        if self.version == 1:
            return ops.wise_iou_loss(*boxes)
        if self.counts_now():
            self._move(*boxes)
        return ops.wise_iou_loss(*boxes, mean=self.mean, alpha=self.alpha, delta=self.delta)

    @torch.no_grad()
    def _move(self, predicted: torch.Tensor, true: torch.Tensor) -> None:
        loss = iou_loss(predicted, true).double()
        total, count = reduce_sum(torch.stack([loss.sum(), torch.ones_like(loss).sum()]))
        now = total / count.clamp(min=1)
        moved = (1 - self.momentum) * self.mean + self.momentum * now
        self.mean.copy_(torch.where(count > 0, moved, self.mean))

    def extra_repr(self) -> str:
        return f"version={self.version}, alpha={self.alpha}, delta={self.delta}"


class GHMRLoss(Counted, BoxLoss):
    """GHM-R (Li et al., AAAI 2019): deltas with gradients of a common size weigh less.

    Counts are those of all ranks. Its sum over the numbers of the boxes is about 4 K whatever the
    deltas; the authors divide by that and weigh 10, where here the normaliser is K: weigh 2.5.

    With a momentum the buffer ``count`` (bins,) is the running mean of the regions' counts; a
    region that is empty now keeps its own. It starts at 0, so that the first weights are
    ``1 / (1 - momentum)`` times too large, as in the authors' code.

    With ``per_level``, as mmdetection applies it, the regions of each level are counted on their
    own, the running mean moves from level to level, and their losses add up to about 4 K each.

    Args:
        mu: where the loss turns from quadratic to linear.
        bins: regions of the gradient's size.
        momentum: how much of the old counts stays in each step; 0: none.
        per_level: count level by level, by ``positives.levels``.
    """

    count: torch.Tensor

    def __init__(
        self, mu: float = 0.02, bins: int = 10, momentum: float = 0.0, per_level: bool = False
    ):
        super().__init__()
        _above_0(mu=mu)
        if bins < 1 or not 0 <= momentum < 1:
            raise ValueError(
                f"bins must be 1 or more and momentum in [0, 1), not {bins} and {momentum}."
            )
        self.mu = mu
        self.bins = bins
        self.momentum = momentum
        self.needs_levels = per_level
        # What a repetition of the last counted pass must see.
        self._weight_read: Optional[torch.Tensor] = None
        if momentum:
            self.register_buffer("count", torch.zeros(bins, dtype=torch.float64))

    def forward(self, positives: Positives) -> torch.Tensor:
        deltas, targets = positives.deltas, positives.target_deltas
        levels = positives.levels if self.needs_levels else None
        levels = levels or Levels(torch.zeros_like(positives.index), 1)
        options: Dict[str, Any] = {
            "mu": self.mu, "bins": self.bins, "group": levels.of, "num_groups": levels.number
        }  # fmt: skip
        now = ops.ghm_r_bins(deltas, targets, **options)[1]
        if self.training and torch.is_grad_enabled():
            # A validation pass reduces nothing: ranks may have unequal numbers of those.
            now = reduce_sum(now)
        if self.is_repetition():
            weight = self._weight_read
        else:
            weight = self._weight(now.view(levels.number, -1), counts=self.counts_now())
        return ops.ghm_r_loss(deltas, targets, weight=weight, **options)

    @torch.no_grad()
    def _weight(self, now: torch.Tensor, counts: bool) -> torch.Tensor:
        """(L bins,), of counts (L, bins)."""
        count = now
        if self.momentum:
            count, last = running_counts(self.count, now, self.momentum)
            if counts:
                self.count.copy_(last)
        occupied = now > 0
        regions = occupied.sum(dim=1, keepdim=True)
        weight = torch.where(occupied, now.sum() / (count * regions).clamp(min=1e-9), 0.0)
        if counts:
            self._weight_read = weight.flatten()
        return weight.flatten()

    def extra_repr(self) -> str:
        text = f"mu={self.mu}, bins={self.bins}, momentum={self.momentum}"
        return f"{text}, per_level={self.needs_levels}"


def _above_0(**values: float) -> None:
    for name, value in values.items():
        if not value > 0:
            raise ValueError(f"{name} must be above 0, not {value}.")
