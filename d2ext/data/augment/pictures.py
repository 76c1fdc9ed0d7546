"""Pictures with annotations, and how geometry moves both.

Shapes: H and W the size of an image.
"""

import copy
from dataclasses import dataclass
from typing import Any, Dict, List, Sequence

import numpy as np
from detectron2.data import transforms as T
from detectron2.structures import BoxMode
from PIL import Image

__all__ = ["Picture", "WarpTransform", "moved", "reach_of"]


@dataclass
class Picture:
    """An image and its objects.

    Attributes:
        image: (H, W, 3) bytes.
        annotations: as in dataset dicts, boxes in XYXY_ABS.
    """

    image: np.ndarray
    annotations: List[Dict[str, Any]]


class WarpTransform(T.Transform):
    """An affine map of the plane onto a canvas; what is not covered is black.

    Args:
        matrix: (2, 3), from the image's coordinates to the canvas'.
        height, width: of the canvas.
    """

    def __init__(self, matrix: np.ndarray, height: int, width: int):
        super().__init__()
        self.matrix = np.asarray(matrix, dtype=np.float64)
        self.height, self.width = height, width

    def apply_image(self, img: np.ndarray) -> np.ndarray:
        return self._warp(img, Image.Resampling.BILINEAR)

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self._warp(segmentation, Image.Resampling.NEAREST)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        return coords @ self.matrix[:, :2].T + self.matrix[:, 2]

    def _warp(self, array: np.ndarray, how: Image.Resampling) -> np.ndarray:
        # Pillow asks where each pixel of the canvas comes from.
        inverse = np.linalg.inv(np.vstack([self.matrix, [0, 0, 1]]))[:2]
        size = (self.width, self.height)
        image = Image.fromarray(array)
        return np.asarray(
            image.transform(size, Image.Transform.AFFINE, inverse.ravel().tolist(), how)
        )


def reach_of(annotations: Sequence[Dict[str, Any]]) -> np.ndarray:
    """(G, 4) boxes as corners."""
    boxes = [
        BoxMode.convert(list(map(float, a["bbox"])), a["bbox_mode"], BoxMode.XYXY_ABS)
        for a in annotations
    ]
    return np.asarray(boxes, dtype=np.float64).reshape(-1, 4)


def moved(
    annotations: Sequence[Dict[str, Any]],
    transform: T.Transform,
    height: int,
    width: int,
    *,
    min_side: float = 0.0,
    min_share: float = 0.0,
    scale: float = 1.0,
    max_aspect: float = 20.0,
) -> List[Dict[str, Any]]:
    """Annotations after a transform, without those of which too little is left.

    Args:
        annotations: of the image before.
        transform: what was done to the image.
        height, width: of the canvas; boxes are clipped to it.
        min_side: both sides have to be larger, in pixels.
        min_share: of the object's own area, scaled, that has to be left.
        scale: by which the transform scales lengths.
        max_aspect: of the longer side to the shorter one.
    """
    if not annotations:
        return []
    before = reach_of(annotations)
    after = transform.apply_box(before)
    after = np.clip(after, 0, [width, height, width, height])
    sides = after[:, 2:] - after[:, :2]
    whole = (before[:, 2:] - before[:, :2]).prod(1) * scale**2
    aspect = sides.max(1) / np.maximum(sides.min(1), 1e-9)
    kept = (sides > min_side).all(1) & (aspect < max_aspect)
    kept &= sides.prod(1) > min_share * whole
    found = []
    for k in np.flatnonzero(kept).tolist():
        item = {**annotations[k], "bbox": after[k].tolist(), "bbox_mode": BoxMode.XYXY_ABS}
        if "segmentation" in item:
            item["segmentation"] = _moved_mask(item["segmentation"], transform)
        if "keypoints" in item:
            item["keypoints"] = _moved_keypoints(item["keypoints"], transform, height, width)
        found.append(item)
    return found


def _moved_mask(mask: Any, transform: T.Transform) -> Any:
    if isinstance(mask, list):
        return [
            transform.apply_coords(np.asarray(p, dtype=np.float64).reshape(-1, 2)).ravel()
            for p in mask
        ]
    from pycocotools import mask as coder

    bits = transform.apply_segmentation(coder.decode(mask).astype(np.uint8))
    return coder.encode(np.asfortranarray(bits))


def _moved_keypoints(points: Any, transform: T.Transform, height: int, width: int) -> List[float]:
    points = np.asarray(copy.copy(points), dtype=np.float64).reshape(-1, 3)
    xy = transform.apply_coords(points[:, :2])
    inside = (xy >= 0).all(1) & (xy <= [width, height]).all(1)
    # As Detectron2 does: what left the image is not labelled, and stands at 0.
    points = np.concatenate([xy, points[:, 2:]], axis=1)
    points[~inside] = 0
    return points.ravel().tolist()
