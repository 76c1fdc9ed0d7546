"""The one criterion of dense heads, the RPN and the ROI heads.

All three places have logits, labels, box deltas, priors and matched boxes. The criterion composes
a class loss, a box loss, an optional coupling of the two and an optional guide; what the sums are
divided by is the place's own affair.

Shapes: M samples (anchors, points or proposals of all images), K of them positive, C classes.
Labels are Detectron2's: 0..C-1 classes, C background, -1 ignored.
"""

from typing import Dict, NamedTuple, Optional

import torch
from torch import nn

from d2ext.ops.precision import full_precision

from .box_losses import BoxLoss
from .cls_losses import ClsLoss
from .counted import Levels
from .normalizers import Divisor
from .positives import Positives

__all__ = ["CoupledTerms", "Criterion"]


class CoupledTerms(NamedTuple):
    """What a coupling returns, one number a positive sample, before any normaliser."""

    cls_extra: torch.Tensor  # (K,) to add to the class loss, which already counts each sample once
    box: torch.Tensor  # (K,) the box loss, instead of the uncoupled one
    more: Dict[str, torch.Tensor]  # name -> losses of their own: (K,), or a scalar as it is to be


class Criterion(nn.Module):
    """Predictions and targets to named losses.

    Args:
        cls_loss: the class loss.
        box_loss: the box loss.
        coupling: lets class and box loss of a positive sample weigh each other: a module called
            with ``(cls_loss, logits (K, C), labels (K,), box (K,), positives)`` that returns
            :class:`CoupledTerms`.
        guide: rescales the class loss by the others, at the very end: a module called with the
            dict of losses, whose ``"cls"`` it may replace.
        place: "dense", "rpn" or "roi"; "" where it does not matter.
    """

    def __init__(
        self,
        *,
        cls_loss: ClsLoss,
        box_loss: BoxLoss,
        coupling: Optional[nn.Module] = None,
        guide: Optional[nn.Module] = None,
        place: str = "",
    ):
        super().__init__()
        self.cls_loss = cls_loss
        self.box_loss = box_loss
        self.coupling = coupling
        self.guide = guide
        self.place = place

    def forward(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        positives: Positives,
        *,
        cls_normalizer: Divisor,
        box_normalizer: Divisor,
        box_weights: Optional[torch.Tensor] = None,
        box_scale: float = 1.0,
        others: Optional[Dict[str, torch.Tensor]] = None,
        target: Optional[torch.Tensor] = None,
        levels: Optional[Levels] = None,
    ) -> Dict[str, torch.Tensor]:
        """The losses of all samples of a batch.

        Args:
            logits: (M, C), or (M, C + 1) for a softmax loss.
            labels: (M,).
            positives: boxes of the rows whose label is a class.
            cls_normalizer, box_normalizer: what the two sums are divided by.
            box_weights: (K,) weight of each positive's box loss; None: 1.
            box_scale: constant weight of the box loss.
            others: further losses of the head (centerness, ...), already normalised. They are
                returned too, and a guide sees them.
            target: (M,) what a class loss that needs a quality aims at for positives; None: the
                IoU of the predicted box.
            levels: the pyramid level of each sample, for a class loss that has ``needs_levels``.

        Returns:
            ``{"cls": ..., "box": ..., **others}`` and what a coupling adds, all scalars in
            float32 (or float64, if that came in), also under autocast.
        """
        with torch.autocast(device_type=logits.device.type, enabled=False):
            logits = full_precision(logits)
            quality = self._quality(labels, positives, target)
            # A class loss that keeps statistics moves them when it is called, and the coupling
            # must see what the class loss itself sees.
            first = self.cls_loss.counts_first
            terms = None if first else self._couple(logits, labels, positives)
            more_of_rows = {"levels": levels} if self.cls_loss.needs_levels else {}
            cls = self.cls_loss(logits, labels, cls_normalizer, quality, **more_of_rows)
            if first:
                terms = self._couple(logits, labels, positives)
            box = self.box_loss(positives) if terms is None else terms.box
            more: Dict[str, torch.Tensor] = {}
            if terms is not None:
                cls = cls + terms.cls_extra.sum() / cls_normalizer
                more = {
                    name: rows.sum() / cls_normalizer if rows.dim() else rows
                    for name, rows in terms.more.items()
                }
            if box_weights is not None:
                box = box * (box_weights if box.dim() == 1 else box_weights[:, None])
            box = box.sum() / box_normalizer
            losses = {"cls": cls, "box": box if box_scale == 1.0 else box * box_scale}
            losses.update(others or {})
            if self.guide is not None:
                losses = self.guide(losses)
        losses.update(more)
        return losses

    def _quality(
        self, labels: torch.Tensor, positives: Positives, target: Optional[torch.Tensor]
    ) -> Optional[torch.Tensor]:
        """(M,) ``target``, or IoUs of positives and 0 elsewhere, if the class loss needs it."""
        if not self.cls_loss.needs_quality:
            return None
        if target is not None:
            positives.quality = target.detach()[positives.index]
            return target.detach()
        iou = positives.quality
        return iou.new_zeros(labels.shape).index_copy(0, positives.index, iou)

    def _couple(
        self, logits: torch.Tensor, labels: torch.Tensor, positives: Positives
    ) -> Optional[CoupledTerms]:
        if self.coupling is None:
            return None
        rows, row_labels = logits[positives.index], labels[positives.index]
        box = self.box_loss(positives)
        box = box if box.dim() == 1 else box.sum(dim=1)
        terms: CoupledTerms = self.coupling(self.cls_loss, rows, row_labels, box, positives)
        return terms
