"""Effective class margins, ECM (Cho and Kraehenbuehl, ECCV 2022), for ROI heads with a long tail.

Shapes: M proposals, C classes; logits have C + 1 columns, the background last.
"""

from typing import Optional, Sequence, Union

import torch

from d2ext.ops.class_margin import class_margin_scores, effective_class_margin_loss

from .cls_losses import ClsLoss
from .normalizers import Divisor

__all__ = ["EffectiveClassMarginLoss"]


class EffectiveClassMarginLoss(ClsLoss):
    """Binary cross entropy whose margins and weights follow from how many images show each class.

    ``counts`` (C,) is a buffer in checkpoints: a run that resumes keeps the counts it began with.

    Args:
        num_classes: C.
        counts: images with each class; None: the loss waits for :meth:`take_image_counts`.
        background_ratio: background over foreground proposals of a batch. The authors' was measured
            on Mask R-CNN with 512 proposals an image, a quarter of them foreground.
    """

    objectness = True

    counts: torch.Tensor

    def __init__(
        self,
        num_classes: int,
        counts: Optional[Union[Sequence[float], torch.Tensor]] = None,
        background_ratio: float = 6.3313,
    ):
        super().__init__()
        if not background_ratio > 0:
            raise ValueError(f"background_ratio must be above 0, not {background_ratio}.")
        self.background_ratio = background_ratio
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.float64))
        self.waits_for_counts = counts is None
        if counts is not None:
            self.take_image_counts(counts)

    def take_image_counts(self, counts: Union[Sequence[float], torch.Tensor]) -> None:
        """Set the number of images with each class, (C,), at least one of them above 0."""
        counts = torch.as_tensor(counts, dtype=torch.float64)
        if counts.shape != self.counts.shape:
            raise ValueError(
                f"The class margins need one count for each of {len(self.counts)} classes, not "
                f"{counts.numel()}."
            )
        self.counts.copy_(counts)
        self.waits_for_counts = False

    def forward(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        normalizer: Divisor = 1.0,
        quality: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        return self._loss(logits, labels) / normalizer

    def per_row(
        self, logits: torch.Tensor, labels: torch.Tensor, quality: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        return self._loss(logits, labels, reduction="none")

    def scores(self, logits: torch.Tensor) -> torch.Tensor:
        """(M, C) for inference."""
        return class_margin_scores(logits)

    def _loss(
        self, logits: torch.Tensor, labels: torch.Tensor, reduction: str = "sum"
    ) -> torch.Tensor:
        if self.waits_for_counts and self.training:
            raise RuntimeError(
                "The class margins need the number of images with each class, which has not been "
                "counted; use d2ext's trainer, or set MODEL.ECM.COUNTS."
            )
        ratio = self.background_ratio
        return effective_class_margin_loss(
            logits, labels, self.counts, background_ratio=ratio, reduction=reduction
        )

    def extra_repr(self) -> str:
        return f"num_classes={len(self.counts)}, background_ratio={self.background_ratio}"
