"""Gradient-harmonised class loss, GHM-C (Li et al., AAAI 2019): a soft form of sampling.

Shapes: M samples of all images, C classes, B unit regions of the gradient's size.
"""

from typing import Optional, Union

import torch
from torch.nn import functional as F

from d2ext.ops.precision import full_precision
from d2ext.ops.reduce import reduce_sum, world_size

from .cls_losses import ClsLoss

__all__ = ["GHMCLoss"]


class GHMCLoss(ClsLoss):
    """Binary cross entropy, each of its terms divided by how many have a gradient of its size.

    With ``g = |p - target|`` in one of B equal regions of [0, 1], and ``R`` the terms in that
    region, the loss is ``1/B sum BCE / R``: the paper's ``1/N sum BCE N / GD(g)`` with the gradient
    density ``GD = R B``. The number of positives does not enter, so ``normalizer`` is not used.

    The authors' code divides by the number of regions that are not empty instead of by B, which
    matters while the scores are all near their prior; that is the default here.

    ``count`` (B,), a buffer, is R over all ranks, so that all have the same and several processes
    compute what one does with all their images. The authors' code keeps one a rank. Every rank must
    run as many training passes as the others, because each ends in one all-reduce of B numbers.
    """

    def __init__(self, bins: int = 30, momentum: float = 0.75, divide_by: str = "occupied"):
        """
        Args:
            bins: B.
            momentum: how much of the old R stays in each step; 0: R of this step.
            divide_by: "occupied", the number of regions with terms, or "all", B.
        """
        super().__init__()
        if bins < 1 or not 0 <= momentum < 1:
            raise ValueError(
                f"bins must be 1 or more and momentum in [0, 1), not {bins} and {momentum}."
            )
        if divide_by not in ("occupied", "all"):
            raise ValueError(f"divide_by must be occupied or all, not '{divide_by}'.")
        self.bins = bins
        self.momentum = momentum
        self.divide_by = divide_by
        if momentum:
            # float64: a region has 1e7 terms and more, which float32 cannot count one by one.
            self.register_buffer("count", torch.zeros(bins, dtype=torch.float64))

    def forward(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        normalizer: Union[float, torch.Tensor] = 1.0,
        quality: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """
        Args:
            logits: (M, C).
            labels: (M,); C background, -1 ignored.
            normalizer, quality: not used.
        """
        with torch.autocast(device_type=logits.device.type, enabled=False):
            logits = full_precision(logits)
            num_classes = logits.shape[1]
            column = torch.where(labels < 0, num_classes, labels)[:, None]
            target = logits.new_zeros(len(logits), num_classes + 1).scatter_(1, column, 1.0)
            target = target[:, :num_classes]
            # A validation pass computes losses too, but must not move the counts.
            learning = self.training and torch.is_grad_enabled()
            weight = self._weights(logits.detach(), target, labels, learning)
            return F.binary_cross_entropy_with_logits(logits, target, weight, reduction="sum")

    @torch.no_grad()
    def _weights(
        self, logits: torch.Tensor, target: torch.Tensor, labels: torch.Tensor, learning: bool
    ) -> torch.Tensor:
        """(M, C) weight of each term; 0 for ignored samples."""
        size = (logits.sigmoid() - target).abs_().mul_(self.bins).clamp_(max=self.bins - 1)
        # Ignored samples and NaN, which no integer stands for, go to a region that nobody reads.
        region = size.nan_to_num_(nan=self.bins).long()
        region.masked_fill_((labels < 0)[:, None], self.bins)
        now = torch.bincount(region.flatten(), minlength=self.bins + 1)[: self.bins].double()
        # A validation pass reduces nothing: ranks may have unequal numbers of those.
        now = reduce_sum(now) if learning else now * world_size()
        occupied = now > 0
        count = self._moving(now, occupied, learning)
        regions = occupied.sum().clamp(min=1) if self.divide_by == "occupied" else self.bins
        # The gradients of the ranks are averaged, the loss is a sum over the terms of all.
        weight = torch.where(occupied, world_size() / (count * regions), 0.0)
        weight = torch.cat([weight, weight.new_zeros(1)]).to(logits.dtype)
        return weight[region]

    def _moving(self, now: torch.Tensor, occupied: torch.Tensor, learning: bool) -> torch.Tensor:
        """(B,) moving average of the counts; regions that are empty now keep theirs.

        A region's first count begins its average. The authors' code begins at 0, so that its first
        losses are 1 / (1 - momentum) times too large.
        """
        if not self.momentum:
            return now
        average = torch.where(
            self.count > 0, self.momentum * self.count + (1 - self.momentum) * now, now
        )
        average = torch.where(occupied, average, self.count)
        if learning:
            self.count.copy_(average)
        return average

    def extra_repr(self) -> str:
        return f"bins={self.bins}, momentum={self.momentum}, divide_by={self.divide_by}"
