"""Rules for boxes, all of a data set at once.

Shapes: G boxes.
"""

import numbers
import sys
from itertools import chain
from typing import Any, Callable, List, Sequence, Tuple

import numpy as np

__all__ = [
    "BOX_KINDS",
    "are_relative",
    "box_codes",
    "box_faults",
    "is_area",
    "show_box",
    "stack_boxes",
]

#: Meaning of :func:`box_codes`; 0 is a good box.
BOX_KINDS = ("", "not finite", "zero area", "outside", "far outside", "partly outside")

# The mapper drops sides below 1e-5 pixels, after scaling the image; this leaves a factor of 100.
_MIN_SIDE = 1e-3
# Pixels by which a box may leave its image: rounding in common annotation tools, and VOC boxes
# that count from 0 (Detectron2 takes 1 from them).
_TOLERANCE = 1.0


def stack_boxes(boxes: Sequence[Any], length: int = 4) -> Tuple[np.ndarray, List[int]]:
    """Boxes (G, length) as float64, and which of them are not a list of that many numbers.

    The latter's rows are 0.
    """
    try:
        if set(map(len, boxes)) <= {length} and all(
            _is_number_type(t) for t in set(map(type, chain.from_iterable(boxes)))
        ):
            flat = np.fromiter(chain.from_iterable(boxes), np.float64, len(boxes) * length)
            return flat.reshape(-1, length), []
    except (TypeError, OverflowError):
        pass
    rows, malformed = np.zeros((len(boxes), length)), []
    for index, box in enumerate(boxes):
        try:
            good = len(box) == length and all(_is_number_type(type(v)) for v in box)
        except TypeError:
            good = False
        if not good:
            malformed.append(index)
            continue
        rows[index] = [_as_float(value) for value in box]
    return rows, malformed


def _as_float(value: Any) -> float:
    try:
        return float(value)
    except OverflowError:  # an integer beyond all floats
        return float("inf")


def _is_number_type(kind: type) -> bool:
    return issubclass(kind, numbers.Real) and not issubclass(kind, bool)


def box_codes(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Which rule each box breaks, as an index of :data:`BOX_KINDS`.

    Args:
        boxes: (G, 4) XYXY in pixels.
        sizes: (G, 2) width and height of each box's image; NaN where unknown.
    """
    codes = np.zeros(len(boxes), dtype=np.int8)
    with np.errstate(invalid="ignore", over="ignore"):
        low, high = boxes[:, :2], boxes[:, 2:]
        # How far the box reaches beyond its image, and what the image shows of it.
        beyond = np.maximum(-low, high - sizes)
        shown = np.minimum(high, sizes) - np.maximum(low, 0)
        codes[(beyond > _TOLERANCE).any(1)] = 5
        codes[(beyond > sizes).any(1)] = 4
        codes[(shown < _MIN_SIDE).any(1)] = 3
        codes[~(high - low >= _MIN_SIDE).all(1)] = 2
    codes[~np.isfinite(boxes).all(1)] = 1
    return codes


def is_area(value: Any) -> bool:
    """Whether an annotation's area is a number that can be one."""
    return _is_number_type(type(value)) and 0 <= value <= sys.float_info.max


def box_faults(
    given: Sequence[Any],
    sizes: np.ndarray,
    to_corners: Callable[[np.ndarray], np.ndarray],
    length: int = 4,
    *,
    whole: str = "",
) -> List[Tuple[str, int, str]]:
    """Boxes that break a rule: kind, index and what was seen.

    Args:
        given: boxes as they were written, each of ``length`` numbers if it is good.
        sizes: (G, 2) width and height of each box's image; NaN where unknown.
        to_corners: turns (G, length) into (G, 4) XYXY in pixels.
        whole: what the boxes are all of, for a message.
    """
    rows, malformed = stack_boxes(given, length)
    found = [("malformed box", k, f"box {given[k]!r}") for k in malformed]
    with np.errstate(invalid="ignore"):
        boxes = to_corners(rows)
    if are_relative(boxes, sizes):
        detail = f"no coordinate{whole} is above 1; " + show_box(boxes[0], sizes[0])
        return [*found, ("relative box", 0, detail)]
    codes = box_codes(boxes, sizes)
    codes[malformed] = 0
    bad = np.flatnonzero(codes).tolist()
    return found + [(BOX_KINDS[codes[k]], k, show_box(boxes[k], sizes[k])) for k in bad]


def are_relative(boxes: np.ndarray, sizes: np.ndarray) -> bool:
    """Whether a data set's boxes look like shares of width and height instead of pixels."""
    known = ~np.isnan(sizes).any(1)
    largest = boxes[known].max(initial=0.0)  # NaN if a box is: then it is not asked
    return bool(0 < largest <= 1.0 and sizes[known].min() > 2)


def show_box(box: Sequence[float], size: Sequence[float]) -> str:
    """A box, and its image's size where that is known, for a message."""
    text = "box " + ", ".join(f"{float(v):g}" for v in box)
    if not np.isnan(size).any():
        text += f" in {size[0]:g} x {size[1]:g}"
    return text
