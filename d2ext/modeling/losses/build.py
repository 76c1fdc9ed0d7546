"""Criteria from configs: what each place of a detector may choose, and what is refused."""

from typing import Any, Optional, Sequence

from d2ext.losses import BoxLoss, ClsLoss

from .criterion import Criterion
from .from_config import from_config
from .guided import build_guide
from .harmonic import build_harmonic_coupling
from .registry import BOX_LOSS_REGISTRY, CLS_LOSS_REGISTRY

__all__ = ["build_box_loss", "build_cls_loss", "build_criterion"]

# Class losses that make no sense somewhere, and why. Everything else registered is allowed, also
# what a user registers.
_REFUSED_CLS = {
    ("dense", "softmax"): "a dense head has no background output",
    ("rpn", "softmax"): "the RPN has one output an anchor",
    ("dense", "seesaw"): "a dense head has no background output",
    ("rpn", "seesaw"): "the RPN has one output an anchor",
    ("rpn", "qfl"): "the RPN has no quality target",
    ("rpn", "eqfl"): "the RPN has no quality target",
    ("roi", "qfl"): "the score of an ROI head is trained with hard labels",
    ("roi", "eqfl"): "the score of an ROI head is trained with hard labels",
}
_KEYS = {"dense": "MODEL.DENSE.CLS_LOSS", "roi": "MODEL.ROI_BOX_HEAD.CLS_LOSS"}


def build_cls_loss(
    cfg: Any, name: str, *, place: str, num_classes: int, alpha: float = 0.25, gamma: float = 2.0
) -> ClsLoss:
    """The class loss called ``name`` for a place ("dense", "rpn" or "roi")."""
    reason = _REFUSED_CLS.get((place, name))
    if reason is not None:
        allowed = [n for n in CLS_LOSS_REGISTRY.names() if (place, n) not in _REFUSED_CLS]
        raise ValueError(
            f"{_KEYS.get(place, 'The class loss')} cannot be '{name}' because {reason}; "
            f"choose one of {', '.join(allowed)}."
        )
    loss = from_config(
        CLS_LOSS_REGISTRY.get(name), cfg, num_classes=num_classes, alpha=alpha, gamma=gamma
    )
    if loss.objectness and place != "roi":
        raise ValueError(
            f"{_KEYS.get(place, 'The class loss')} is '{name}' with a column for the background, "
            "which only an ROI head has; set MODEL.EQLV2.OBJECTNESS to False."
        )
    loss.place = place
    return loss


def build_box_loss(cfg: Any, name: str, *, smooth_l1_beta: float = 0.0) -> BoxLoss:
    """The box loss called ``name``."""
    return from_config(BOX_LOSS_REGISTRY.get(name), cfg, smooth_l1_beta=smooth_l1_beta)


def build_criterion(
    cfg: Any,
    *,
    place: str,
    cls_loss: str,
    box_loss: str,
    num_classes: int,
    alpha: float = 0.25,
    gamma: float = 2.0,
    smooth_l1_beta: float = 0.0,
    coupling: Optional[Any] = None,
    guide: Optional[Any] = None,
    guides: Sequence[str] = ("box",),
) -> Criterion:
    """The criterion of one place of a detector, with everything the config switches on.

    Args:
        place: "dense", "rpn" or "roi".
        cls_loss, box_loss: names in the registries.
        alpha, gamma, smooth_l1_beta: parameters of that place's losses.
        coupling: see :class:`Criterion`; None: what ``MODEL.HARMONIC`` says.
        guide: see :class:`Criterion`; None: what ``MODEL.SAMPLING_FREE`` says.
        guides: names of the losses such a guide follows.
    """
    cls_part = build_cls_loss(
        cfg, cls_loss, place=place, num_classes=num_classes, alpha=alpha, gamma=gamma
    )
    box_part = build_box_loss(cfg, box_loss, smooth_l1_beta=smooth_l1_beta)
    if coupling is None:
        coupling = build_harmonic_coupling(cfg, place=place, cls_loss=cls_part, box_loss=box_part)
    if guide is None:
        guide = build_guide(cfg, place=place, guides=guides)
    return Criterion(
        cls_loss=cls_part,
        box_loss=box_part,
        coupling=coupling,
        guide=guide,
        place=place,
        log_period=cfg.ENGINE.LOG_PERIOD,
    )
