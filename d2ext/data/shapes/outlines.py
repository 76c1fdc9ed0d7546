"""Outlines of the shapes: closed polygons that just fit into the square [-1, 1] x [-1, 1].

Shape letters: V vertices of an outline. The y axis points down, as in images.
"""

import functools
import math
from typing import Callable, Dict, List, Sequence, Tuple

import numpy as np

__all__ = ["outline", "outline_names"]

_OUTLINES: Dict[str, Callable[[], np.ndarray]] = {}


def outline_names() -> List[str]:
    """Names of all outlines, in the order in which they are defined."""
    return list(_OUTLINES)


@functools.cache
def outline(name: str) -> np.ndarray:
    """Polygon of an outline.

    Args:
        name: one of :func:`outline_names`.

    Returns:
        ndarray: (V, 2) vertices, centred, the longer side of the bounding box being 2.
    """
    vertices = np.asarray(_OUTLINES[name](), dtype=np.float64)
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    vertices = (vertices - (low + high) / 2) * (2.0 / (high - low).max())
    vertices.setflags(write=False)
    return vertices


def _register(function: Callable[[], np.ndarray]) -> Callable[[], np.ndarray]:
    _OUTLINES[function.__name__.strip("_")] = function
    return function


def _polar(radius: Callable[[np.ndarray], np.ndarray], count: int, start: float = -90.0):
    """Closed curve given by its radius as a function of the angle from ``start``, in degrees."""
    phi = np.arange(count) * (2 * math.pi / count)
    angle = phi + math.radians(start)
    r = radius(phi) * np.ones(count)
    return np.stack([r * np.cos(angle), r * np.sin(angle)], axis=1)


def _spikes(points: int, inner: float) -> np.ndarray:
    r = np.tile([1.0, inner], points)
    return _polar(lambda phi: r, 2 * points)


def _arc(center: Tuple[float, float], radius: float, start: float, stop: float, count: int = 14):
    """Vertices of an arc from ``start`` to ``stop`` degrees, clockwise as seen on the screen."""
    angle = np.radians(np.linspace(start, stop, count))
    return np.stack(
        [center[0] + radius * np.cos(angle), center[1] + radius * np.sin(angle)], axis=1
    )


def _mirrored(half: Sequence[Tuple[float, float]]) -> np.ndarray:
    """Right half, from top to bottom, completed by its mirror image on the left."""
    right = np.asarray(half, dtype=np.float64)
    return np.concatenate([right, (right * [-1.0, 1.0])[::-1]])


@_register
def _circle():
    return _polar(np.ones_like, 36)


@_register
def _square():
    return _mirrored([(0.88, -1.0), (1.0, -0.88), (1.0, 0.88), (0.88, 1.0)])


@_register
def _triangle():
    return _polar(np.ones_like, 3)


@_register
def _hexagon():
    return _polar(np.ones_like, 6)


@_register
def _star():
    return _spikes(5, 0.45)


@_register
def _sparkle():
    return _spikes(4, 0.38)


@_register
def _sun():
    return _spikes(12, 0.72)


@_register
def _cross():
    a = 0.36
    return _mirrored([(a, -1.0), (a, -a), (1.0, -a), (1.0, a), (a, a), (a, 1.0)])


@_register
def _heart():
    t = np.arange(40) * (2 * math.pi / 40)
    y = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return np.stack([16 * np.sin(t) ** 3, -y], axis=1)


@_register
def _flower():
    return _polar(lambda phi: 0.76 + 0.24 * np.cos(5 * phi), 60)


@_register
def _clover():
    return _polar(lambda phi: 0.66 + 0.34 * np.cos(3 * phi), 54)


@_register
def _leaf():
    right = _arc((-0.9, 0.0), 1.35, -48.0, 48.0, 15)
    left = _arc((0.9, 0.0), 1.35, 132.0, 228.0, 15)
    return np.concatenate([right, left])


@_register
def _drop():
    t = np.arange(36) * (2 * math.pi / 36)
    return np.stack([np.sin(t) * np.sin(t / 2) ** 1.3 * 0.95, -np.cos(t)], axis=1)


