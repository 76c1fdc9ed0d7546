"""Assignment by IoU with the thresholds of Faster R-CNN and RetinaNet.

Shapes: N images, n images of a block, K ranks of a block, G objects, R priors, C classes.
"""

from typing import Optional, Sequence, Tuple

import torch

from d2ext.ops.object_blocks import BestObject, ObjectBlock, ObjectBlocks

from ..targets import Assignment, PackedTargets, Priors
from .registry import ASSIGNER_REGISTRY, Assigner

__all__ = ["IoUAssigner", "areas", "background"]


def areas(boxes: torch.Tensor) -> torch.Tensor:
    """(..., 4) to (...)."""
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def background(priors: Priors, targets: PackedTargets, num_classes: int) -> Assignment:
    """The assignment of a batch that has no object at all."""
    shape = (targets.num_images, len(priors.boxes))
    labels = torch.full(shape, num_classes, dtype=torch.int64, device=priors.boxes.device)
    return Assignment(labels, torch.zeros_like(labels), priors.boxes.new_zeros(shape))


@ASSIGNER_REGISTRY.register("iou")
class IoUAssigner(Assigner):
    """Label a prior by its highest IoU with an object, as Detectron2's ``Matcher`` does.

    Equal to ``Matcher`` on ``pairwise_iou`` of each image, bit for bit, ties included: of objects
    with equal IoU the first is matched, and all priors that share the highest IoU with an object
    are low-quality matches of it, even those of IoU 0 if the object touches no prior.
    """

    needs_extent = True

    def __init__(
        self,
        thresholds: Sequence[float],
        labels: Sequence[int],
        allow_low_quality: bool = False,
        block_pairs: Optional[int] = None,
    ):
        """
        Args:
            thresholds: ascending IoUs that separate the labels, e.g. ``[0.4, 0.5]``.
            labels: 0 background, -1 ignored or 1 object, one more than thresholds, e.g.
                ``[0, -1, 1]``.
            allow_low_quality: whether a prior that is the best one of an object is matched however
                low its IoU.
            block_pairs: the most (object, prior) pairs computed at a time. By default what suits
                the device.
        """
        if len(labels) != len(thresholds) + 1:
            raise ValueError(
                f"{len(thresholds)} IoU thresholds separate {len(thresholds) + 1} labels, but "
                f"{len(labels)} labels are given: {list(labels)}."
            )
        if list(thresholds) != sorted(thresholds) or (thresholds and thresholds[0] <= 0):
            raise ValueError(f"IoU thresholds must be positive and ascend: {list(thresholds)}.")
        if not set(labels) <= {-1, 0, 1}:
            raise ValueError(f"IoU labels must be -1, 0 or 1: {list(labels)}.")
        self.thresholds = tuple(thresholds)
        self.labels = tuple(labels)
        self.allow_low_quality = allow_low_quality
        self.block_pairs = block_pairs

    @classmethod
    def from_config(cls, cfg, *, num_anchors):
        node = cfg.MODEL.RETINANET
        return {
            "thresholds": node.IOU_THRESHOLDS,
            "labels": node.IOU_LABELS,
            "allow_low_quality": True,
        }

    @torch.no_grad()
    def __call__(self, priors: Priors, targets: PackedTargets, num_classes: int) -> Assignment:
        """Assign R priors in each of N images; ``quality`` is the highest IoU."""
        if len(targets.boxes) == 0:
            return background(priors, targets, num_classes)
        blocks = ObjectBlocks(targets.boxes, targets.counts, len(priors.boxes), self.block_pairs)
        best = BestObject(blocks, floor=-1.0)
        low_quality = torch.zeros_like(best.score) if self.allow_low_quality else None
        # Contiguous columns: arithmetic on strided ones is not vectorised.
        columns = priors.boxes.t().contiguous()
        prior_areas = areas(priors.boxes)
        for block in blocks:
            iou, spare = _pairwise_iou(block, columns, prior_areas)
            best.update(block, iou, spare)
            if low_quality is not None:
                flags = low_quality[: len(iou)]
                torch.maximum(flags, _is_best_of_any(block, iou, spare), out=flags)
        quality, matched = best.result()
        quality.clamp_(min=0.0)
        if low_quality is not None:
            low_quality = blocks.in_batch_order(low_quality)
        labels = self._labels(targets, quality, matched, low_quality, num_classes)
        return Assignment(labels, matched, quality)

    def _labels(
        self,
        targets: PackedTargets,
        quality: torch.Tensor,
        matched: torch.Tensor,
        low_quality: Optional[torch.Tensor],
        num_classes: int,
    ) -> torch.Tensor:
        kind = torch.full_like(matched, self.labels[0])
        for threshold, label in zip(self.thresholds, self.labels[1:]):
            kind.masked_fill_(quality >= threshold, label)
        if low_quality is not None:
            kind.masked_fill_(low_quality > 0, 1)
        if self.labels[0] != 0:
            # An image without objects has background only, whatever a low IoU means elsewhere.
            counts = torch.tensor(targets.counts).to(kind.device, non_blocking=True)
            kind.masked_fill_((counts == 0)[:, None], 0)
        labels = targets.classes[matched]
        labels.masked_fill_(kind == 0, num_classes)
        return labels.masked_fill_(kind < 0, -1)


def _pairwise_iou(
    block: ObjectBlock, columns: torch.Tensor, prior_areas: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """IoU (n, K, R) of a block's objects with the priors, and a buffer that is free again.

    The operations and their order are those of ``detectron2.structures.pairwise_iou``, which give
    the same bits.
    """
    width, height, spare = block.buffers
    x0, y0, x1, y1 = block.boxes.unsqueeze(2).unbind(dim=3)  # (n, K, 1)
    prior_x0, prior_y0, prior_x1, prior_y1 = columns
    torch.minimum(x1, prior_x1, out=width)
    width.sub_(torch.maximum(x0, prior_x0, out=spare)).clamp_(min=0.0)
    torch.minimum(y1, prior_y1, out=height)
    height.sub_(torch.maximum(y0, prior_y0, out=spare)).clamp_(min=0.0)
    intersection = width.mul_(height)
    union = torch.add(areas(block.boxes).unsqueeze(2), prior_areas, out=height).sub_(intersection)
    # 0 / 0 of two boxes without area is NaN, and is IoU 0.
    iou = intersection.div_(union).nan_to_num_(nan=0.0, posinf=float("inf"))
    return iou, spare


def _is_best_of_any(block: ObjectBlock, iou: torch.Tensor, spare: torch.Tensor) -> torch.Tensor:
    """(n, R), 1 where a prior has the highest IoU of all priors with some object, else 0."""
    # No IoU equals 2, so that no prior is the best of a padded object.
    highest = iou.amax(dim=2).masked_fill_(~block.valid, 2.0)
    return torch.eq(iou, highest.unsqueeze(2), out=spare).amax(dim=1)
