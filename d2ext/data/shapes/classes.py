"""What the classes look like: each is an outline, a fill pattern and a colour family."""

import colorsys
import dataclasses
from typing import Dict, List, Tuple

import numpy as np

__all__ = [
    "COLORS",
    "FILLS",
    "ShapeClass",
    "common_classes",
    "fill_distance",
    "long_tail_classes",
    "sample_colors",
]


@dataclasses.dataclass(frozen=True)
class ShapeClass:
    """One class of objects.

    Attributes:
        name: the class name.
        outline: a name of :mod:`.outlines`.
        fill: one of :data:`FILLS`.
        color: a key of :data:`COLORS`.
        accent: "light" or "dark", how the second colour of the pattern differs from the first.
    """

    name: str
    outline: str
    fill: str
    color: str
    accent: str = "light"


# Colour families: hue in degrees, then the ranges of saturation and value.
COLORS: Dict[str, Tuple[float, Tuple[float, float], Tuple[float, float]]] = {
    "red": (357.0, (0.75, 0.95), (0.75, 0.95)),
    "orange": (27.0, (0.80, 1.00), (0.90, 1.00)),
    "yellow": (52.0, (0.75, 0.95), (0.92, 1.00)),
    "green": (118.0, (0.60, 0.85), (0.50, 0.75)),
    "teal": (174.0, (0.65, 0.95), (0.60, 0.85)),
    "blue": (218.0, (0.65, 0.90), (0.70, 0.95)),
    "violet": (272.0, (0.50, 0.75), (0.60, 0.85)),
    "pink": (325.0, (0.45, 0.70), (0.90, 1.00)),
    "brown": (22.0, (0.55, 0.75), (0.35, 0.50)),
    "gray": (220.0, (0.00, 0.10), (0.70, 0.92)),
}

# Distances are in units of half the object's size; a positive value means "second colour".
FILLS: Tuple[str, ...] = ("solid", "striped", "dotted", "checked", "ringed", "barred")


def fill_distance(fill: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """How far each point is inside the second colour of a pattern.

    Args:
        fill: one of :data:`FILLS`.
        u, v: coordinates in the object's own frame, [-1, 1]; any shape.

    Returns:
        ndarray: signed distance, roughly; positive inside the second colour.
    """
    if fill == "striped":  # oblique stripes
        return _wave((u + v) * 0.7071, 0.56)
    if fill == "barred":  # one broad upright bar: few edges, so it still shows on small objects
        return _wave(u, 1.1)
    if fill == "ringed":
        return _wave(np.hypot(u, v) + 0.14, 0.56)
    if fill == "dotted":
        cell_u, cell_v = np.abs(_cell(u, 0.56)), np.abs(_cell(v, 0.56))
        return 0.17 - np.hypot(cell_u, cell_v)
    if fill == "checked":
        a, b = _wave(u, 0.9), _wave(v, 0.9)
        return np.where(a * b > 0, 1.0, -1.0) * np.minimum(np.abs(a), np.abs(b))
    raise ValueError(f"Unknown fill '{fill}'; choose one of {', '.join(FILLS)}.")


def _cell(x: np.ndarray, period: float) -> np.ndarray:
    """Offset from the nearest multiple of the period."""
    return x - np.round(x / period) * period


def _wave(x: np.ndarray, period: float) -> np.ndarray:
    """Signed distance to the nearest edge of a square wave that is positive around 0."""
    return period / 4 - np.abs(_cell(x, period))


def sample_colors(rng: np.random.Generator, cls: ShapeClass, hue_jitter: float) -> np.ndarray:
    """Draw the two colours of one object.

    Args:
        rng: the source of randomness.
        cls: the class.
        hue_jitter: largest deviation of the hue, in degrees.

    Returns:
        ndarray: (2, 3) float32, first and second colour, 0 to 255.
    """
    hue, saturation, value = COLORS[cls.color]
    hue = (hue + rng.uniform(-hue_jitter, hue_jitter)) % 360.0 / 360.0
    first = np.array(colorsys.hsv_to_rgb(hue, rng.uniform(*saturation), rng.uniform(*value)))
    strength = rng.uniform(0.6, 0.8)
    second = first + (1.0 - first) * strength if cls.accent == "light" else first * (1 - strength)
    return (np.stack([first, second]) * 255.0).astype(np.float32)


def common_classes() -> List[ShapeClass]:
    """The twenty classes of ``d2ext_shapes`` and ``d2ext_shapes_voc``.

    Two share each colour family. Confusable on purpose: ball and target (only the fill differs),
    star and sun, leaf and tree, fish and drop.
    """
    rows = [
        ("ball", "circle", "striped", "red", "light"),
        ("target", "circle", "ringed", "red", "light"),
        ("bolt", "bolt", "solid", "orange", "light"),
        ("house", "house", "checked", "orange", "dark"),
        ("star", "star", "solid", "yellow", "light"),
        ("sun", "sun", "ringed", "yellow", "dark"),
        ("leaf", "leaf", "striped", "green", "light"),
        ("tree", "tree", "solid", "green", "light"),
        ("arrow", "arrow", "barred", "teal", "dark"),
        ("cross", "cross", "checked", "teal", "light"),
        ("drop", "drop", "solid", "blue", "light"),
        ("fish", "fish", "striped", "blue", "light"),
        ("kite", "kite", "checked", "violet", "light"),
        ("butterfly", "butterfly", "dotted", "violet", "dark"),
        ("heart", "heart", "solid", "pink", "light"),
        ("flower", "flower", "dotted", "pink", "dark"),
        ("mushroom", "mushroom", "dotted", "brown", "light"),
        ("cup", "cup", "barred", "brown", "light"),
        ("moon", "moon", "solid", "gray", "light"),
        ("gear", "gear", "ringed", "gray", "dark"),
    ]
    return [ShapeClass(*row) for row in rows]


# fmt: off
_LONG_TAIL_OUTLINES = (
    "circle", "square", "triangle", "hexagon", "star", "sparkle", "cross", "heart", "flower",
    "leaf", "drop", "moon", "gear", "arrow", "bolt", "house", "fish", "crown", "hourglass",
    "bottle",
)
# fmt: on


def long_tail_classes() -> List[ShapeClass]:
    """The sixty classes of ``d2ext_shapes_lt``, the most frequent first.

    Twenty outlines in three versions, which differ in fill and colour: a rare class shares its
    outline with a frequent one, as a rare breed does with a common one. Twenty classes in a row
    have different outlines, so every outline is found in every part of the tail.
    """
    colors, classes = list(COLORS), []
    for version in range(3):
        for i in range(len(_LONG_TAIL_OUTLINES)):
            # 7 is prime to 20, so each version runs through the outlines in another order.
            shape = (7 * i + 5 * version) % len(_LONG_TAIL_OUTLINES)
            color = colors[(shape + 3 * version) % len(colors)]
            fill = FILLS[(shape // 2 + shape + 2 * version) % len(FILLS)]
            accent = "light" if (shape + version) % 2 == 0 else "dark"
            name = f"{color}_{fill}_{_LONG_TAIL_OUTLINES[shape]}"
            classes.append(ShapeClass(name, _LONG_TAIL_OUTLINES[shape], fill, color, accent))
    return classes
