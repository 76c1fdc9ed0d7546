"""Assignment of points to objects by FCOS' rule, with centre sampling.

Shapes: N images, n images of a block, K ranks of a block, G objects, R points, C classes.
"""

from typing import Optional, Tuple

import torch

from d2ext.ops.object_blocks import BestObject, ObjectBlock, ObjectBlocks

from ..targets import Assignment, PackedTargets, Priors
from .iou import areas, background
from .registry import ASSIGNER_REGISTRY, Assigner

__all__ = ["CenterAssigner"]

# Scores are this number minus the area, so that the smallest object wins. In float32 it resolves
# 8 square pixels: objects whose areas differ by less may tie, and then the first one wins.
_LARGEST_AREA = 1e8


@ASSIGNER_REGISTRY.register("center")
class CenterAssigner(Assigner):
    """A point is responsible for the smallest object it is near the centre of.

    That is: the point is inside the object, within ``center_sampling_radius`` strides of its centre
    in x and y, and the farthest of the four sides is in the range of the point's level. Equal to
    ``FCOS.label_anchors`` of Detectron2 on finite boxes, ties included.

    With a radius of 0, as in the first FCOS, any point of the object will do, and ranges include
    their ends: a side of just 64 pixels is learnt on two levels.
    """

    def __init__(
        self,
        center_sampling_radius: float = 1.5,
        size_range: Tuple[float, float] = (4.0, 8.0),
        block_pairs: Optional[int] = None,
        last_pixel: bool = False,
    ):
        """
        Args:
            center_sampling_radius: in strides; 0: anywhere in the object.
            size_range: lowest and highest distance to an object's farthest side, in strides. The
                first level has no lowest, the last no highest.
            block_pairs: the most (object, point) pairs computed at a time. By default what suits
                the device.
            last_pixel: an object ends one pixel before ``x2`` and ``y2``, but its area does not.
        """
        self.last_pixel = last_pixel
        self.center_sampling_radius = float(center_sampling_radius)
        self.size_range = size_range
        self.block_pairs = block_pairs

    @classmethod
    def from_config(cls, cfg, *, num_anchors):
        if num_anchors > 1:
            raise ValueError(
                f"MODEL.DENSE.ASSIGNER is 'center', which knows places only and would give all "
                f"{num_anchors} anchors of a place the same object; choose another assigner, or "
                "have one anchor a place (one size a level in MODEL.ANCHOR_GENERATOR.SIZES and "
                "one ASPECT_RATIOS for RetinaNet, one MODEL.ATSS.ANCHOR_SCALES for ATSS)."
            )
        node = cfg.MODEL.FCOS
        return {
            "center_sampling_radius": node.CENTER_SAMPLING_RADIUS,
            "last_pixel": node.LEGACY_BOXES,
        }

    @torch.no_grad()
    def __call__(self, priors: Priors, targets: PackedTargets, num_classes: int) -> Assignment:
        """Assign R priors, of which only centres and strides count, in each of N images."""
        if len(targets.boxes) == 0:
            return background(priors, targets, num_classes)._replace(quality=None)
        size = priors.strides
        radius = self.center_sampling_radius * size
        lowest, highest = (size * bound for bound in self.size_range)
        lowest[: priors.num_per_level[0]] = 0
        highest[len(size) - priors.num_per_level[-1] :] = float("inf")
        centers = ((priors.boxes[:, :2] + priors.boxes[:, 2:]) / 2).t().contiguous()

        blocks = ObjectBlocks(targets.boxes, targets.counts, len(size), self.block_pairs)
        best = BestObject(blocks, floor=0.0)
        for block in blocks:
            score, spare = self._scores(block, centers, radius, lowest, highest)
            best.update(block, score, spare)
        score, matched = best.result()
        labels = targets.classes[matched].masked_fill_(score < 1e-5, num_classes)
        return Assignment(labels, matched)

    def _scores(
        self,
        block: ObjectBlock,
        centers: torch.Tensor,
        radius: torch.Tensor,
        lowest: torch.Tensor,
        highest: torch.Tensor,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Scores (n, K, R), 0 where a point is not for an object, and a buffer that is free."""
        score, side, flag = block.buffers
        x, y = centers
        x0, y0, x1, y1 = block.boxes.unsqueeze(2).unbind(dim=3)  # (n, K, 1)
        above, below = torch.ge, torch.le
        if self.center_sampling_radius:
            above, below = torch.gt, torch.lt
            torch.sub(x, (x0 + x1) / 2, out=score).abs_()
            torch.sub(y, (y0 + y1) / 2, out=side).abs_()
            score = torch.maximum(score, side, out=score).lt_(radius)
        else:
            score.fill_(1.0)
        if self.last_pixel:
            x1, y1 = x1 - 1, y1 - 1
        # Inside.
        for difference in ((x, x0), (y, y0), (x1, x), (y1, y)):
            score.mul_(torch.gt(*difference, out=flag))
        # The farthest side in the range of the level.
        torch.maximum(torch.sub(x, x0, out=side), torch.sub(x1, x, out=flag), out=side)
        torch.maximum(side, torch.sub(y, y0, out=flag), out=side)
        torch.maximum(side, torch.sub(y1, y, out=flag), out=side)
        score.mul_(above(side, lowest, out=flag)).mul_(below(side, highest, out=flag))
        # An infinite area would make 0 * inf of the points outside.
        worth = (_LARGEST_AREA - areas(block.boxes)).masked_fill_(~block.valid, 0.0)
        return score.mul_(worth.nan_to_num_(nan=0.0).unsqueeze(2)), flag
