"""The arguments of dual weighting, checked and in one form.

Shapes: N images, P points of an image (all levels), C classes, G objects of the whole batch.
"""

from typing import NamedTuple, Sequence

import torch

from . import host

__all__ = ["WeightingBatch"]


class WeightingBatch(NamedTuple):
    """A batch in one floating-point type, with images flattened into points."""

    points: torch.Tensor  # (P, 2)
    strides: torch.Tensor  # (P,)
    cls_logits: torch.Tensor  # (N P, C)
    obj_logits: torch.Tensor  # (N P,)
    pred_boxes: torch.Tensor  # (N P, 4)
    gt_boxes: torch.Tensor  # (G, 4)
    gt_classes: torch.Tensor  # (G,), within 0 ... C - 1
    gt_image: torch.Tensor  # (G,)
    num_gt: torch.Tensor  # G, or NaN if an object cannot be learnt

    @classmethod
    def make(
        cls,
        points: torch.Tensor,
        strides: torch.Tensor,
        cls_logits: torch.Tensor,
        obj_logits: torch.Tensor,
        pred_boxes: torch.Tensor,
        gt_boxes: Sequence[torch.Tensor],
        gt_classes: Sequence[torch.Tensor],
    ) -> "WeightingBatch":
        """Takes what :func:`d2ext.ops.dual_weighting.dual_weighting_losses` takes."""
        num_images, _, num_classes = cls_logits.shape
        if num_images == 0:
            raise ValueError("Dual weighting needs a batch of at least one image.")
        if len(gt_boxes) != num_images or len(gt_classes) != num_images:
            raise ValueError(
                f"Dual weighting got predictions of {num_images} images, but objects of "
                f"{len(gt_boxes)}; pass one tensor of boxes and of classes an image, empty or not."
            )
        # A loss in half precision would round the sums of a million terms away.
        dtype = torch.promote_types(cls_logits.dtype, torch.float32)
        counts = [len(boxes) for boxes in gt_boxes]
        # Made on the host, where the counts are, so that no sync is needed.
        gt_image = torch.arange(num_images).repeat_interleave(
            torch.tensor(counts), output_size=sum(counts)
        )
        boxes = torch.cat(list(gt_boxes)).reshape(-1, 4).to(dtype)
        labels = torch.cat(list(gt_classes)).to(torch.int64)
        # Any other label would index a class of a neighbouring point.
        classes = labels.clamp(0, num_classes - 1)
        unknown = labels != classes
        any_unknown = unknown.any()
        if host.asking_is_free(any_unknown) and bool(any_unknown):
            raise ValueError(
                f"An object has the label {int(labels[unknown][0])}, but the detector has "
                f"{num_classes} classes, 0 to {num_classes - 1}; set MODEL.DW.NUM_CLASSES to the "
                "number of the data set, or correct the label."
            )
        # Elsewhere it is seen in the losses, as is a box that is not finite.
        num_gt = len(boxes) + (boxes - boxes).sum()
        return cls(
            points=points.to(dtype),
            strides=strides.to(dtype),
            cls_logits=cls_logits.to(dtype).reshape(-1, num_classes),
            obj_logits=obj_logits.to(dtype).reshape(-1),
            pred_boxes=pred_boxes.to(dtype).reshape(-1, 4),
            gt_boxes=boxes,
            gt_classes=classes,
            gt_image=gt_image.to(points.device, non_blocking=True),
            num_gt=num_gt.masked_fill(any_unknown, float("nan")),
        )
