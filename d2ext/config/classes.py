"""The number of classes: one place that knows every key that holds it."""

from typing import Any, Dict, Sequence

__all__ = ["DENSE_SECTIONS", "class_count_key", "class_count_keys", "set_class_count"]

#: The section of MODEL that each dense detector reads.
DENSE_SECTIONS = {
    "RetinaNet": "RETINANET",
    "ExtRetinaNet": "RETINANET",
    "ExtFCOS": "FCOS",
    "ATSS": "ATSS",
    "YOLOX": "YOLOX",
    "DualWeightingFCOS": "DW",
}

# A segmentation head counts classes of pixels, which have nothing to do with those of objects.
_OTHERS = ("SEM_SEG_HEAD",)


def class_count_keys(cfg: Any) -> Dict[str, int]:
    """Every key that holds the number of a detector's classes, and its value.

    ``MODEL.RETINANET.NUM_CLASSES``, ``MODEL.ROI_HEADS.NUM_CLASSES`` and so on; a detector that
    a user adds in the same way is known, too.
    """
    return {
        f"MODEL.{name}.NUM_CLASSES": node["NUM_CLASSES"]
        for name, node in cfg.MODEL.items()
        if name not in _OTHERS and hasattr(node, "keys") and "NUM_CLASSES" in node
    }


def class_count_key(cfg: Any) -> str:
    """The key that sets the number of classes of the detector that the config has, or "".

    A user's detector is known if its section has its name (``MODEL.MYNET`` of MyNet).
    """
    name = cfg.MODEL.META_ARCHITECTURE
    own = {"GeneralizedRCNN": "ROI_HEADS", **DENSE_SECTIONS}.get(name, str(name).upper())
    key = f"MODEL.{own}.NUM_CLASSES"
    return key if key in class_count_keys(cfg) else ""


def set_class_count(cfg: Any, count: int, given: Sequence[str] = ()) -> None:
    """Give whichever detector the config has ``count`` classes, in place.

    Args:
        cfg: the config.
        count: the number of classes of the data.
        given: overrides of the command line.

    Raises:
        ValueError: if an override says another number.
    """
    from .node import override_pairs

    values = dict(override_pairs(given))
    for key in class_count_keys(cfg):
        if key in values and str(values[key]) != str(count):
            raise ValueError(
                f"{key} {values[key]} disagrees with the data, which have {count} classes; leave "
                "it out, as it is set by itself."
            )
        cfg.merge_from_list([key, count])
