"""The coupling that a config wants: see :class:`d2ext.losses.HarmonicCoupling`."""

import logging
from typing import Any, Optional, Tuple

from d2ext.config import construct, validate
from d2ext.losses import BoxLoss, ClsLoss, HarmonicCoupling, HarmonicIoULoss

__all__ = ["HarmonicCoupling", "HarmonicIoULoss", "build_harmonic_coupling"]

logger = logging.getLogger(__name__)


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
    validate(cfg, "MODEL.HARMONIC")
    coupling = construct(HarmonicCoupling, cfg, "MODEL.HARMONIC", place=place)
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
    if coupling.alpha_hiou and box_loss.overlap:
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
