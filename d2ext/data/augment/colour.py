"""Random changes of hue, saturation and brightness, as in YOLOX's recipes."""

from typing import Tuple

import numpy as np
from detectron2.data import transforms as T
from PIL import Image

__all__ = ["RandomHSV"]


class _HSVTransform(T.Transform):
    """Scales hue, saturation and value of an image by factors; coordinates stay."""

    def __init__(self, factors: np.ndarray, image_format: str):
        super().__init__()
        self.factors, self.image_format = factors, image_format

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        rgb = img[..., ::-1] if self.image_format == "BGR" else img
        # One look-up table a channel. Hue goes round; the others end.
        levels = np.arange(256)
        hue = (levels * self.factors[0]) % 256
        others = [np.clip(levels * factor, 0, 255) for factor in self.factors[1:]]
        table = np.concatenate([hue, *others]).astype(np.uint8).tolist()
        image = Image.fromarray(np.ascontiguousarray(rgb)).convert("HSV").point(table)
        changed = np.asarray(image.convert("RGB"))
        return np.ascontiguousarray(changed[..., ::-1]) if self.image_format == "BGR" else changed

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return segmentation


class RandomHSV(T.Augmentation):
    """Multiplies hue, saturation and value by 1 + U(-1, 1) * strength each.

    Args:
        strength: of hue, saturation and value; YOLOX's are 0.015, 0.7, 0.4.
        image_format: "RGB" or "BGR".
    """

    def __init__(
        self,
        strength: Tuple[float, float, float] = (0.015, 0.7, 0.4),
        image_format: str = "BGR",
    ):
        super().__init__()
        self.strength, self.image_format = strength, image_format

    def get_transform(self, image: np.ndarray) -> T.Transform:
        factors = 1 + np.random.uniform(-1, 1, 3) * np.asarray(self.strength)
        return _HSVTransform(factors, self.image_format)
