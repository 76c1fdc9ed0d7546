"""Backgrounds of the scenes: soft textures with clutter that belongs to no class.

Shape letters: H and W height and width of the image.
"""

import colorsys
from typing import Tuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

__all__ = ["draw_background"]


def draw_background(
    rng: np.random.Generator, height: int, width: int, *, clutter: Tuple[int, int]
) -> np.ndarray:
    """Draw a textured background.

    Args:
        rng: the source of randomness.
        height, width: the size.
        clutter: least and largest number of lines, blobs and shards.

    Returns:
        ndarray: (H, W, 3) float32, 0 to 255.
    """
    first, second = _muted(rng), _muted(rng)
    blend = _soft_noise(rng, height, width)
    blend += _pattern(rng, height, width)
    canvas = first + (second - first) * np.clip(blend, 0.0, 1.0)[..., None]
    image = Image.fromarray(canvas.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(int(rng.integers(clutter[0], clutter[1] + 1))):
        _scribble(rng, draw, height, width)
    # Blurring makes clutter as smooth as the objects, which are drawn over it anti-aliased.
    image = image.filter(ImageFilter.BoxBlur(rng.uniform(0.5, 1.4)))
    return np.asarray(image, dtype=np.float32)


def _muted(rng: np.random.Generator, saturation: float = 0.4) -> np.ndarray:
    color = colorsys.hsv_to_rgb(rng.random(), rng.uniform(0.0, saturation), rng.uniform(0.25, 0.95))
    return np.array(color, dtype=np.float32) * 255.0


def _soft_noise(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Two octaves of smooth noise around 0.5."""
    total = np.zeros((height, width), dtype=np.float32)
    for cells, strength in ((int(rng.integers(2, 5)), 0.7), (int(rng.integers(8, 24)), 0.3)):
        grid = rng.random((cells, cells), dtype=np.float32)
        octave = Image.fromarray(grid).resize((width, height), Image.Resampling.BICUBIC)
        total += strength * np.asarray(octave)
    return total


def _pattern(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Weak stripes, checks or nothing, at any angle."""
    kind = int(rng.integers(3))
    if kind == 0:
        return np.zeros((1, 1), dtype=np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(8, 40)
    xs, ys = np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32)[:, None]
    k, c, s = np.float32(2 * np.pi / period), np.float32(np.cos(angle)), np.float32(np.sin(angle))
    wave = np.sin(k * (c * xs + s * ys))
    if kind == 2:
        wave = wave * np.sin(k * (s * xs - c * ys))
    return np.float32(rng.uniform(0.06, 0.22)) * wave


def _scribble(rng: np.random.Generator, draw: ImageDraw.ImageDraw, height: int, width: int):
    """One line, curve, blob or shard."""
    color = tuple(int(c) for c in _muted(rng, 0.65))
    x, y = rng.uniform(0, width), rng.uniform(0, height)
    kind = int(rng.integers(4))
    if kind == 0:
        dx, dy = rng.uniform(-0.6, 0.6, 2) * (width, height)
        draw.line([(x, y), (x + dx, y + dy)], fill=color, width=int(rng.integers(1, 5)))
    elif kind == 1:
        steps = rng.normal(0.0, 14.0, (8, 2)).cumsum(axis=0) + (x, y)
        draw.line([tuple(p) for p in steps.tolist()], fill=color, width=int(rng.integers(1, 4)))
    elif kind == 2:
        rx, ry = rng.uniform(3, 26, 2)
        draw.ellipse([x - rx, y - ry, x + rx, y + ry], fill=color)
    else:
        corners = rng.normal(0.0, 12.0, (4, 2)) + (x, y)
        draw.polygon([tuple(p) for p in corners.tolist()], fill=color)
