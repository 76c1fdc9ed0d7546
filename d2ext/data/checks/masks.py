"""Rules for run-length encoded masks and for polygons.

pycocotools decodes a damaged run-length string without an error, into whatever the memory held.
"""

import math
from typing import Any, List, Optional, Sequence

__all__ = ["annotation_mask_fault", "is_short", "polygon_fault", "reach", "rle_fault", "size_fault"]

# How many times the longer side of its image a polygon may reach from the corner, and the side of
# an image that does not say its size. pycocotools crashes on what is far beyond.
_REACH, _MIN_REACH = 10.0, 1000.0


def reach(*sides: Any) -> float:
    """How far a polygon may reach in an image with these sides, of which some may be unknown."""
    known = [float(side) for side in sides if isinstance(side, (int, float)) and side > 0]
    return _REACH * max([*known, _MIN_REACH])


def polygon_fault(pieces: Sequence[Sequence[float]], limit: float) -> str:
    """What is wrong with the coordinates of an object's polygons, or ""."""
    for piece in pieces:
        # Not "any beyond": NaN is beyond nothing.
        if all(-limit <= value <= limit for value in piece):
            continue
        if not all(map(math.isfinite, piece)):
            return "its polygon is not finite"
        return f"its polygon reaches to {max(piece, key=abs):.3g}, far beyond its image"
    return ""


def is_short(polygon: Sequence[float]) -> bool:
    """Whether Detectron2 would leave a polygon out: less than three points, or half a point."""
    return len(polygon) % 2 == 1 or len(polygon) < 6


def rle_fault(mask: Any) -> str:
    """What is wrong with a run-length encoded mask by itself, or ""."""
    size, counts = mask.get("size"), mask.get("counts")
    if not _is_size(size):
        return f"its size is {size!r} and not [height, width]"
    if isinstance(counts, (list, tuple)):
        if not all(isinstance(run, int) and run >= 0 for run in counts):
            return "its runs are not all whole numbers from 0 on"
        total: Optional[int] = sum(counts)
    elif isinstance(counts, (str, bytes)):
        total = _sum_of_runs(counts.encode() if isinstance(counts, str) else counts)
        if total is None:
            return "its run-length string is damaged"
    else:
        return f"its counts are a {type(counts).__name__} and not a string or a list"
    if total != size[0] * size[1]:
        return f"its runs cover {total} of {size[0] * size[1]} pixels"
    return ""


def size_fault(mask: Any, width: float, height: float) -> str:
    """How a run-length encoded mask's size differs from its image's, where that is known, or ""."""
    size = mask.get("size")
    if not (math.isfinite(width) and math.isfinite(height)) or list(size or ()) == [height, width]:
        return ""
    return f"mask {size}, image [{height:g}, {width:g}]"


def annotation_mask_fault(annotation: Any, *sides: Any) -> str:
    """What is wrong with the mask of a dataset dict's annotation, or "".

    Args:
        annotation: one object.
        sides: of its image, where they are known.
    """
    mask = annotation.get("segmentation")
    if isinstance(mask, dict):
        return rle_fault(mask)
    return polygon_fault(mask, reach(*sides)) if isinstance(mask, list) else ""


def _is_size(size: Any) -> bool:
    return (
        isinstance(size, (list, tuple))
        and len(size) == 2
        and all(isinstance(side, int) and side > 0 for side in size)
    )


def _sum_of_runs(text: bytes) -> Optional[int]:
    """The pixels that COCO's compressed string covers, or None if it is no such string.

    Five bits a character, the lowest first; bit 5 says that more follow, bit 4 of the last one is
    the sign. From the fourth on a run is given as the difference to the run before the last.
    """
    runs: List[int] = []
    value, shift = 0, 0
    for byte in text:
        bits = byte - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 31) << shift
        shift += 5
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        if value < 0:
            return None
        runs.append(value)
        value = shift = 0
    return None if shift else sum(runs)
