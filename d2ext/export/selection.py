"""Class-wise NMS of a whole batch, in operations of ONNX, with outputs of a fixed size.

Shapes: N images, R candidates of an image, C classes, D detections of an image at the most.
"""

from typing import Any, NamedTuple, Tuple

import numpy as np
import torch
from torch.nn import functional as F
from torchvision.ops import nms

__all__ = ["Detections", "best_of", "clip_boxes", "round_down", "select"]

# A score that no candidate has: of padding, and of what is not to be selected.
NOTHING = -1e9


class Detections(NamedTuple):
    """The detections of a batch, best first. Behind the ``count`` of an image all is padding.

    Attributes:
        boxes: (N, D, 4), 0 in the padding.
        scores: (N, D), 0 in the padding.
        classes: (N, D) int64, -1 in the padding.
        count: (N,) int64.
    """

    boxes: torch.Tensor
    scores: torch.Tensor
    classes: torch.Tensor
    count: torch.Tensor  # type: ignore[assignment]  # hides tuple's method


class _ClasswiseNMS(torch.autograd.Function):
    """Which candidates are left: (N * R,) of 0 and 1. In ONNX it is one NonMaxSuppression."""

    @staticmethod
    def forward(
        ctx: Any,
        boxes: torch.Tensor,
        scores: torch.Tensor,
        labels: torch.Tensor,
        num_classes: int,
        iou: float,
        num_candidates: int,
    ) -> torch.Tensor:
        return _kept(boxes, scores, labels, num_classes, iou)

    @staticmethod
    def symbolic(
        g: Any,
        boxes: Any,
        scores: Any,
        labels: Any,
        num_classes: int,
        iou: float,
        num_candidates: int,
    ) -> Any:
        def number(value: Any, dtype: Any) -> Any:
            return g.op("Constant", value_t=torch.tensor(value, dtype=dtype))

        # (N, C, R): a candidate has its score in the row of its class and nothing elsewhere.
        index = number(np.arange(num_classes)[None, :, None], torch.int64)
        label = g.op("Unsqueeze", labels, number([1], torch.int64))
        score = g.op("Unsqueeze", scores, number([1], torch.int64))
        mine = g.op("Equal", label, index)
        dense = g.op("Where", mine, score, number(NOTHING, torch.float32))
        most = number([num_candidates], torch.int64)
        found = g.op(
            "NonMaxSuppression",
            boxes,
            dense,
            most,
            number([iou], torch.float32),
            number([NOTHING / 2], torch.float32),
        )
        image = g.op("Gather", found, number(0, torch.int64), axis_i=1)
        row = g.op("Gather", found, number(2, torch.int64), axis_i=1)
        place = g.op("Add", g.op("Mul", image, most), row)
        total = g.op("ReduceProd", g.op("Shape", scores), keepdims_i=1)
        none = g.op("Expand", number([0.0], torch.float32), total)
        one = g.op("Expand", number([1.0], torch.float32), g.op("Shape", place))
        return g.op("ScatterElements", none, place, one, axis_i=0)


def _kept(
    boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor, num_classes: int, iou: float
) -> torch.Tensor:
    """What the ONNX operator gives, without that operator: boxes of two classes or images never
    touch if each has a place of its own. In float64 the place takes no digit of a box."""
    num_images = scores.shape[0]
    images = torch.arange(num_images, device=boxes.device)[:, None]
    place = (images * num_classes + labels).to(torch.float64).flatten()
    flat = boxes.flatten(0, 1).double()
    step = flat.max() - flat.min() + 1
    kept = nms(flat + (place * step)[:, None], scores.flatten().double(), iou)
    mask = torch.zeros_like(scores.flatten()).index_fill(0, kept, 1.0)
    return mask * (scores.flatten() > NOTHING / 2).to(mask.dtype)


def best_of(scores: torch.Tensor, limit: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """The best scores of each row of (N, M) and their places, padded to ``limit`` of them.

    Padding makes the number to take a constant: one that follows the size of the image would be
    fixed by tracing. A place in the padding is 0.
    """
    best, index = F.pad(scores, (0, limit), value=NOTHING).topk(limit, dim=1)
    return best, index.masked_fill(best <= NOTHING / 2, 0)


def take(rows: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """Rows (N, R, ...) at (N, D): (N, D, ...)."""
    if rows.dim() == 2:
        return rows.gather(1, index)
    return rows.gather(1, index[..., None].expand(-1, -1, rows.shape[-1]))


def select(
    boxes: torch.Tensor,
    scores: torch.Tensor,
    labels: torch.Tensor,
    *,
    num_classes: int,
    iou: float,
    limit: int,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """The candidates that class-wise NMS leaves, the best ``limit`` of an image.

    Args:
        boxes, scores, labels: (N, R, 4), (N, R) and (N, R); a score of NOTHING is not a candidate.
        num_classes: C.
        iou: candidates of a class that overlap more than this are one.
        limit: D.

    Returns:
        Scores (N, D), NOTHING in the padding, and places (N, D).
    """
    candidates = boxes.float(), scores.float(), labels, num_classes, iou
    if torch.onnx.is_in_onnx_export():
        # A constant for the tracer, as some runtimes need it: the number follows from limits.
        kept = _ClasswiseNMS.apply(*candidates, int(scores.shape[1]))
    else:
        kept = _kept(*candidates)
    scores = scores.masked_fill(kept.view_as(scores) < 0.5, NOTHING)
    return best_of(scores, limit)


def finish(
    boxes: torch.Tensor, scores: torch.Tensor, labels: torch.Tensor
) -> Tuple[Detections, torch.Tensor]:
    """Selected candidates as the output; boxes without extent go, as in Detectron2.

    Returns:
        The detections, and the candidate (N, D) that each was.
    """
    empty = (boxes[..., 2:] <= boxes[..., :2]).any(dim=-1)
    scores = scores.masked_fill(empty, NOTHING)
    scores, order = scores.topk(scores.shape[1], dim=1)
    padding = scores <= NOTHING / 2
    found = Detections(
        boxes=take(boxes, order).masked_fill(padding[..., None], 0.0),
        scores=scores.masked_fill(padding, 0.0),
        classes=take(labels, order).masked_fill(padding, -1),
        count=(~padding).sum(dim=1),
    )
    return found, order


def clip_boxes(boxes: torch.Tensor, height: torch.Tensor, width: torch.Tensor) -> torch.Tensor:
    """Boxes (..., 4) moved into an image."""
    x = boxes[..., 0::2].clamp(min=0).minimum(width.to(boxes.dtype))
    y = boxes[..., 1::2].clamp(min=0).minimum(height.to(boxes.dtype))
    return torch.stack((x[..., 0], y[..., 0], x[..., 1], y[..., 1]), dim=-1)


def round_down(threshold: float) -> float:
    """The largest float32 number up to a threshold.

    PyTorch compares float32 overlaps with a float64 threshold, ONNX with one rounded to float32.
    For 0.6 that is above 0.6, and ONNX would keep boxes of an overlap of exactly 3 to 5.
    """
    rounded = np.float32(threshold)
    if float(rounded) > threshold:
        rounded = np.nextafter(rounded, np.float32(-1))
    return float(rounded)
