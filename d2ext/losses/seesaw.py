"""Seesaw loss (Wang et al., CVPR 2021), for ROI heads.

Shapes: M proposals, C classes; logits have C + 1 columns, the background last. Labels are
Detectron2's: 0..C-1 classes, C background, -1 ignored.
"""

import math
from typing import Any, Optional

import torch

from d2ext.ops.class_weights import softmax_loss
from d2ext.ops.precision import full_precision
from d2ext.ops.reduce import reduce_sum

from .counted import CountedLoss
from .normalizers import Divisor

__all__ = ["SeesawLoss"]


class SeesawLoss(CountedLoss):
    """Softmax cross entropy that spares the rarer classes, unless they are wrongly preferred.

    For a proposal of class i, class j enters the softmax with the factor ``S_ij = M_ij C_ij``:

    * mitigation ``M_ij = min(1, N_j / N_i)^p``, with ``N`` the positives of each class so far;
    * compensation ``C_ij = max(1, s_j / s_i)^q``, with ``s`` the scores, which are constants here.

    The paper scores objects and background in two branches. Here one softmax has both, and
    proposals of the background keep the plain cross entropy: their number would otherwise silence
    what they teach nearly every class.

    ``num_seen`` (C,) is a buffer, counted over all ranks before the loss is computed.

    Args:
        num_classes: C, without background.
        p: exponent of the mitigation; 0: none.
        q: exponent of the compensation; 0: none.
        min_score: the least ``s_i`` in a compensation.
        loss_weight: factor of the loss.
        kwargs: arguments of :class:`ClsLoss`.
    """

    num_seen: torch.Tensor

    sigmoid = False
    counts_first = True
    weighs_classes = True

    def __init__(
        self,
        num_classes: int,
        p: float = 0.8,
        q: float = 2.0,
        min_score: float = 0.01,
        loss_weight: float = 1.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if min_score <= 0:
            raise ValueError(f"min_score must be above 0, not {min_score}: scores divide by it.")
        self.num_classes = num_classes
        self.p = p
        self.q = q
        self.min_score = min_score
        self.loss_weight = loss_weight
        self.register_buffer("num_seen", torch.zeros(num_classes, dtype=torch.long))

    def forward(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        normalizer: Divisor = 1.0,
        quality: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        if self.counts_now():
            self._count(labels)
        return self._rows(logits, labels).sum() * (self.loss_weight / normalizer)

    def per_row(
        self, logits: torch.Tensor, labels: torch.Tensor, quality: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        return self._rows(logits, labels) * self.loss_weight

    def extra_repr(self) -> str:
        return f"num_classes={self.num_classes}, p={self.p}, q={self.q}"

    def _rows(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        if logits.shape[1] != self.num_classes + 1:
            raise ValueError(
                f"The seesaw loss takes {self.num_classes} classes and a background column, "
                f"{self.num_classes + 1} in all, not {logits.shape[1]}."
            )
        with torch.autocast(device_type=logits.device.type, enabled=False):
            z = full_precision(logits)
            # Multiplying e^z_j by S_ij is adding log S_ij to z_j, which is 0 for j = i.
            shift = self._log_factors(z.detach(), labels)
            weights = self.weights_of_classes
            return softmax_loss(z + shift, labels, class_weights=weights, reduction="none")

    def _log_factors(self, z: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """log S_ij of each proposal (its class i) and each column j, (M, C + 1)."""
        own = labels.clamp(0, self.num_classes)[:, None]
        log_scores = z.log_softmax(dim=1)
        own_scores = log_scores.gather(1, own).clamp(min=math.log(self.min_score))
        log_factors = self.q * (log_scores - own_scores).clamp(min=0)
        # The background is no rarer than any class: its column has M_ij = 1.
        log_count = self.num_seen.clamp(min=1).to(z.dtype).log()
        log_count = torch.cat([log_count, log_count.new_full((1,), float("inf"))])
        own_count = log_count[own].masked_fill(own == self.num_classes, 0.0)
        log_factors = log_factors + self.p * (log_count - own_count).clamp(max=0)
        is_background = (labels == self.num_classes)[:, None]
        return log_factors.masked_fill(is_background, 0.0)

    @torch.no_grad()
    def _count(self, labels: torch.Tensor) -> None:
        is_class = (labels >= 0) & (labels < self.num_classes)
        counts = torch.zeros_like(self.num_seen)
        counts.index_add_(0, labels.clamp(0, self.num_classes - 1), is_class.long())
        self.num_seen.add_(reduce_sum(counts))
