"""Mosaic, random affine and mixup as in YOLOX's recipes, and copy-paste.

The constants are YOLOX's; an image is composed from several of the data set, each drawn uniformly
with replacement. Copy-paste is the simple one of Ghiasi et al. (CVPR 2021).

Shapes: H and W the size of an image, S the side of a composed one.
"""

from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
from detectron2.structures import BoxMode
from PIL import Image

from .pictures import Picture, WarpTransform, moved, reach_of

__all__ = ["copy_paste", "mixup", "mosaic", "random_affine", "random_crop"]

_ROTATION, _SHEAR = 10.0, 2.0  # degrees
_SCALE, _SHIFT = (0.1, 2.0), (0.4, 0.6)
_MIXUP_SCALE = (0.8, 1.6)
_MIN_SHARE = 0.2
# An object is left out if less of it than this is visible behind pasted ones.
_MIN_VISIBLE = 0.3


def mosaic(pictures: Sequence[Picture], side: int) -> Picture:
    """Four pictures around a point of a canvas of (2 S, 2 S).

    Args:
        pictures: four, each fitted into S x S.
        side: S.
    """
    height = width = 2 * side
    canvas = np.zeros((height, width, 3), dtype=np.uint8)
    y, x = (int(np.random.uniform(0.5 * side, 1.5 * side)) for _ in range(2))
    annotations: List[Dict[str, Any]] = []
    for k, picture in enumerate(pictures):
        image, matrix = _fitted(picture.image, side)
        h, w = image.shape[:2]
        left, top = (x - w if k % 2 == 0 else x), (y - h if k < 2 else y)
        _paste(canvas, image, left, top)
        matrix[:, 2] = left, top
        warp = WarpTransform(matrix, height, width)
        annotations += moved(picture.annotations, warp, height, width)
    return Picture(canvas, annotations)


def random_affine(picture: Picture, side: int) -> Picture:
    """Turn, scale, shear and shift a picture about its centre; S x S of it are left."""
    height, width = picture.image.shape[:2]
    angle = np.deg2rad(np.random.uniform(-_ROTATION, _ROTATION))
    scale = np.random.uniform(*_SCALE)
    shear_x, shear_y = np.tan(np.deg2rad(np.random.uniform(-_SHEAR, _SHEAR, 2)))
    shift = np.random.uniform(*_SHIFT, 2) * side
    centre = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]])
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    turn = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])
    lean = np.array([[1, shear_x, 0], [shear_y, 1, 0], [0, 0, 1]])
    move = np.array([[1, 0, shift[0]], [0, 1, shift[1]], [0, 0, 1]])
    warp = WarpTransform((move @ lean @ turn @ centre)[:2], side, side)
    annotations = moved(
        picture.annotations, warp, side, side, min_side=2.0, min_share=_MIN_SHARE, scale=scale
    )
    return Picture(warp.apply_image(picture.image), annotations)


def mixup(picture: Picture, partner: Picture, side: int) -> Picture:
    """Half of a picture and half of another one; unchanged if no object of the latter is left.

    Args:
        picture: (S, S).
        partner: of any size; fitted into S x S, rescaled and cropped at random.
        side: S.
    """
    fitted, matrix = _fitted(partner.image, side)
    factor = np.random.uniform(*_MIXUP_SCALE)
    large = np.zeros((side, side, 3), dtype=np.uint8)
    large[: fitted.shape[0], : fitted.shape[1]] = fitted
    scaled = int(side * factor)
    large = _resized(large, scaled, scaled)
    canvas = np.zeros((max(scaled, side),) * 2 + (3,), dtype=np.uint8)
    canvas[:scaled, :scaled] = large
    spare = canvas.shape[0] - side
    top, left = (np.random.randint(0, spare) if spare > 0 else 0 for _ in range(2))
    other = canvas[top : top + side, left : left + side]
    matrix = matrix * (scaled / side)
    matrix[:, 2] -= left, top
    warp = WarpTransform(matrix, side, side)
    scale = float(np.sqrt(matrix[0, 0] * matrix[1, 1]))
    added = moved(
        partner.annotations, warp, side, side, min_side=5.0, min_share=_MIN_SHARE, scale=scale
    )
    if not added:
        return picture
    both = (0.5 * picture.image + 0.5 * other).astype(np.uint8)
    return Picture(both, [*picture.annotations, *added])


