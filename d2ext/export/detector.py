"""A dense detector without anything but inference, in operations that every exporter knows.

Shapes: H and W the size of an image, R anchors or points of all levels, C classes, D detections.
"""

from typing import List, Tuple, Union

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import nms

from d2ext.modeling.meta_arch import (
    ATSS,
    YOLOX,
    DualWeightingFCOS,
    ExtFCOS,
    ExtRetinaNet,
)

__all__ = ["EXPORTABLE", "InferenceDetector"]

EXPORTABLE = (ExtRetinaNet, ExtFCOS, ATSS, YOLOX, DualWeightingFCOS)


class InferenceDetector(nn.Module):
    """Takes one image, gives tensors; holds the detector's weights but no loss and no assigner.

    With NMS it gives what the detector gives: boxes (D, 4), scores (D,) and classes (D,), best
    first. Without, it gives all boxes (R, 4) and scores (R, C), as they go into the threshold and
    NMS.

    Args:
        model: an ExtRetinaNet, ExtFCOS, ATSS, YOLOX or DualWeightingFCOS.
        with_nms: whether to select detections.
    """

    def __init__(self, model: nn.Module, *, with_nms: bool = True):
        super().__init__()
        if not isinstance(model, EXPORTABLE):
            raise TypeError(
                f"{type(model).__name__} has no export of its own; dense detectors "
                f"({', '.join(c.__name__ for c in EXPORTABLE)}) have, and two-stage models go "
                "through Detectron2's TracingAdapter."
            )
        self.backbone = model.backbone
        self.head = model.head
        points = getattr(model, "point_generator", None)
        self.anchor_generator = model.anchor_generator if points is None else points
        self.box2box_transform = model.box2box_transform
        self.features = list(model.head_in_features)
        self.register_buffer("pixel_mean", model.pixel_mean.clone())
        self.register_buffer("pixel_std", model.pixel_std.clone())
        self.num_classes = model.num_classes
        self.with_nms = with_nms
        self.divisor = max(model.backbone.size_divisibility, 1)
        if model.backbone.padding_constraints.get("square_size", 0):
            raise ValueError(
                "A backbone that pads images to a square cannot be exported for every size; set "
                "MODEL.FPN.SQUARE_PAD to 0."
            )
        self.has_quality = not isinstance(model, ExtRetinaNet)
        self.square_root = getattr(model, "score_power", 1.0) == 0.5
        # Dual weighting clips boxes before NMS, the others behind it unless a key says so.
        self.clip_first = getattr(model, "clip_before_nms", isinstance(model, DualWeightingFCOS))
        self.drop_empty = getattr(model, "drop_empty", False)
        self.cap_by_anchors = getattr(model, "cap_by_anchors", False)
        threshold = model.test_score_thresh
        if hasattr(model, "score_thresholds"):
            threshold = model.score_thresholds(threshold)
        self.register_buffer("threshold", torch.as_tensor(threshold).float().reshape(-1))
        self.topk = model.test_topk_candidates
        self.nms_threshold = _round_down(model.test_nms_thresh)
        self.limit = model.max_detections_per_image
        self.eval()

    def forward(self, image: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        """
        Args:
            image: (3, H, W), float32, 0 to 255, in the channel order of the detector and at the
                size at which it shall look at it. H and W need not be multiples of anything.
        """
        height, width = image.shape[-2:]
        boxes, scores = self.predict(image)
        if self.clip_first:
            boxes = [_clip(b, height, width) for b in boxes]
        if not self.with_nms:
            return torch.cat(boxes), torch.cat(scores)
        return self.select(boxes, scores, height, width)

    def predict(self, image: torch.Tensor) -> Tuple[List[torch.Tensor], List[torch.Tensor]]:
        """Boxes (R_l, 4) and scores (R_l, C) of each level."""
        x = (image - self.pixel_mean) / self.pixel_std
        right, bottom = (-x.shape[-1]) % self.divisor, (-x.shape[-2]) % self.divisor
        maps = self.backbone(F.pad(x, (0, right, 0, bottom))[None])
        features = [maps[name] for name in self.features]
        predictions = self.head(features)
        priors = self.anchor_generator(features)
        boxes, scores = [], []
        for level, prior in enumerate(priors):
            score = _sigmoid(_rows(predictions[0][level], self.num_classes))
            if self.has_quality:
                score = score * _sigmoid(_rows(predictions[2][level], 1))
            scores.append(score.sqrt() if self.square_root else score)
            deltas = _rows(predictions[1][level], 4).float()
            boxes.append(self.box2box_transform.apply_deltas(deltas, prior.tensor))
        return boxes, scores

    def select(
        self,
        boxes: List[torch.Tensor],
        scores: List[torch.Tensor],
        height: Union[int, torch.Tensor],
        width: Union[int, torch.Tensor],
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The best pairs of each level, one class-wise NMS over all levels, clipped boxes."""
        picked = [self._best(b, s) for b, s in zip(boxes, scores)]
        box, score, label = (torch.cat(parts) for parts in zip(*picked))
        # Boxes of two classes never touch if each class lies in a place of its own. The zero
        # makes the maximum one of something where nothing is found.
        step = torch.cat((box.flatten(), box.new_zeros(1))).max() + 1
        keep = nms(box + (label.to(box.dtype) * step)[:, None], score, self.nms_threshold)
        keep = keep[: self.limit]
        box, score, label = _clip(box[keep], height, width), score[keep], label[keep]
        real = _has_area(box)
        return box[real], score[real], label[real]

    def _best(
        self, boxes: torch.Tensor, scores: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if self.threshold.numel() > 1:
            # As in best_of_level: one threshold a class has to come before the best are taken.
            scores = scores.masked_fill(scores <= self.threshold, -1.0)
        if self.drop_empty:
            scores = scores.masked_fill(~_has_area(boxes)[:, None], -1.0)
        # Padding makes the number to take a constant; a number that follows the image's size
        # would be fixed by tracing.
        best, index = F.pad(scores.flatten(), (0, self.topk), value=-1.0).topk(self.topk)
        label = index % self.num_classes
        threshold = self.threshold[label] if self.threshold.numel() > 1 else self.threshold
        keep = best > threshold.clamp(min=-0.5)
        if self.cap_by_anchors:
            limit = _has_area(boxes).sum() if self.drop_empty else len(boxes)
            keep = keep & (torch.arange(self.topk, device=best.device) < limit)
        prior = torch.div(index[keep], self.num_classes, rounding_mode="floor")
        return boxes[prior], best[keep], label[keep]


def _round_down(threshold: float) -> float:
    """The largest float32 number up to a threshold.

    PyTorch compares float32 overlaps with a float64 threshold, ONNX with one rounded to float32.
    For 0.6 that is above 0.6, and ONNX would keep boxes of an overlap of exactly 3 to 5.
    """
    rounded = np.float32(threshold)
    if float(rounded) > threshold:
        rounded = np.nextafter(rounded, np.float32(-1))
    return float(rounded)


def _has_area(boxes: torch.Tensor) -> torch.Tensor:
    return (boxes[:, 2:] > boxes[:, :2]).all(dim=1)


def _sigmoid(logits: torch.Tensor) -> torch.Tensor:
    """Not ``torch.sigmoid``: onnxruntime's gives 0 below -18, where FCOS' root is still 1e-4."""
    return 1 / (1 + torch.exp(-logits.float()))


def _rows(maps: torch.Tensor, numbers: int) -> torch.Tensor:
    """(1, A * K, h, w) to (h * w * A, K)."""
    height, width = maps.shape[-2:]
    return maps.reshape(-1, numbers, height, width).permute(2, 3, 0, 1).reshape(-1, numbers)


def _clip(
    boxes: torch.Tensor, height: Union[int, torch.Tensor], width: Union[int, torch.Tensor]
) -> torch.Tensor:
    x = boxes[:, 0::2].clamp(min=0).clamp(max=width)
    y = boxes[:, 1::2].clamp(min=0).clamp(max=height)
    return torch.stack((x[:, 0], y[:, 0], x[:, 1], y[:, 1]), dim=1)
