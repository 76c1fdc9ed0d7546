"""Boxes as four columns, (4, ...): overlaps and distances of very many pairs.

Columns are contiguous, so that a block of pairs is worked on without a stride; shapes broadcast.

Shapes: R points, g objects.
"""

import math

import torch

from .prediction_candidates import widened

__all__ = ["are_inside", "column_ciou", "column_iou", "nearest_side", "widened_columns"]


def nearest_side(point: torch.Tensor, box: torch.Tensor) -> torch.Tensor:
    """Distance from points (2, ...) to the nearest side of boxes (4, ...), negative outside."""
    near = torch.minimum(point[0] - box[0], box[2] - point[0])
    torch.minimum(near, point[1] - box[1], out=near)
    return torch.minimum(near, box[3] - point[1], out=near)


def are_inside(points: torch.Tensor, boxes: torch.Tensor, margin: float) -> torch.Tensor:
    """(g, R), whether points (R, 2) are inside boxes (g, 4) by more than the margin."""
    return nearest_side(points.t().contiguous(), boxes.t()[..., None]) > margin


def widened_columns(box: torch.Tensor, min_side: float) -> torch.Tensor:
    """:func:`widened` for boxes (4, ...)."""
    return widened(box.flatten(1).t(), min_side).t().view_as(box) if min_side > 0 else box


def _meet(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Area of the intersection of boxes (4, ...) whose shapes broadcast."""
    width = torch.minimum(a[2], b[2]).sub_(torch.maximum(a[0], b[0])).clamp_(min=0)
    height = torch.minimum(a[3], b[3]).sub_(torch.maximum(a[1], b[1])).clamp_(min=0)
    return width.mul_(height)


def column_iou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """IoU of boxes (4, ...) whose shapes broadcast; a union is at least 1e-6."""
    meet = _meet(a, b)
    area_a, area_b = ((x[2] - x[0]) * (x[3] - x[1]) for x in (a, b))
    return meet.div_((area_a + area_b).sub_(meet).clamp_(min=1e-6))


def column_ciou(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Complete IoU of boxes (4, ...) whose shapes broadcast, no less than 0, as YOLO has it."""
    eps = 1e-7
    meet = _meet(a, b)
    (wa, ha), (wb, hb) = ((x[2] - x[0], x[3] - x[1] + eps) for x in (a, b))
    iou = meet.div_((wa * ha + wb * hb).sub_(meet).add_(eps))
    hull_w = torch.maximum(a[2], b[2]).sub_(torch.minimum(a[0], b[0]))
    hull_h = torch.maximum(a[3], b[3]).sub_(torch.minimum(a[1], b[1]))
    diagonal = hull_w.square_().add_(hull_h.square_()).add_(eps)
    apart = (b[0] + b[2] - (a[0] + a[2])).square_()
    apart = apart.add_((b[1] + b[3] - (a[1] + a[3])).square_()).div_(4)
    v = ((wb / hb).atan() - (wa / ha).atan()).square_().mul_(4 / math.pi**2)
    shape_term = v.square() / (v - iou + (1 + eps))
    return iou.sub_(apart.div_(diagonal)).sub_(shape_term).clamp_(min=0)
