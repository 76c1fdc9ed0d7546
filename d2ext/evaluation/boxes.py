"""Overlaps of boxes as NumPy arrays.

Shapes: D boxes and G others, or K pairs of two.
"""

import numpy as np

__all__ = ["corners", "paired_inclusive_iou", "paired_iou", "pairwise_iou"]


def corners(boxes: np.ndarray) -> np.ndarray:
    """XYXY of boxes (..., 4) in COCO's form, XYWH."""
    return np.concatenate([boxes[..., :2], boxes[..., :2] + boxes[..., 2:]], axis=-1)


def pairwise_iou(boxes: np.ndarray, others: np.ndarray, crowd: bool = False) -> np.ndarray:
    """(D, G) IoUs of boxes (D, 4) and (G, 4) XYWH; the covered share of ``boxes`` with crowds."""
    return paired_iou(boxes[:, None], others[None], crowd)


def paired_iou(boxes: np.ndarray, others: np.ndarray, crowd: bool = False) -> np.ndarray:
    """IoUs of boxes and others, (K, 4) each in XYWH, or of any shapes that broadcast.

    The areas are width times height, as in pycocotools: from corners they would differ in the last
    digit.
    """
    a, b = corners(boxes), corners(others)
    area, other_area = boxes[..., 2:].prod(axis=-1), others[..., 2:].prod(axis=-1)
    both = _intersection(a, b)
    whole = area if crowd else area + other_area - both
    return both / np.maximum(whole, 1e-12)


def paired_inclusive_iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(K,) IoUs of boxes (K, 4) XYXY whose last row and column belong to them, as PASCAL VOC's."""
    both = _intersection(a, b, 1.0)
    area, other_area = ((x[:, 2:] - x[:, :2] + 1.0).prod(axis=1) for x in (a, b))
    return both / (area + other_area - both)


def _intersection(a: np.ndarray, b: np.ndarray, extra: float = 0.0) -> np.ndarray:
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + extra
    return np.maximum(sides, 0.0).prod(axis=-1)
