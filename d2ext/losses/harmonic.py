"""Harmonic loss (Wang and Zhang, ICCV 2021): class and box loss of a positive weigh each other.

Shapes: K positive samples, C classes.
"""

from typing import Any, Dict

import torch
from torch import nn
from torch.nn import functional as F

from d2ext.ops.harmonic import (
    check_gamma,
    class_entropy,
    harmonic_factors,
    harmonic_iou_loss,
    task_contrastive_loss,
)
from d2ext.ops.sigmoid_losses import sigmoid_loss_per_row

from .box_losses import BoxLoss
from .cls_losses import ClsLoss, class_scores
from .criterion import CoupledTerms
from .positives import Positives
from .recording import Recording

__all__ = ["HarmonicCoupling", "HarmonicIoULoss"]

_CHOICES = {
    "beta_r_source": ("loc", "base"),
    "beta_c_source": ("loss", "bce", "gt_prob"),
    "tc_margin_mode": ("subtract", "hard"),
    "tc_score": ("gt", "max"),
}


class HarmonicIoULoss(BoxLoss):
    """``(1 + IoU)^gamma (1 - IoU)`` of decoded and true boxes. Returns (K,).

    Args:
        gamma: how much more well localised samples weigh; 0 is the plain IoU loss.
    """

    overlap = True

    def __init__(self, gamma: float = 0.8):
        super().__init__()
        check_gamma(gamma)
        self.gamma = gamma

    def forward(self, positives: Positives) -> torch.Tensor:
        return harmonic_iou_loss(positives.iou, self.gamma)

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}"


