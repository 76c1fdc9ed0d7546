"""Boxes, names and masks drawn onto an image: the one drawer of pictures, sheets and videos.

Shapes: H and W the size of an image, K boxes.
"""

import colorsys
import functools
from typing import Any, List, Optional, Sequence, Tuple

import numpy as np
from PIL import Image, ImageColor, ImageDraw, ImageFont

from d2ext._text import printable

__all__ = ["class_color", "draw_boxes", "draw_instances", "show_boxes"]


def class_color(index: int) -> str:
    """A colour of a class; neighbouring classes differ (steps of the golden ratio)."""
    values = colorsys.hsv_to_rgb((index * 0.618034) % 1.0, 0.85, 0.8)
    return "#{:02x}{:02x}{:02x}".format(*(int(v * 255) for v in values))


def draw_boxes(
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[str],
    colors: Sequence[str],
    *,
    masks: Optional[Sequence[np.ndarray]] = None,
    scale: float = 1.0,
) -> Image.Image:
    """Draw boxes, their labels and, where there are some, masks.

    Args:
        image: (H, W, 3) uint8, RGB.
        boxes: (K, 4) XYXY in pixels of the image; the first one is on top.
        labels: K texts; "" draws none.
        colors: K, as "#rrggbb".
        masks: K of (H, W) bool.
        scale: the image is enlarged by it first, so that small ones have room for names.

    Returns:
        the picture, of ``scale`` times the image's size
    """
    pixels = np.array(image)
    for mask, color in zip(() if masks is None else masks, colors):
        paint = np.array(ImageColor.getrgb(color), dtype=np.float32)
        pixels[mask] = (0.55 * pixels[mask] + 0.45 * paint).astype(np.uint8)
    picture = Image.fromarray(pixels)
    if scale != 1:
        width, height = (max(1, round(side * scale)) for side in picture.size)
        picture = picture.resize((width, height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(picture)
    font = _font(max(11, min(round(min(picture.size) / 34), 40)))
    width = max(2, round(min(picture.size) / 180))
    placed = [[v * scale for v in box] for box in np.asarray(boxes, dtype=np.float64).tolist()]
    for (x1, y1, x2, y2), label, color in reversed(list(zip(placed, labels, colors))):
        box = (min(x1, x2), min(y1, y2), max(x1, x2), max(y1, y2))
        draw.rectangle(box, outline=color, width=width)
        if label:
            _draw_label(draw, printable(label, 60), box, color, font, picture.size)
    return picture


def _draw_label(
    draw: Any, text: str, box: Tuple, color: str, font: Any, size: Tuple[int, int]
) -> None:
    """The label above its box, or inside where it would leave the image."""
    left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
    width, height = right - left + 4, bottom - top + 4
    x = min(max(box[0], 0), max(size[0] - width, 0))
    y = box[1] - height if box[1] >= height else min(max(box[1], 0), max(size[1] - height, 0))
    draw.rectangle((x, y, x + width, y + height), fill=color)
    red, green, blue = ImageColor.getrgb(color)[:3]
    dark = 0.299 * red + 0.587 * green + 0.114 * blue < 140
    draw.text((x + 2 - left, y + 2 - top), text, fill="white" if dark else "black", font=font)


@functools.lru_cache(maxsize=8)
def _font(size: int) -> Any:
    """Matplotlib's own font, which has more scripts than Pillow's."""
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def draw_instances(image: np.ndarray, instances: Any, class_names: List[str]) -> Image.Image:
    """Draw detections with their names and scores, the best on top of the others.

    Args:
        image: (H, W, 3) in RGB.
        instances: detections on the CPU, in pixels of the image.
        class_names: name of each class.
    """
    classes, scores = instances.pred_classes.tolist(), instances.scores.tolist()
    return draw_boxes(
        image,
        instances.pred_boxes.tensor.numpy(),
        [f"{class_names[c]} {score:.2f}" for c, score in zip(classes, scores)],
        [class_color(c) for c in classes],
        masks=instances.pred_masks.numpy() if instances.has("pred_masks") else None,
    )


def show_boxes(
    axes: Any,
    image: np.ndarray,
    boxes: np.ndarray,
    labels: Sequence[str],
    colors: Sequence[str],
    side: int = 640,
) -> None:
    """:func:`draw_boxes` into a panel of a figure, whose axes count pixels of the image.

    Args:
        axes: matplotlib's.
        image, boxes, labels, colors: see :func:`draw_boxes`.
        side: pixels that the longer side of the picture has at least.
    """
    height, width = image.shape[:2]
    picture = draw_boxes(image, boxes, labels, colors, scale=max(1.0, side / max(height, width)))
    axes.imshow(np.asarray(picture), extent=(-0.5, width - 0.5, height - 0.5, -0.5))
    axes.set_axis_off()