def random_crop(picture: Picture, least: float) -> Picture:
    """A part of a picture, with objects of which a fifth or more is left.

    Detectron2's crop needs the package shapely for polygons; here they reach beyond the picture, as
    after a mosaic, and the masks that are drawn of them end with it.

    Args:
        picture: of any size.
        least: share of each side that is left at least.
    """
    height, width = picture.image.shape[:2]
    h, w = (int(round(side * np.random.uniform(least, 1))) for side in (height, width))
    top, left = np.random.randint(0, height - h + 1), np.random.randint(0, width - w + 1)
    warp = WarpTransform(np.array([[1.0, 0, -left], [0, 1.0, -top]]), h, w)
    annotations = moved(picture.annotations, warp, h, w, min_side=1.0, min_share=_MIN_SHARE)
    return Picture(picture.image[top : top + h, left : left + w], annotations)


def copy_paste(picture: Picture, partner: Picture) -> Picture:
    """Paste some of another picture's objects, by their masks, or by their boxes if they have none.

    The partner is scaled to the picture's size. What pasted objects cover is taken from the masks
    behind them, whose boxes shrink with them; objects that are nearly covered are left out.

    Args:
        picture, partner: of any sizes.
    """
    height, width = picture.image.shape[:2]
    h, w = partner.image.shape[:2]
    warp = WarpTransform(np.array([[width / w, 0, 0], [0, height / h, 0]]), height, width)
    objects = moved(partner.annotations, warp, height, width, min_side=1.0)
    chosen = [item for item in objects if np.random.rand() < 0.5]
    if not chosen:
        return picture
    covered = np.zeros((height, width), dtype=bool)
    for item in chosen:
        covered |= _region(item, height, width)
    image = picture.image.copy()
    image[covered] = _resized(partner.image, width, height)[covered]
    behind = [_behind(item, covered) for item in picture.annotations]
    return Picture(image, [item for item in behind if item is not None] + chosen)


def _behind(item: Dict[str, Any], covered: np.ndarray) -> Any:
    """An object behind what was pasted; None if too little of it is visible."""
    height, width = covered.shape
    region = _region(item, height, width)
    seen = region & ~covered
    if seen.sum() == region.sum():
        return item
    if seen.sum() < _MIN_VISIBLE * max(region.sum(), 1):
        return None
    if not item.get("segmentation"):
        return item
    from pycocotools import mask as coder

    rows, columns = np.flatnonzero(seen.any(1)), np.flatnonzero(seen.any(0))
    box = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    code = coder.encode(np.asfortranarray(seen.astype(np.uint8)))
    box = np.asarray(box, dtype=np.float64).tolist()
    return {**item, "bbox": box, "bbox_mode": BoxMode.XYXY_ABS, "segmentation": code}


def _region(item: Dict[str, Any], height: int, width: int) -> np.ndarray:
    """(H, W) bool, the pixels of an object's mask, or of its box."""
    mask = item.get("segmentation")
    if not mask:
        x1, y1, x2, y2 = reach_of([item])[0]
        region = np.zeros((height, width), dtype=bool)
        region[int(round(y1)) : int(round(y2)), int(round(x1)) : int(round(x2))] = True
        return region
    from pycocotools import mask as coder

    if isinstance(mask, list):
        pieces = [np.asarray(p, dtype=np.float64).tolist() for p in mask]
        mask = coder.merge(coder.frPyObjects(pieces, height, width))
    return coder.decode(mask).astype(bool)


def _fitted(image: np.ndarray, side: int) -> Tuple[np.ndarray, np.ndarray]:
    """An image scaled to fit into S x S, and the matrix of that."""
    h, w = image.shape[:2]
    scale = min(side / h, side / w)
    height, width = max(int(h * scale), 1), max(int(w * scale), 1)
    return _resized(image, width, height), np.array([[width / w, 0.0, 0.0], [0.0, height / h, 0.0]])


def _resized(image: np.ndarray, width: int, height: int) -> np.ndarray:
    if image.shape[:2] == (height, width):
        return image
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def _paste(canvas: np.ndarray, image: np.ndarray, left: int, top: int) -> None:
    height, width = canvas.shape[:2]
    y1, x1 = max(top, 0), max(left, 0)
    y2, x2 = min(top + image.shape[0], height), min(left + image.shape[1], width)
    canvas[y1:y2, x1:x2] = image[y1 - top : y2 - top, x1 - left : x2 - left]
