"""Polygons: clip them to the image, measure them, and trace them around a pixel mask.

Shape letters: V vertices, H and W height and width of a mask.
"""

from typing import Dict, List, Set, Tuple

import numpy as np

__all__ = ["clip_polygon", "polygon_area", "trace_mask"]


def polygon_area(polygon: np.ndarray) -> float:
    """Signed area of a (V, 2) polygon; positive if it runs clockwise on the screen."""
    x, y = polygon[:, 0], polygon[:, 1]
    return float(0.5 * (np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))))


def clip_polygon(polygon: np.ndarray, width: float, height: float) -> np.ndarray:
    """Part of a (V, 2) polygon inside the image; parts may stay joined along the border."""
    for axis, limit, sign in ((0, 0.0, 1.0), (0, width, -1.0), (1, 0.0, 1.0), (1, height, -1.0)):
        inside = sign * (polygon[:, axis] - limit)
        if (inside >= 0).all():
            continue
        vertices = []
        for i in range(len(polygon)):
            j = (i + 1) % len(polygon)
            if inside[i] >= 0:
                vertices.append(polygon[i])
            if (inside[i] >= 0) != (inside[j] >= 0):
                t = inside[i] / (inside[i] - inside[j])
                vertices.append(polygon[i] + t * (polygon[j] - polygon[i]))
        if len(vertices) < 3:
            return np.zeros((0, 2))
        polygon = np.stack(vertices)
        # Without this, rounding may leave a vertex a hair outside.
        polygon[:, axis] = (np.maximum if sign > 0 else np.minimum)(polygon[:, axis], limit)
    return polygon


# Right, down, left, up: steps along the cracks between pixels, the mask always on the right hand.
_STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))


def trace_mask(mask: np.ndarray, min_area: float = 6.0) -> List[np.ndarray]:
    """Outer outlines of the connected parts of a mask.

    The outline passes through the middles of the pixel edges that separate inside from outside,
    which rounds off the staircase by half a pixel and keeps the extent exact. Holes are filled:
    a polygon of COCO cannot hold them.

    Args:
        mask: (H, W) bool.
        min_area: smaller parts are left out.

    Returns:
        list[ndarray]: (V, 2) polygons, clockwise on the screen, the largest first.
    """
    padded = np.pad(mask, 1)
    core = padded[1:-1, 1:-1]
    outside = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    corner = ((0, 0), (1, 0), (1, 1), (0, 1))
    todo: Dict[Tuple[int, int], Set[int]] = {}
    for direction in range(4):
        ys, xs = np.nonzero(core & ~outside[direction])
        dx, dy = corner[direction]
        for x, y in zip((xs + dx).tolist(), (ys + dy).tolist()):
            todo.setdefault((x, y), set()).add(direction)
    polygons = []
    while todo:
        polygon = _follow(todo)
        if polygon_area(polygon) >= min_area:  # holes run the other way: negative
            polygons.append(_drop_collinear(polygon))
    return sorted(polygons, key=polygon_area, reverse=True)


def _follow(todo: dict) -> np.ndarray:
    """Take one closed walk out of the edges still to do; the middles of its edges."""
    x, y = next(iter(todo))
    direction = min(todo[(x, y)])
    first, middles = (x, y, direction), []
    while True:
        dx, dy = _STEPS[direction]
        middles.append((x + 0.5 * dx, y + 0.5 * dy))
        x, y = x + dx, y + dy
        # Where two pixels touch at a corner, a right turn stays with the pixel we are at. So every
        # edge has one successor and one predecessor, and the walk comes back to its first edge.
        turns = ((direction + turn) % 4 for turn in (1, 0, 3))
        direction = next(d for d in turns if d in todo[(x, y)])
        todo[(x, y)].discard(direction)
        if not todo[(x, y)]:
            del todo[(x, y)]
        if (x, y, direction) == first:
            return np.asarray(middles)


def _drop_collinear(polygon: np.ndarray) -> np.ndarray:
    before = polygon - np.roll(polygon, 1, axis=0)
    after = np.roll(polygon, -1, axis=0) - polygon
    return polygon[np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-9]
