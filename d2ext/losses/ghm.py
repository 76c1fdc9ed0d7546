"""Gradient-harmonised class loss, GHM-C (Li et al., AAAI 2019): a soft form of sampling.

Shapes: M samples of all images, C classes, B unit regions of the gradient's size.
"""

from typing import Any, Optional

import torch
from torch.nn import functional as F

from d2ext.ops.precision import full_precision
from d2ext.ops.reduce import reduce_sum, world_size

from .counted import CountedLoss, Levels, running_counts
from .normalizers import Divisor

__all__ = ["GHMCLoss"]


class GHMCLoss(CountedLoss):
    """Binary cross entropy, each of its terms divided by how many have a gradient of its size.

    With ``g = |p - target|`` in one of B equal regions of [0, 1], and ``R`` the terms in that
    region, the loss is ``1/B sum BCE / R``: the paper's ``1/N sum BCE N / GD(g)`` with the gradient
    density ``GD = R B``. The number of positives does not enter, so ``normalizer`` is not used.

    The authors' code divides by the number of regions that are not empty instead of by B, which
    matters while the scores are all near their prior; that is the default here.

    ``count`` (B,), a buffer, is R over all ranks, so that all have the same and several processes
    compute what one does with all their images. The authors' code keeps one a rank. Every rank must
    run as many training passes as the others, because each ends in one all-reduce of B numbers.

    mmdetection applies the loss to each level of a pyramid on its own: with ``per_level`` R is of
    the level, the loss the sum over levels, and ``count`` moves with each, from 0.
    """

    count: torch.Tensor

    counts_first = True
    weighs_classes = True

    def __init__(
        self,
        bins: int = 30,
        momentum: float = 0.75,
        divide_by: str = "occupied",
        per_level: bool = False,
        **kwargs: Any,
    ):
        """
        Args:
            bins: B.
            momentum: how much of the old R stays in each step; 0: R of this step.
            divide_by: "occupied", the number of regions with terms, or "all", B.
            per_level: count level by level.
            kwargs: arguments of :class:`ClsLoss`.
        """
        super().__init__(**kwargs)
        if bins < 1 or not 0 <= momentum < 1:
            raise ValueError(
                f"bins must be 1 or more and momentum in [0, 1), not {bins} and {momentum}."
            )
        if divide_by not in ("occupied", "all"):
            raise ValueError(f"divide_by must be occupied or all, not '{divide_by}'.")
        self.bins = bins
        self.momentum = momentum
        self.divide_by = divide_by
        self.needs_levels = per_level
        if momentum:
            # float64: a region has 1e7 terms and more, which float32 cannot count one by one.
            self.register_buffer("count", torch.zeros(bins, dtype=torch.float64))
        # The weights of the last counted pass: what a repetition of that pass must see.
        self._weight_read: Optional[torch.Tensor] = None

    def forward(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        normalizer: Divisor = 1.0,
        quality: Optional[torch.Tensor] = None,
        levels: Optional[Levels] = None,
    ) -> torch.Tensor:
        """
        Args:
            logits: (M, C).
            labels: (M,); C background, -1 ignored.
            normalizer, quality: not used.
            levels: with ``per_level``, of each sample; None: all are of one.
        """
        with torch.autocast(device_type=logits.device.type, enabled=False):
            logits = full_precision(logits)
            num_classes = logits.shape[1]
            column = torch.where(labels < 0, num_classes, labels)[:, None]
            target = logits.new_zeros(len(logits), num_classes + 1).scatter_(1, column, 1.0)
            target = target[:, :num_classes]
            region = self._regions(logits.detach(), target, labels)
            if levels is not None:
                region += levels.of[:, None] * (self.bins + 1)
            if self.is_repetition() and self._weight_read is not None:
                weight = self._weight_read
            else:
                number = 1 if levels is None else levels.number
                weight = self._weights(region, number, learning=self.counts_now())
            weight = weight.to(logits.dtype)[region]
            if self.weights_of_classes is not None:
                weight = weight * self.weights_of_classes
            return F.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum")

    def _regions(
        self, logits: torch.Tensor, target: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """(M, C) region of each term; B for those that do not count."""
        size = (logits.sigmoid() - target).abs_().mul_(self.bins).clamp_(max=self.bins - 1)
        # Ignored samples and NaN, which no integer can express, go to a region that is not read.
        region = size.nan_to_num_(nan=self.bins).long()
        return region.masked_fill_((labels < 0)[:, None], self.bins)

    @torch.no_grad()
    def _weights(self, region: torch.Tensor, num_levels: int, learning: bool) -> torch.Tensor:
        """(L (B + 1),) weight of a term in each region; 0 for those that do not count."""
        now = torch.bincount(region.flatten(), minlength=num_levels * (self.bins + 1))
        now = now.view(num_levels, -1)[:, : self.bins].double()
        # A validation pass reduces nothing: ranks may have unequal numbers of those.
        now = reduce_sum(now) if learning else now * world_size()
        occupied = now > 0
        count = self._moving(now, occupied, learning)
        regions: Any = self.bins
        if self.divide_by == "occupied":
            regions = occupied.sum(dim=1, keepdim=True).clamp(min=1)
        # The gradients of the ranks are averaged, the loss is a sum over the terms of all.
        weight = torch.where(occupied, world_size() / (count * regions), 0.0)
        weight = F.pad(weight, (0, 1)).flatten()
        if learning:
            self._weight_read = weight
        return weight

    def _moving(self, now: torch.Tensor, occupied: torch.Tensor, learning: bool) -> torch.Tensor:
        """(L, B) moving average of the counts; regions that are empty now keep theirs.

        A region's first count begins its average. The authors' code, and ours level by level,
        begins at 0, so that its first losses are 1 / (1 - momentum) times too large.
        """
        if not self.momentum:
            return now
        if self.needs_levels:
            average, last = running_counts(self.count, now, self.momentum)
            if learning:
                self.count.copy_(last)
            return average
        average = torch.where(
            self.count > 0, self.momentum * self.count + (1 - self.momentum) * now, now
        )
        average = torch.where(occupied, average, self.count)
        if learning:
            self.count.copy_(average[0])
        return average

    def extra_repr(self) -> str:
        text = f"bins={self.bins}, momentum={self.momentum}, divide_by={self.divide_by}"
        return f"{text}, per_level={self.needs_levels}"
