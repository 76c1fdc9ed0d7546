"""Resizing by the longest side, a size drawn for each image, as in the YOLOX of EFL's authors."""

from typing import List, Sequence

import numpy as np
from detectron2.data import transforms as T

__all__ = ["ResizeLongestEdge", "by_longest_side"]


class ResizeLongestEdge(T.Augmentation):
    """Scales an image, up or down, so that its longest side is one of ``sizes``."""

    def __init__(self, sizes: Sequence[int]):
        super().__init__()
        self.sizes = list(sizes)

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        scale = np.random.choice(self.sizes) / max(height, width)
        new = [max(1, int(side * scale + 0.5)) for side in (height, width)]
        return T.ResizeTransform(height, width, *new)


def by_longest_side(augmentations: List[T.Augmentation], sizes: Sequence[int]) -> List:
    """The augmentations with that in place of Detectron2's resize by the shortest side."""
    resize = ResizeLongestEdge(sizes)
    return [resize if isinstance(a, T.ResizeShortestEdge) else a for a in augmentations]
