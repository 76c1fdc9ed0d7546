"""What every reader of a labelled folder gives: photographs with their objects."""

from dataclasses import dataclass, field
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

__all__ = ["SPLITS", "Photo", "Source", "Thing", "split_named"]

#: The splits of a data set, in the order in which they are printed.
SPLITS = ("train", "val", "test")

_SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "trainval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}


def split_named(name: str) -> str:
    """The split that a folder or file is named after ("valid", "train2017"), or ""."""
    return _SPLIT_NAMES.get(name.lower().rstrip("0123456789").rstrip("_-"), "")


class Thing(NamedTuple):
    """One object.

    Attributes:
        name: its class.
        box: x1, y1, x2, y2 in pixels, from 0 on.
        polygons: its outline, a list of x, y, x, y, ... for each piece; empty if there is none.
        crowd: a region that evaluation ignores.
        extra: further fields of a COCO annotation that are kept ("iscrowd" aside).
    """

    name: str
    box: Tuple[float, float, float, float]
    polygons: Any = ()
    crowd: bool = False
    extra: Optional[Dict[str, Any]] = None


@dataclass
class Photo:
    """One image with its labels.

    Attributes:
        file: the image file.
        labels: the file of its labels, for messages.
        things: its objects.
        split: one of :data:`SPLITS`, or "" where the source names none.
        size: width and height as the labels say; None where they don't.
        relative: boxes and polygons are shares of width and height.
        extra: further fields of a COCO image that are kept, such as LVIS' lists.
    """

    file: str
    labels: str
    things: List[Thing]
    split: str = ""
    size: Optional[Tuple[int, int]] = None
    relative: bool = False
    extra: Dict[str, Any] = field(default_factory=dict)


@dataclass
class Source:
    """A labelled folder as it was found.

    Attributes:
        form: what it is, for people: "Pascal VOC", "YOLO", ...
        photos: in the order of their files.
        classes: names in the order of their labels; None where the source has no list.
        categories: further fields of COCO categories by name, such as LVIS' frequency.
        notes: what was left out or looked strange, a sentence each.
    """

    form: str
    photos: List[Photo]
    classes: Optional[List[str]] = None
    categories: Dict[str, Dict[str, Any]] = field(default_factory=dict)
    notes: List[str] = field(default_factory=list)
