"""Detections drawn onto an image, without matplotlib: fast enough for videos."""

import colorsys
from typing import Any, List, Tuple

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["class_color", "draw_instances"]


def class_color(index: int) -> Tuple[int, int, int]:
    """An RGB colour of a class; neighbouring classes differ (steps of the golden ratio)."""
    red, green, blue = colorsys.hsv_to_rgb((index * 0.618034) % 1.0, 0.85, 0.8)
    return int(red * 255), int(green * 255), int(blue * 255)


def draw_instances(image: np.ndarray, instances: Any, class_names: List[str]) -> Image.Image:
    """Draw boxes, names, scores and, where there are some, masks.

    Args:
        image: (H, W, 3) in RGB.
        instances: detections on the CPU, in pixels of the image.
        class_names: name of each class.
    """
    classes = instances.pred_classes.tolist()
    pixels = np.array(image)
    if instances.has("pred_masks"):
        for mask, index in zip(instances.pred_masks.numpy(), classes):
            color = np.array(class_color(index), dtype=np.float32)
            pixels[mask] = (0.55 * pixels[mask] + 0.45 * color).astype(np.uint8)
    picture = Image.fromarray(pixels)
    draw = ImageDraw.Draw(picture)
    boxes, scores = instances.pred_boxes.tensor.tolist(), instances.scores.tolist()
    # The best last, on top of the others.
    for box, index, score in reversed(list(zip(boxes, classes, scores))):
        color = class_color(index)
        draw.rectangle(box, outline=color, width=2)
        text = f"{class_names[index]} {score:.2f}"
        x, y = max(box[0], 0), max(box[1] - 11, 0)
        draw.rectangle(draw.textbbox((x, y), text), fill=color)
        draw.text((x, y), text, fill=(255, 255, 255))
    return picture
