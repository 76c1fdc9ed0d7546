"""The coupling that a config asks for: see :class:`d2ext.losses.CorrelationCoupling`."""

from typing import Any, Optional

from d2ext.combinations import PLACES, check, present
from d2ext.config import construct, validate
from d2ext.losses import CorrelationCoupling

__all__ = ["CorrelationCoupling", "build_correlation_coupling"]


def build_correlation_coupling(
    cfg: Any, *, place: str, cls_loss: str, coupled: bool
) -> Optional[CorrelationCoupling]:
    """The coupling that ``cfg.MODEL.CORRELATION`` asks for at a place, or None.

    Args:
        place: "dense", "rpn" or "roi"; the RPN has no score of a class.
        cls_loss: name of the class loss there.
        coupled: whether there is a coupling already.
    """
    node = cfg.MODEL.CORRELATION
    if place == "rpn" or not (node.ENABLED and node[f"ON_{place.upper()}"]):
        return None
    validate(cfg, "MODEL.CORRELATION")
    check(
        *("correlation", f"cls:{cls_loss}", *present(harmonic=coupled)),
        name=cls_loss,
        place=PLACES[place],
        PLACE=place.upper(),
    )
    return construct(CorrelationCoupling, cfg, "MODEL.CORRELATION")
