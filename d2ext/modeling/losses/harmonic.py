"""Harmonic loss (Wang and Zhang, ICCV 2021): class and box loss of a positive weigh each other.

Shapes: K positive samples, C classes.
"""

import logging
from typing import Any, Dict, Optional, Tuple

import torch
from detectron2.utils.events import get_event_storage, has_event_storage
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

from .box_losses import BoxLoss, CIoULoss, DIoULoss, GIoULoss, IoULoss
from .cls_losses import ClsLoss
from .criterion import CoupledTerms
from .positives import Positives
from .registry import BOX_LOSS_REGISTRY

__all__ = ["HarmonicCoupling", "HarmonicIoULoss", "build_harmonic_coupling"]

logger = logging.getLogger(__name__)

_CHOICES = {
    "BETA_R_SOURCE": ("loc", "base"),
    "BETA_C_SOURCE": ("loss", "bce", "gt_prob"),
    "TC.MARGIN_MODE": ("subtract", "hard"),
    "TC.SCORE": ("gt", "max"),
}


@BOX_LOSS_REGISTRY.register("harmonic_iou")
class HarmonicIoULoss(BoxLoss):
    """``(1 + IoU)^gamma (1 - IoU)`` of decoded and true boxes. Returns (K,).

    Args:
        gamma: how much more well localised samples weigh; 0 is the plain IoU loss.
    """

    def __init__(self, gamma: float = 0.8):
        super().__init__()
        check_gamma(gamma)
        self.gamma = gamma

    @classmethod
    def from_node(cls, *, cfg: Any = None, smooth_l1_beta: float = 0.0) -> "HarmonicIoULoss":
        return cls() if cfg is None else cls(gamma=cfg.MODEL.HARMONIC.GAMMA)

    def forward(self, positives: Positives) -> torch.Tensor:
        return harmonic_iou_loss(positives.iou, self.gamma)

    def extra_repr(self) -> str:
        return f"gamma={self.gamma}"


class HarmonicCoupling(nn.Module):
    """The coupling of a :class:`Criterion`, in three parts that can be had one by one.

    * the harmonic loss: ``(1 + beta_r) CE + (1 + beta_c) L``, ``beta_r = exp(-L)`` and
      ``beta_c = exp(-CE)``, on positives; negatives keep CE;
    * the harmonic IoU loss: ``alpha (1 + IoU)^gamma (1 - IoU)``, added to the box loss. L, and so
      ``beta_r``, includes it;
    * the task-contrastive loss, a loss of its own called ``tc``, which no beta multiplies.

    It has no parameters and no state. In training it logs, every ``log_period`` iterations because
    reading numbers makes the host wait for the device, under ``harmonic/<place>/``:

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
        log_period: int = 20,
    ):
        """
        Args:
            place: "dense", "rpn" or "roi"; for the names of what is logged.
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
            log_period: iterations between two records; 0: none.
        """
        super().__init__()
        check_gamma(gamma)
        for key, value in (
            ("BETA_R_SOURCE", beta_r_source),
            ("BETA_C_SOURCE", beta_c_source),
            ("TC.MARGIN_MODE", tc_margin_mode),
            ("TC.SCORE", tc_score),
        ):
            if value not in _CHOICES[key]:
                raise ValueError(
                    f"MODEL.HARMONIC.{key} must be {' or '.join(_CHOICES[key])}, not '{value}'."
                )
        for key, value in (("ALPHA_HIOU", alpha_hiou), ("TC.WEIGHT", tc_weight)):
            if value < 0:
                raise ValueError(f"MODEL.HARMONIC.{key} must be 0 (off) or more, not {value}.")
        if not 0 <= tc_margin < 1:
            raise ValueError(
                f"MODEL.HARMONIC.TC.MARGIN must be in [0, 1), not {tc_margin}: score and IoU "
                "never differ by more than 1."
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
        self.tc_options = {
            "margin": tc_margin,
            "mode": tc_margin_mode,
            "detach_entropy": tc_detach_entropy,
            "detach_iou": tc_detach_iou,
            "detach_score": tc_detach_score,
        }
        self.log_period = log_period

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
        logging_now = self._logs_now(len(positives))
        extra, coupled, logged = torch.zeros_like(loc), loc, {}
        if self.couple:
            quality = (positives.iou.detach(),) if cls_loss.needs_quality else ()
            cls = cls_loss.per_row(logits, labels, *quality)
            exponent = self._cls_exponent(cls_loss, cls, logits, labels)
            source = loc if self.beta_r_source == "loc" else box
            beta_r, beta_c = harmonic_factors(
                cls, source, cls_exponent=exponent, detach=self.detach_betas
            )
            extra, coupled = beta_r * cls, (1 + beta_c) * loc
            if logging_now:
                logged = self._slopes(cls, loc, beta_r, beta_c, exponent is cls)
        more: Dict[str, torch.Tensor] = {}
        if self.tc_weight:
            tc = task_contrastive_loss(
                self._score(cls_loss, logits, labels),
                positives.iou,
                class_entropy(logits, sigmoid=cls_loss.sigmoid),
                **self.tc_options,
            )
            more["tc"] = tc if self.tc_weight == 1.0 else self.tc_weight * tc
        if logging_now:
            self._log(logged, self._score(cls_loss, logits, labels), positives.iou)
        return CoupledTerms(cls_extra=extra, box=coupled, more=more)

    def _cls_exponent(self, cls_loss, cls, logits, labels) -> torch.Tensor:
        """(K,) what beta_c is the exponential of; ``cls`` itself wherever that is the same."""
        if self.beta_c_source == "loss" or not cls_loss.sigmoid:
            return cls
        if self.beta_c_source == "bce":
            return sigmoid_loss_per_row(logits, labels, kind="bce")
        return -F.logsigmoid(logits.gather(1, labels[:, None])[:, 0])

    def _score(self, cls_loss, logits, labels) -> torch.Tensor:
        """(K,) score of each sample; the background's never counts as the highest."""
        if cls_loss.objectness:
            scores = cls_loss.scores(logits)
        else:
            scores = logits.sigmoid() if cls_loss.sigmoid else logits.softmax(dim=1)[:, :-1]
        if self.tc_score == "gt":
            return scores.gather(1, labels[:, None])[:, 0]
        return scores.amax(dim=1)

    def _logs_now(self, num_positives: int) -> bool:
        if not (self.training and torch.is_grad_enabled() and self.log_period and num_positives):
            return False
        # Just before the writers write, so that a record has one line with all its numbers.
        return has_event_storage() and (get_event_storage().iter + 1) % self.log_period == 0

    @torch.no_grad()
    def _slopes(self, cls, loc, beta_r, beta_c, own_exponent: bool) -> Dict[str, torch.Tensor]:
        logged = {
            "beta_r": beta_r.mean(),
            "beta_c": beta_c.mean(),
            "negative_box_slope": (1 + beta_c - cls * beta_r < 0).float().mean(),
        }
        if own_exponent:
            logged["negative_cls_slope"] = (1 + beta_r - loc * beta_c < 0).float().mean()
        return logged

    @torch.no_grad()
    def _log(self, logged: Dict[str, torch.Tensor], score: torch.Tensor, iou: torch.Tensor) -> None:
        logged["score_iou_gap"] = (score - iou).abs().mean()
        storage = get_event_storage()
        # One transfer from the device for all of them.
        for name, value in zip(logged, torch.stack(list(logged.values())).tolist()):
            storage.put_scalar(f"harmonic/{self.place}/{name}", value, smoothing_hint=False)

    def extra_repr(self) -> str:
        return (
            f"couple={self.couple}, detach_betas={self.detach_betas}, "
            f"beta_r={self.beta_r_source}, beta_c={self.beta_c_source}, "
            f"alpha_hiou={self.alpha_hiou}, gamma={self.gamma}, tc_weight={self.tc_weight}"
        )


