"""Correlation of scores and overlaps as a coupling (Kahraman et al., AAAI 2023).

Shapes: K positive samples, C classes.
"""

import torch
from torch import nn

from d2ext.ops.correlation import KINDS, correlation_loss

from .cls_losses import ClsLoss, class_scores
from .criterion import CoupledTerms
from .positives import Positives

__all__ = ["CorrelationCoupling"]


class CorrelationCoupling(nn.Module):
    """A loss of its own, ``corr``: 1 - the correlation of the positives' scores and overlaps.

    It is not divided by the normaliser, leaves class and box loss alone and has no state. Each rank
    has the correlation of its own positives.

    Args:
        kind, strength: see :func:`d2ext.ops.correlation.correlation_loss`.
        weight: of the loss.
    """

    def __init__(self, *, kind: str = "concordance", weight: float = 0.3, strength: float = 1.0):
        super().__init__()
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, not '{kind}'.")
        for name, value in (("weight", weight), ("strength", strength)):
            if not value > 0:
                raise ValueError(f"{name} must be above 0, not {value}.")
        self.kind = kind
        self.weight = weight
        self.strength = strength

    def forward(
        self,
        cls_loss: ClsLoss,
        logits: torch.Tensor,
        labels: torch.Tensor,
        box: torch.Tensor,
        positives: Positives,
    ) -> CoupledTerms:
        """See :class:`~d2ext.losses.Criterion`."""
        scores = class_scores(cls_loss, logits).gather(1, labels[:, None])[:, 0]
        loss = correlation_loss(scores, positives.iou, kind=self.kind, strength=self.strength)
        return CoupledTerms(torch.zeros_like(box), box, {"corr": self.weight * loss})

    def extra_repr(self) -> str:
        return f"kind={self.kind}, weight={self.weight}"
