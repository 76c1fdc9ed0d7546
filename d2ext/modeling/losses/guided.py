"""The guide that a config asks for: see :class:`d2ext.losses.GuidedScale`."""

from typing import Any, Optional, Sequence

from d2ext.config import construct, validate
from d2ext.losses import GuidedScale

__all__ = ["GuidedScale", "build_guide", "sampling_free_on"]


def sampling_free_on(cfg: Any, place: str) -> bool:
    """Whether ``cfg.MODEL.SAMPLING_FREE`` holds for a place, "dense", "rpn" or "roi"."""
    node = cfg.MODEL.SAMPLING_FREE
    return bool(node.ENABLED and node[f"ON_{place.upper()}"])


def build_guide(cfg: Any, *, place: str, guides: Sequence[str] = ("box",)) -> Optional[GuidedScale]:
    """The guide that ``cfg.MODEL.SAMPLING_FREE`` asks for at a place, or None.

    Args:
        place: "dense", "rpn" or "roi".
        guides: the box loss and, for detectors that have one, the centerness or quality loss.
    """
    node = cfg.MODEL.SAMPLING_FREE
    if not sampling_free_on(cfg, place):
        return None
    validate(cfg, "MODEL.SAMPLING_FREE")
    if node.LEARN_SIGMA and node.GUIDE != "frozen":
        raise ValueError(
            f"MODEL.SAMPLING_FREE.LEARN_SIGMA needs GUIDE frozen, not {node.GUIDE}: no other guide "
            "leaves the sigmas anything to weigh."
        )
    if node.GUIDE == "none":
        return None
    # The 2021 code freezes the ratio of dense heads only.
    mode = node.GUIDE if place == "dense" else "per_step"
    return construct(
        GuidedScale,
        cfg,
        "MODEL.SAMPLING_FREE",
        part=f"guide_{place}",
        guides=guides if node.GUIDE_CENTERNESS else guides[:1],
        mode=mode,
        learn_sigma=node.LEARN_SIGMA and place == "dense",
        place=place,
    )
