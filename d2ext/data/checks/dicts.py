"""Rules for Detectron2's dataset dicts, whatever they were read from.

Shapes: N images, G objects.
"""

import numbers
from functools import partial
from itertools import chain
from operator import itemgetter
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from detectron2.structures import BoxMode

from .boxes import box_faults
from .columns import Columns
from .kinds import Problem

__all__ = [
    "DictFindings",
    "check_annotations",
    "check_images",
    "check_known",
    "without",
    "without_small",
]


_MODES = {BoxMode.XYXY_ABS, BoxMode.XYWH_ABS, BoxMode.XYWHA_ABS}


class DictFindings(NamedTuple):
    """``problems``, and (image, object) of those that belong to one of the level "skip"."""

    problems: List[Problem]
    drop: List[Tuple[int, int]]


def check_images(dicts: Sequence[Dict[str, Any]]) -> List[Problem]:
    """Check that each image occurs once, with a sensible size if it has one."""
    found: List[Problem] = []
    ids: Dict[Any, str] = {}
    for index, item in enumerate(dicts):
        if not isinstance(item, dict) or "file_name" not in item:
            detail = "it has no 'file_name'"
            found.append(Problem("broken entry", f"dict {index} of the data set", detail))
            continue
        name = str(item["file_name"])
        for side in ("width", "height"):
            value = item.get(side, 1)
            is_number: bool = isinstance(value, numbers.Real)
            if not (is_number and value > 0 and value == value // 1):
                found.append(Problem("broken entry", name, f"its {side} is {value!r}"))
        key = item.get("image_id")
        if key is not None and key in ids:
            detail = f"image id {key} is that of {ids[key]}, too"
            found.append(Problem("duplicate image id", name, detail))
        ids[key] = name
    return found


def check_annotations(
    dicts: Sequence[Dict[str, Any]], num_classes: Optional[int] = None, *, masks: bool = False
) -> DictFindings:
    """Check boxes, labels and sizes of masks of dicts that :func:`check_images` found good.

    Args:
        dicts: dataset dicts.
        num_classes: labels from it on are unknown; None if the number is not known.
        masks: whether every object needs a mask.
    """
    having = ["annotations" in item for item in dicts]
    if not any(having):
        return DictFindings([], [])
    if not all(having):
        name = str(dicts[having.index(False)]["file_name"])
        detail = "it has no 'annotations' and other images do; give it an empty list"
        return DictFindings([Problem("broken entry", name, detail)], [])
    objects = _Objects(dicts)
    broken = objects.find_broken()
    if broken:
        return DictFindings(broken, [])
    problems = objects.find_unknown(num_classes) + objects.find_boxes() + objects.find_runs()
    if masks:
        problems += objects.find_unmasked()
    return objects.findings(problems)


def check_known(
    dicts: Sequence[Dict[str, Any]], num_classes: Optional[int] = None, *, masks: bool = False
) -> DictFindings:
    """What is left to check of dicts from a file that was checked; arguments as above."""
    objects = _Objects(dicts)
    problems = objects.find_unknown(num_classes) + (objects.find_unmasked() if masks else [])
    return objects.findings(problems)


def without(dicts: Sequence[Dict[str, Any]], drop: Sequence[Tuple[int, int]]) -> List[Dict]:
    """The dicts without some of their objects; no dict or list is changed."""
    by_image: Dict[int, set] = {}
    for image, number in drop:
        by_image.setdefault(image, set()).add(number)
    dicts = list(dicts)
    for image, numbers_ in by_image.items():
        kept = [t for k, t in enumerate(dicts[image]["annotations"]) if k not in numbers_]
        dicts[image] = {**dicts[image], "annotations": kept}
    return dicts


def without_small(dicts: Sequence[Dict[str, Any]], side: float) -> List[Dict]:
    """The dicts without objects of which a side is ``side`` or less, in pixels of the file.

    An image that has no other object stays, as one without objects.
    """
    drop = []
    for image, item in enumerate(dicts):
        for number, thing in enumerate(item.get("annotations", ())):
            x, y, width, height = thing["bbox"][:4]
            if thing["bbox_mode"] == BoxMode.XYXY_ABS:
                width, height = width - x, height - y
            if min(width, height) <= side:
                drop.append((image, number))
    return without(dicts, drop)


def _around_zero(rotated: np.ndarray) -> np.ndarray:
    """Corners of rotated boxes (G, 5) as if they were upright at the origin."""
    return np.concatenate([-rotated[:, 2:4] / 2, rotated[:, 2:4] / 2], 1)


class _Objects(Columns):
    """All objects of dicts."""

    def __init__(self, dicts: Sequence[Dict[str, Any]]):
        lists = [item["annotations"] for item in dicts]
        counts = [len(things) for things in lists]
        image = np.repeat(np.arange(len(dicts)), counts)
        sides = [(item.get("width"), item.get("height")) for item in dicts]
        super().__init__(list(chain.from_iterable(lists)), image, sides)
        self.dicts, self.first = dicts, np.cumsum([0, *counts])

    def place(self, k: int) -> Tuple[int, int]:
        """The rank of an object's image, and its own among the image's objects."""
        image = int(self.image[k])
        return image, int(k - self.first[image])

    def name(self, k: int) -> Tuple[str, str]:
        image, number = self.place(k)
        return str(self.dicts[image]["file_name"]), f"object {number + 1}"

    def findings(self, problems: List[Problem]) -> DictFindings:
        return DictFindings(problems, [self.place(k) for k in np.flatnonzero(self.drop).tolist()])

    def find_broken(self) -> List[Problem]:
        """Objects that lack what each needs."""
        keys = ("bbox", "bbox_mode", "category_id")
        try:
            columns = [list(map(itemgetter(key), self.things)) for key in keys]
            if set(columns[1]) <= _MODES and set(map(type, columns[2])) <= {int}:
                return []
        except (KeyError, TypeError):
            pass
        found = []
        for k, thing in enumerate(self.things):
            missing = [key for key in keys if not isinstance(thing, dict) or key not in thing]
            if missing:
                found.append(self.problem("broken entry", k, f"it has no '{missing[0]}'"))
            elif not isinstance(thing["category_id"], numbers.Integral):
                detail = f"its label is {thing['category_id']!r}"
                found.append(self.problem("broken entry", k, detail))
            elif thing["bbox_mode"] not in _MODES:
                detail = f"its bbox_mode is {thing['bbox_mode']!r}, which Detectron2 cannot use"
                found.append(self.problem("broken entry", k, detail))
        return found

    def find_unknown(self, num_classes: Optional[int]) -> List[Problem]:
        """Labels without a class."""
        labels = np.fromiter(
            map(itemgetter("category_id"), self.things), np.int64, len(self.things)
        )
        known = labels >= 0
        if num_classes is not None:
            known &= labels < num_classes
        of = "" if num_classes is None else f" of {num_classes} classes"
        return [
            self.problem("unknown class", k, f"label {labels[k]}{of}")
            for k in np.flatnonzero(~known).tolist()
        ]

    def find_boxes(self) -> List[Problem]:
        """Boxes that break a rule."""
        modes = np.fromiter(map(itemgetter("bbox_mode"), self.things), np.int64, len(self.things))
        found: List[Problem] = []
        for mode in np.unique(modes):
            of_mode = np.flatnonzero(modes == mode)
            given = [self.things[k]["bbox"] for k in of_mode.tolist()]
            rotated = mode == BoxMode.XYWHA_ABS
            if rotated:  # center, sides, angle: how far it reaches is not asked
                convert, sizes = _around_zero, np.full((len(given), 2), np.nan)
            else:
                convert = partial(
                    BoxMode.convert, from_mode=BoxMode(int(mode)), to_mode=BoxMode.XYXY_ABS
                )
                sizes = self.sizes[of_mode]
            faults = box_faults(given, sizes, convert, 5 if rotated else 4)
            found += [self.problem(kind, of_mode[k], detail) for kind, k, detail in faults]
        return found

    def find_unmasked(self) -> List[Problem]:
        """Objects without a mask; crowd regions are not trained on."""
        return [
            self.problem("no mask", k, "it has no 'segmentation'")
            for k, thing in enumerate(self.things)
            if not self.masks[k] and not thing.get("iscrowd", 0)
        ]
