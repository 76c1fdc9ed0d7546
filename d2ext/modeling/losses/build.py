"""Criteria from configs."""

from typing import Any, Optional, Sequence

from d2ext.combinations import BOX_LOSS_KEYS, CLS_LOSS_KEYS, check, present, reason_against
from d2ext.losses import BoxLoss, ClsLoss

from .class_weights import weigh_classes
from .correlation import build_correlation_coupling
from .criterion import Criterion
from .from_config import from_config
from .guided import build_guide
from .harmonic import build_harmonic_coupling, is_rotated
from .registry import BOX_LOSS_REGISTRY, CLS_LOSS_REGISTRY

__all__ = ["build_box_loss", "build_cls_loss", "build_criterion"]


def build_cls_loss(
    cfg: Any, name: str, *, place: str, num_classes: int, alpha: float = 0.25, gamma: float = 2.0
) -> ClsLoss:
    """The class loss called ``name`` for a place ("dense", "rpn" or "roi")."""
    head = {"num_classes": num_classes, "alpha": alpha, "gamma": gamma}
    loss = from_config(CLS_LOSS_REGISTRY.get(name), cfg, **head)
    weighed = place != "rpn" and weigh_classes(cfg, loss, num_classes)
    choices = [n for n in CLS_LOSS_REGISTRY.names() if not reason_against(place, f"cls:{n}")]
    check(
        place,
        f"cls:{name}",
        *present(objectness=loss.objectness, class_weights=weighed),
        key=CLS_LOSS_KEYS.get(place, "The class loss"),
        name=name,
        choices=", ".join(choices),
    )
    loss.place = place
    return loss


def build_box_loss(cfg: Any, name: str, *, smooth_l1_beta: float = 0.0, place: str = "") -> BoxLoss:
    """The box loss called ``name``, for a place ("dense", "rpn" or "roi") if one is given."""
    if place:
        rotated = present(rotated_boxes=is_rotated(cfg, place))
        check(place, f"box:{name}", *rotated, key=BOX_LOSS_KEYS[place], name=name)
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
        coupling: see :class:`Criterion`; None: what ``MODEL.HARMONIC`` or
            ``MODEL.CORRELATION`` says.
        guide: see :class:`Criterion`; None: what ``MODEL.SAMPLING_FREE`` says.
        guides: names of the losses such a guide follows.
    """
    cls_part = build_cls_loss(
        cfg, cls_loss, place=place, num_classes=num_classes, alpha=alpha, gamma=gamma
    )
    box_part = build_box_loss(cfg, box_loss, smooth_l1_beta=smooth_l1_beta, place=place)
    if coupling is None:
        coupling = build_harmonic_coupling(
            cfg, place=place, cls_loss=cls_part, box_loss=box_part, box_name=box_loss
        )
        other = build_correlation_coupling(
            cfg, place=place, cls_loss=cls_loss, coupled=coupling is not None
        )
        coupling = other or coupling
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