@_register
def _moon():
    outer = _arc((0.0, 0.0), 1.0, 55.0, 305.0, 26)
    tip = outer[-1]
    radius = math.hypot(tip[0] - 0.62, tip[1])
    angle = math.degrees(math.atan2(tip[1], tip[0] - 0.62)) % 360.0
    return np.concatenate([outer, _arc((0.62, 0.0), radius, angle, 360.0 - angle, 20)[1:-1]])


@_register
def _gear():
    # Eight teeth of four corners each.
    step = 2 * math.pi / 8
    tooth = np.array([-0.30, -0.20, 0.20, 0.30]) * step
    angle = (np.arange(8)[:, None] * step + tooth).ravel()
    r = np.tile([0.72, 1.0, 1.0, 0.72], 8)
    return np.stack([r * np.cos(angle), r * np.sin(angle)], axis=1)


@_register
def _arrow():
    return [(0.0, -0.3), (0.1, -0.3), (0.1, -0.75), (1.0, 0.0), (0.1, 0.75), (0.1, 0.3)] + [
        (-1.0, 0.3),
        (-1.0, -0.3),
    ]


@_register
def _bolt():
    return [(0.4, -1.0), (-0.7, 0.2), (-0.1, 0.2), (-0.4, 1.0), (0.7, -0.3), (0.05, -0.3)]


@_register
def _house():
    return _mirrored([(0.0, -1.0), (1.0, -0.15), (0.78, -0.15), (0.78, 0.95)])


@_register
def _tree():
    return _mirrored(
        [(0.0, -1.0), (0.5, -0.4), (0.28, -0.4), (0.68, 0.1), (0.4, 0.1), (0.85, 0.62)]
        + [(0.18, 0.62), (0.18, 1.0)]
    )


@_register
def _fish():
    body = [(0.78 * x - 0.22, 0.62 * y) for x, y in _arc((0.0, 0.0), 1.0, 20.0, 340.0, 26)]
    return [*body, (1.0, -0.62), (0.82, 0.0), (1.0, 0.62)]


@_register
def _mushroom():
    cap = _arc((0.0, 0.05), 1.0, 180.0, 360.0, 20)
    stem = [(0.95, 0.22), (0.34, 0.22), (0.40, 0.95), (-0.40, 0.95), (-0.34, 0.22), (-0.95, 0.22)]
    return np.concatenate([cap, stem])


@_register
def _crown():
    return _mirrored([(0.0, -0.85), (0.38, -0.1), (1.0, -0.7), (0.8, 0.8)])


@_register
def _kite():
    return [(0.0, -1.0), (0.68, -0.3), (0.0, 1.0), (-0.68, -0.3)]


@_register
def _hourglass():
    return _mirrored([(0.75, -1.0), (0.75, -0.78), (0.16, 0.0), (0.75, 0.78), (0.75, 1.0)])


@_register
def _butterfly():
    upper = _arc((0.56, -0.42), 0.52, -150.0, 60.0, 14)
    lower = _arc((0.46, 0.46), 0.42, -40.0, 160.0, 12)
    return _mirrored([(0.06, -0.35), *upper, *lower, (0.06, 0.5)])


@_register
def _cup():
    # The handle's opening is left out: a polygon of COCO has no holes.
    handle = _arc((0.55, -0.1), 0.48, -65.0, 65.0, 12)
    return np.concatenate([[(-0.7, -0.85), (0.7, -0.85)], handle, [(0.5, 0.85), (-0.5, 0.85)]])


@_register
def _bell():
    right = [(0.0, -1.0), (0.16, -0.95), (0.20, -0.8), (0.48, -0.6), (0.62, -0.2), (0.68, 0.3)]
    return _mirrored(right + [(0.95, 0.62), (0.95, 0.75), (0.25, 0.75), (0.18, 0.95), (0.0, 1.0)])


@_register
def _bottle():
    right = [(0.22, -1.0), (0.22, -0.45), (0.34, -0.3), (0.46, -0.1), (0.46, 0.92), (0.38, 1.0)]
    return _mirrored(right)


@_register
def _boat():
    return [(-1.0, 0.3), (-0.05, 0.3), (-0.05, 0.15), (-0.7, 0.15), (0.05, -1.0), (0.05, -0.15)] + [
        (0.75, 0.15),
        (0.1, 0.15),
        (0.1, 0.3),
        (1.0, 0.3),
        (0.6, 0.85),
        (-0.6, 0.85),
    ]
