"""The coupling that a config asks for: see :class:`d2ext.losses.HarmonicCoupling`."""

from typing import Any, Optional

from d2ext.combinations import check, present
from d2ext.config import construct
from d2ext.losses import BoxLoss, ClsLoss, HarmonicCoupling, HarmonicIoULoss

__all__ = ["HarmonicCoupling", "HarmonicIoULoss", "build_harmonic_coupling", "is_rotated"]


def build_harmonic_coupling(
    cfg: Any, *, place: str, cls_loss: ClsLoss, box_loss: BoxLoss, box_name: str = ""
) -> Optional[HarmonicCoupling]:
    """The coupling that ``cfg.MODEL.HARMONIC`` asks for at a place, or None.

    Args:
        place: "dense", "rpn" or "roi".
        cls_loss, box_loss: what it is to couple there.
        box_name: the name of the box loss.

    Raises:
        ValueError: if it makes no sense there.
    """
    node = cfg.MODEL.HARMONIC
    if not (node.ENABLED and node[f"ON_{place.upper()}"]):
        return None
    coupling = construct(HarmonicCoupling, cfg, "MODEL.HARMONIC", place=place)
    if coupling.is_off:
        return None
    check(
        *("harmonic", f"box:{box_name}"),
        *present(
            coupled_by_factors=coupling.couple,
            no_rows=type(cls_loss).per_row is ClsLoss.per_row,
            rotated_boxes=is_rotated(cfg, place),
            harmonic_iou=coupling.alpha_hiou > 0,
            overlap=box_loss.overlap,
        ),
        alpha=coupling.alpha_hiou,
        loss=type(cls_loss).__name__,
        name=box_name,
        box_loss=type(box_loss).__name__,
        place=place.upper(),
    )
    return coupling


def is_rotated(cfg: Any, place: str) -> bool:
    """Whether boxes have an angle, by the anchors or by the number of weights of their deltas."""
    if cfg.MODEL.ANCHOR_GENERATOR.NAME == "RotatedAnchorGenerator":
        return True
    if place == "dense":
        return False
    node = cfg.MODEL.RPN if place == "rpn" else cfg.MODEL.ROI_BOX_HEAD
    return len(node.BBOX_REG_WEIGHTS) == 5
