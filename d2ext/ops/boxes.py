"""Losses between two lists of boxes, row by row, and the overlap they are made of.

Shapes: K pairs of boxes. Boxes are (x1, y1, x2, y2), continuous coordinates.

The arithmetic is that of fvcore's ``giou_loss`` and Detectron2's ``diou_loss`` and ``ciou_loss``,
operation by operation, so values and gradients have equal bits. Three things differ: nothing here
asserts on the boxes' order (each assertion is a host-device sync), a box without
height does not turn CIoU into NaN, and half precision is computed in float32: the area of a box of
300 x 300 pixels is infinite in float16.

A NaN in a row makes that row's loss NaN, and no other's. An infinite box has IoU 0 with a finite
one, or NaN, and no enclosing box: GIoU, DIoU and CIoU are NaN. The slope of GIoU where the
enclosing box has no area (two lines along one another), and of CIoU where a box has none, is of
the size of a side over ``EPS``: finite, but not in float16.
"""

import math
from typing import Tuple

import torch

from .precision import full_precision

__all__ = [
    "box_deltas",
    "centre_distance",
    "ciou_loss",
    "diou_loss",
    "enclosing_sides",
    "giou_loss",
    "iou_loss",
    "pair_iou",
    "smooth_l1_loss",
]

EPS = 1e-7


def box_deltas(
    sources: torch.Tensor, targets: torch.Tensor, weights: Tuple[float, float, float, float]
) -> torch.Tensor:
    """Shifts of the centres in sizes and logarithms of the ratios of sizes, weighted: (K, 4).

    Bit for bit what Detectron2's ``Box2BoxTransform.get_deltas`` returns.
    """
    widths, heights = sources[:, 2] - sources[:, 0], sources[:, 3] - sources[:, 1]
    x, y = sources[:, 0] + 0.5 * widths, sources[:, 1] + 0.5 * heights
    target_widths, target_heights = targets[:, 2] - targets[:, 0], targets[:, 3] - targets[:, 1]
    target_x = targets[:, 0] + 0.5 * target_widths
    target_y = targets[:, 1] + 0.5 * target_heights
    wx, wy, ww, wh = weights
    return torch.stack(
        (
            wx * (target_x - x) / widths,
            wy * (target_y - y) / heights,
            ww * torch.log(target_widths / widths),
            wh * torch.log(target_heights / heights),
        ),
        dim=1,
    )


def _overlap(boxes1: torch.Tensor, boxes2: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """Intersection and union areas of each row, both (K,)."""
    x1, y1, x2, y2 = boxes1.unbind(dim=-1)
    x1g, y1g, x2g, y2g = boxes2.unbind(dim=-1)
    left, top = torch.max(x1, x1g), torch.max(y1, y1g)
    right, bottom = torch.min(x2, x2g), torch.min(y2, y2g)
    # A strict mask, not a clamp: touching boxes must have no gradient.
    meets = (bottom > top) & (right > left)
    intersection = torch.where(meets, (right - left) * (bottom - top), torch.zeros_like(x1))
    union = (x2 - x1) * (y2 - y1) + (x2g - x1g) * (y2g - y1g) - intersection
    return intersection, union


def enclosing_sides(
    boxes1: torch.Tensor, boxes2: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Width and height of the smallest box around each row's two boxes, both (K,)."""
    top_left = torch.min(boxes1[..., :2], boxes2[..., :2])
    bottom_right = torch.max(boxes1[..., 2:], boxes2[..., 2:])
    width, height = (bottom_right - top_left).unbind(dim=-1)
    return width, height


def centre_distance(boxes1: torch.Tensor, boxes2: torch.Tensor) -> torch.Tensor:
    """Squared distance of the centres of each row's two boxes: (K,)."""
    x1, y1, x2, y2 = boxes1.unbind(dim=-1)
    x1g, y1g, x2g, y2g = boxes2.unbind(dim=-1)
    return (((x2 + x1) / 2 - (x1g + x2g) / 2) ** 2) + (((y2 + y1) / 2 - (y1g + y2g) / 2) ** 2)


def pair_iou(boxes1: torch.Tensor, boxes2: torch.Tensor, eps: float = EPS) -> torch.Tensor:
    """IoU of each row of two (K, 4) box tensors: (K,), differentiable, 0 for disjoint boxes."""
    intersection, union = _overlap(full_precision(boxes1), full_precision(boxes2))
    return intersection / (union + eps)


def iou_loss(boxes1: torch.Tensor, boxes2: torch.Tensor, eps: float = EPS) -> torch.Tensor:
    """``1 - IoU`` of each row: (K,)."""
    return 1 - pair_iou(boxes1, boxes2, eps)


def giou_loss(boxes1: torch.Tensor, boxes2: torch.Tensor, eps: float = EPS) -> torch.Tensor:
    """Generalised IoU loss (Rezatofighi et al., 2019) of each row: (K,)."""
    boxes1, boxes2 = full_precision(boxes1), full_precision(boxes2)
    intersection, union = _overlap(boxes1, boxes2)
    width, height = enclosing_sides(boxes1, boxes2)
    area = width * height
    return 1 - (intersection / (union + eps) - (area - union) / (area + eps))


def _distance_terms(
    boxes1: torch.Tensor, boxes2: torch.Tensor, eps: float
) -> Tuple[torch.Tensor, torch.Tensor]:
    """IoU and squared centre distance over squared diagonal of the enclosing box, both (K,)."""
    intersection, union = _overlap(boxes1, boxes2)
    iou = intersection / (union + eps)
    width, height = enclosing_sides(boxes1, boxes2)
    diagonal = (width**2) + (height**2) + eps
    return iou, centre_distance(boxes1, boxes2) / diagonal


def diou_loss(boxes1: torch.Tensor, boxes2: torch.Tensor, eps: float = EPS) -> torch.Tensor:
    """Distance-IoU loss (Zheng et al., 2020) of each row: (K,)."""
    iou, distance = _distance_terms(full_precision(boxes1), full_precision(boxes2), eps)
    return 1 - iou + distance


def ciou_loss(boxes1: torch.Tensor, boxes2: torch.Tensor, eps: float = EPS) -> torch.Tensor:
    """Complete-IoU loss (Zheng et al., 2020) of each row: (K,). ``boxes2`` is the ground truth."""
    boxes1, boxes2 = full_precision(boxes1), full_precision(boxes2)
    iou, distance = _distance_terms(boxes1, boxes2, eps)
    width, height = (boxes1[..., 2:] - boxes1[..., :2]).unbind(dim=-1)
    width_gt, height_gt = (boxes2[..., 2:] - boxes2[..., :2]).unbind(dim=-1)
    # Without the clamp a box of no height gives 0/0 here and NaN in every parameter.
    angle = torch.atan(width_gt / height_gt.clamp(min=eps)) - torch.atan(
        width / height.clamp(min=eps)
    )
    v = (4 / (math.pi**2)) * torch.pow(angle, 2)
    with torch.no_grad():
        alpha = v / (1 - iou + v + eps)
    return 1 - iou + distance + alpha * v


def smooth_l1_loss(input: torch.Tensor, target: torch.Tensor, beta: float = 0.0) -> torch.Tensor:
    """Smooth L1 of each number; plain L1 for ``beta`` below 1e-5. Same shape as ``input``."""
    n = torch.abs(full_precision(input) - full_precision(target))
    if beta < 1e-5:  # 0.5 n^2 / 0 in the branch not taken would make NaN gradients
        return n
    return torch.where(n < beta, 0.5 * n**2 / beta, n - 0.5 * beta)