class HarmonicCoupling(Recording, nn.Module):
    """The coupling of a :class:`Criterion`, in three parts that can be used separately.

    * the harmonic loss: ``(1 + beta_r) CE + (1 + beta_c) L``, ``beta_r = exp(-L)`` and
      ``beta_c = exp(-CE)``, on positives; negatives keep CE;
    * the harmonic IoU loss: ``alpha (1 + IoU)^gamma (1 - IoU)``, added to the box loss. L, and so
      ``beta_r``, includes it;
    * the task-contrastive loss, a loss of its own called ``tc``, which no beta multiplies.

    It has no parameters and no state. While it is ``recording`` it keeps in ``record``, under
    ``harmonic/<place>/``:

    * ``beta_r``, ``beta_c``: mean factors;
    * ``score_iou_gap``: mean ``|p - IoU|``;
    * ``negative_box_slope``: share of positives whose box the literal formula would move away from
      the object, ``1 + beta_c - CE beta_r < 0``;
    * ``negative_cls_slope``: share of positives whose score it would lower,
      ``1 + beta_r - L beta_c < 0``; only where CE itself is in ``beta_c``.
    """

    def __init__(
        self,
        *,
        place: str = "dense",
        couple: bool = True,
        detach_betas: bool = True,
        beta_r_source: str = "loc",
        beta_c_source: str = "loss",
        alpha_hiou: float = 1.5,
        gamma: float = 0.8,
        tc_weight: float = 1.0,
        tc_margin: float = 0.2,
        tc_margin_mode: str = "subtract",
        tc_score: str = "gt",
        tc_detach_entropy: bool = False,
        tc_detach_iou: bool = False,
        tc_detach_score: bool = False,
    ):
        """
        Args:
            place: "dense", "rpn" or "roi"; for the names of what is recorded.
            couple: multiply the losses by the factors.
            detach_betas: the factors are constants; False is the literal formula's gradient.
            beta_r_source: L in ``beta_r`` is "loc", with the harmonic IoU loss, or "base", without.
            beta_c_source: CE in ``beta_c`` is "loss", the class loss as trained, "bce", the plain
                binary cross entropy, or "gt_prob", ``-log p``. All the same for softmax.
            alpha_hiou: weight of the harmonic IoU loss; 0: none.
            gamma: its exponent.
            tc_weight: weight of the task-contrastive loss; 0: none.
            tc_margin, tc_margin_mode, tc_detach_entropy, tc_detach_iou, tc_detach_score: see
                :func:`d2ext.ops.harmonic.task_contrastive_loss`.
            tc_score: p is the score of the object's class ("gt") or the highest of all ("max").
        """
        super().__init__()
        check_gamma(gamma)
        for name, value in (
            ("beta_r_source", beta_r_source),
            ("beta_c_source", beta_c_source),
            ("tc_margin_mode", tc_margin_mode),
            ("tc_score", tc_score),
        ):
            if value not in _CHOICES[name]:
                raise ValueError(f"{name} must be {' or '.join(_CHOICES[name])}, not '{value}'.")
        for name, weight in (("alpha_hiou", alpha_hiou), ("tc_weight", tc_weight)):
            if weight < 0:
                raise ValueError(f"{name} must be 0 (off) or more, not {weight}.")
        if not 0 <= tc_margin < 1:
            raise ValueError(
                f"tc_margin must be in [0, 1), not {tc_margin}: score and IoU never differ by more "
                "than 1."
            )
        self.place = place
        self.couple = couple
        self.detach_betas = detach_betas
        self.beta_r_source = beta_r_source
        self.beta_c_source = beta_c_source
        self.alpha_hiou = alpha_hiou
        self.gamma = gamma
        self.tc_weight = tc_weight
        self.tc_score = tc_score
        self.tc_options: Dict[str, Any] = {
            "margin": tc_margin,
            "mode": tc_margin_mode,
            "detach_entropy": tc_detach_entropy,
            "detach_iou": tc_detach_iou,
            "detach_score": tc_detach_score,
        }

    @property
    def is_off(self) -> bool:
        """Whether it would change nothing."""
        return not (self.couple or self.alpha_hiou or self.tc_weight)

    def forward(
        self,
        cls_loss: ClsLoss,
        logits: torch.Tensor,
        labels: torch.Tensor,
        box: torch.Tensor,
        positives: Positives,
    ) -> CoupledTerms:
        """
        Args:
            cls_loss: the class loss, which gives CE of single samples.
            logits: (K, C), or (K, C + 1) for a softmax loss.
            labels: (K,) classes, as columns of ``logits``.
            box: (K,) box losses.
            positives: their boxes.
        """
        if positives.boxes.shape[-1] != 4:
            raise ValueError(
                f"The harmonic loss is not defined for boxes of {positives.boxes.shape[-1]} "
                "numbers (rotated ones); set MODEL.HARMONIC.ENABLED to False."
            )
        loc = box
        if self.alpha_hiou:
            loc = box + self.alpha_hiou * harmonic_iou_loss(positives.iou, self.gamma)
        recording = self.recording and len(positives) > 0
        extra, coupled = torch.zeros_like(loc), loc
        self.record = {}
        if self.couple:
            quality = (positives.quality,) if cls_loss.needs_quality else ()
            cls = cls_loss.per_row(logits, labels, *quality)
            exponent = self._cls_exponent(cls_loss, cls, logits, labels)
            source = loc if self.beta_r_source == "loc" else box
            beta_r, beta_c = harmonic_factors(
                cls, source, cls_exponent=exponent, detach=self.detach_betas
            )
            extra, coupled = beta_r * cls, (1 + beta_c) * loc
            if recording:
                self._record_slopes(cls, loc, beta_r, beta_c, exponent is cls)
        more: Dict[str, torch.Tensor] = {}
        if self.tc_weight:
            tc = task_contrastive_loss(
                self._score(cls_loss, logits, labels),
                positives.iou,
                class_entropy(logits, sigmoid=cls_loss.sigmoid),
                **self.tc_options,
            )
            more["tc"] = tc if self.tc_weight == 1.0 else self.tc_weight * tc
        if recording:
            gap = self._score(cls_loss, logits, labels) - positives.iou
            self._record(score_iou_gap=gap.abs())
        return CoupledTerms(cls_extra=extra, box=coupled, more=more)

    def _cls_exponent(
        self, cls_loss: ClsLoss, cls: torch.Tensor, logits: torch.Tensor, labels: torch.Tensor
    ) -> torch.Tensor:
        """(K,) what beta_c is the exponential of; ``cls`` itself wherever that is the same."""
        if self.beta_c_source == "loss" or not cls_loss.sigmoid:
            return cls
        if self.beta_c_source == "bce":
            return sigmoid_loss_per_row(logits, labels, kind="bce")
        return -F.logsigmoid(logits.gather(1, labels[:, None])[:, 0])

    def _score(self, cls_loss: ClsLoss, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(K,) score of each sample; the background's never counts as the highest."""
        scores = class_scores(cls_loss, logits)
        if self.tc_score == "gt":
            return scores.gather(1, labels[:, None])[:, 0]
        return scores.amax(dim=1)

    def _record_slopes(
        self,
        cls: torch.Tensor,
        loc: torch.Tensor,
        beta_r: torch.Tensor,
        beta_c: torch.Tensor,
        own_exponent: bool,
    ) -> None:
        self._record(beta_r=beta_r, beta_c=beta_c, negative_box_slope=1 + beta_c - cls * beta_r < 0)
        if own_exponent:
            self._record(negative_cls_slope=1 + beta_r - loc * beta_c < 0)

    def _record(self, **rows: torch.Tensor) -> None:
        for name, values in rows.items():
            self.record[f"harmonic/{self.place}/{name}"] = values.detach().float().mean()

    def extra_repr(self) -> str:
        return (
            f"couple={self.couple}, detach_betas={self.detach_betas}, "
            f"beta_r={self.beta_r_source}, beta_c={self.beta_c_source}, "
            f"alpha_hiou={self.alpha_hiou}, gamma={self.gamma}, tc_weight={self.tc_weight}"
        )