def build_harmonic_coupling(
    cfg: Any, *, place: str, cls_loss: ClsLoss, box_loss: BoxLoss
) -> Optional[HarmonicCoupling]:
    """The coupling that ``cfg.MODEL.HARMONIC`` wants at a place, or None.

    Args:
        place: "dense", "rpn" or "roi".
        cls_loss, box_loss: what it is to couple there.

    Raises:
        ValueError: if it makes no sense there.
    """
    node = cfg.MODEL.HARMONIC
    if not (node.ENABLED and node[f"ON_{place.upper()}"]):
        return None
    coupling = HarmonicCoupling(
        place=place,
        couple=node.COUPLE,
        detach_betas=node.DETACH_BETAS,
        beta_r_source=node.BETA_R_SOURCE,
        beta_c_source=node.BETA_C_SOURCE,
        alpha_hiou=node.ALPHA_HIOU,
        gamma=node.GAMMA,
        tc_weight=node.TC.WEIGHT,
        tc_margin=node.TC.MARGIN,
        tc_margin_mode=node.TC.MARGIN_MODE,
        tc_score=node.TC.SCORE,
        tc_detach_entropy=node.TC.DETACH_ENTROPY,
        tc_detach_iou=node.TC.DETACH_IOU,
        tc_detach_score=node.TC.DETACH_SCORE,
    )
    if coupling.is_off:
        return None
    if coupling.couple and type(cls_loss).per_row is ClsLoss.per_row:
        raise ValueError(
            f"The harmonic loss needs the class loss of single samples, which "
            f"{type(cls_loss).__name__} does not have; choose softmax, bce, focal or efl, or set "
            f"MODEL.HARMONIC.COUPLE or MODEL.HARMONIC.ON_{place.upper()} to False."
        )
    if cfg.MODEL.ANCHOR_GENERATOR.NAME == "RotatedAnchorGenerator" or 5 in _box_sizes(cfg, place):
        raise ValueError(
            "The harmonic loss is not defined for rotated boxes; set MODEL.HARMONIC.ENABLED to "
            "False."
        )
    overlap = (IoULoss, GIoULoss, DIoULoss, CIoULoss, HarmonicIoULoss)
    if coupling.alpha_hiou and isinstance(box_loss, overlap):
        logger.warning(
            f"MODEL.HARMONIC.ALPHA_HIOU {coupling.alpha_hiou} adds the harmonic IoU loss to "
            f"{type(box_loss).__name__}, which counts the overlap twice; 0 leaves it out."
        )
    return coupling


def _box_sizes(cfg: Any, place: str) -> Tuple[int, ...]:
    """How many numbers describe a box, by the weights of its deltas."""
    if place == "dense":
        return (4,)
    node = cfg.MODEL.RPN if place == "rpn" else cfg.MODEL.ROI_BOX_HEAD
    return (len(node.BBOX_REG_WEIGHTS),)
