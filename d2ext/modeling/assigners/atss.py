"""Adaptive training sample selection.

    Zhang et al., Bridging the Gap Between Anchor-based and Anchor-free Detection via Adaptive
    Training Sample Selection, CVPR 2020.

Shapes: N images, G objects, R priors, R_l priors of a level, S candidates of an object, C classes.
"""

from typing import Optional, Tuple

import torch

from d2ext.ops.object_blocks import pairs_of_a_block

from ..targets import Assignment, PackedTargets, Priors
from .iou import areas, background
from .registry import ASSIGNER_REGISTRY, Assigner

__all__ = ["ATSSAssigner"]


@ASSIGNER_REGISTRY.register("atss")
class ATSSAssigner(Assigner):
    """The IoU an object demands of its priors follows from those closest to it.

    Candidates of an object are, on each level, the ``topk`` priors whose centres are nearest to its
    own. Those with an IoU of at least mean + standard deviation of all its candidates, and a
    centre inside the object, are positive; a prior that is positive for several objects takes the
    one with the highest IoU. An object without extent contains no centre and gets no prior.

    Ties, which the paper leaves open: of priors equally far away (all that share a location, to
    begin with) the one with the lower index is the candidate, of objects with equal IoU the first
    one wins. Distances are compared as float32 squares.
    """

    needs_extent = True

    def __init__(
        self,
        topk: int = 9,
        clamp_centers: bool = False,
        block_pairs: Optional[int] = None,
        margin: float = 0.01,
    ):
        """
        Args:
            topk: candidates of an object on each level, all if the level has fewer. With several
                anchors at a location, give that many times the paper's 9.
            clamp_centers: measure distances from the object's centre moved into the image.
            block_pairs: the most (object, prior) pairs computed at a time. By default what suits
                the device.
            margin: how far inside the object the centre of a positive must be, in pixels.
        """
        if topk < 1:
            raise ValueError(f"ATSS needs at least one candidate a level, but topk is {topk}.")
        self.topk = topk
        self.clamp_centers = clamp_centers
        self.margin = margin
        self.block_pairs = block_pairs

    @classmethod
    def from_config(cls, cfg, *, num_anchors):
        node = cfg.MODEL.ATSS
        return {
            "topk": node.TOPK * num_anchors,
            "clamp_centers": node.CLAMP_CENTERS,
            "margin": node.INSIDE_MARGIN,
        }

    @torch.no_grad()
    def __call__(self, priors: Priors, targets: PackedTargets, num_classes: int) -> Assignment:
        """Assign R priors in each of N images; ``quality`` is the IoU of positives, else 0."""
        if len(targets.boxes) == 0:
            return background(priors, targets, num_classes)
        centers = (priors.boxes[:, :2] + priors.boxes[:, 2:]) / 2
        candidates = self._candidates(centers, self._object_centers(targets), priors.num_per_level)
        iou = _iou(targets.boxes[:, None], priors.boxes[candidates])
        # A single candidate has no spread.
        spread = iou.std(dim=1, keepdim=True) if iou.shape[1] > 1 else 0.0
        positive = iou >= iou.mean(dim=1, keepdim=True) + spread
        positive &= _depth(centers[candidates], targets.boxes[:, None]) > self.margin
        return _resolve(priors, targets, num_classes, candidates, iou, positive)

    def _object_centers(self, targets: PackedTargets) -> torch.Tensor:
        """(G, 2)."""
        centers = (targets.boxes[:, :2] + targets.boxes[:, 2:]) / 2
        if self.clamp_centers:
            width_height = torch.tensor([(w, h) for h, w in targets.image_sizes])
            limits = width_height.to(centers, non_blocking=True)[targets.image]
            centers = centers.clamp(min=0.0).minimum(limits)
        return centers

    def _candidates(
        self, centers: torch.Tensor, object_centers: torch.Tensor, num_per_level: Tuple[int, ...]
    ) -> torch.Tensor:
        """(G, S), the priors nearest to each object, level after level."""
        max_pairs = pairs_of_a_block(centers.device, self.block_pairs)
        found, first = [], 0
        for num, level_centers in zip(num_per_level, centers.split(num_per_level)):
            k = min(self.topk, num)
            found.append(_nearest(object_centers, level_centers, k, max_pairs) + first)
            first += num
        return torch.cat(found, dim=1)


def _nearest(points: torch.Tensor, centers: torch.Tensor, k: int, max_pairs: int) -> torch.Tensor:
    """(G, k), for each of G points the indices of the k nearest of R_l centres, in no order.

    ``topk`` takes any of several equals. So the index is made part of the key: non-negative floats
    compare as their bits do, and these go above the index in one 64 bit integer.
    """
    x, y = centers.to(torch.float32).t().contiguous()
    points = points.to(torch.float32)
    index = torch.arange(len(centers), device=centers.device)
    result = index.new_empty((len(points), k))
    rows = min(max(1, max_pairs // max(len(centers), 1)), len(points))
    # One set of buffers for all chunks: fresh ones, with small results in between, would make the
    # heap of a CPU grow with every chunk.
    distance, spare = x.new_empty((2, rows, len(centers)))
    key = index.new_empty((rows, len(centers)))
    for chunk, nearest in zip(points.split(rows), result.split(rows)):
        n = len(chunk)
        squares = torch.sub(chunk[:, :1], x, out=distance[:n]).square_()
        squares.add_(torch.sub(chunk[:, 1:], y, out=spare[:n]).square_())
        keys = key[:n].copy_(squares.view(torch.int32)).bitwise_left_shift_(32).bitwise_or_(index)
        nearest.copy_(keys.topk(k, dim=1, largest=False, sorted=False).values)
    return result.bitwise_and_((1 << 32) - 1)


def _iou(boxes1: torch.Tensor, boxes2: torch.Tensor) -> torch.Tensor:
    """IoU of boxes (..., 4) whose shapes broadcast; 0 of boxes that do not overlap."""
    low = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    sides = (torch.minimum(boxes1[..., 2:], boxes2[..., 2:]) - low).clamp_(min=0.0)
    intersection = sides[..., 0] * sides[..., 1]
    iou = intersection / (areas(boxes1) + areas(boxes2) - intersection)
    return iou.nan_to_num_(nan=0.0)


def _depth(points: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """How far points (..., 2) are inside boxes (..., 4); below 0 outside."""
    return torch.minimum(points - boxes[..., :2], boxes[..., 2:] - points).amin(dim=-1)


def _resolve(
    priors: Priors,
    targets: PackedTargets,
    num_classes: int,
    candidates: torch.Tensor,
    iou: torch.Tensor,
    positive: torch.Tensor,
) -> Assignment:
    """Give a prior that several objects chose to the one with the highest IoU, the first of equals.

    Args:
        priors, targets, num_classes: as the assigner is given them.
        candidates: (G, S), indices of priors.
        iou: (G, S).
        positive: (G, S) bool.
    """
    num_objects, num_priors = len(targets.boxes), len(priors.boxes)
    slot = (candidates + targets.image[:, None] * num_priors).flatten()
    score = torch.where(positive, iou, -1.0).flatten()
    best = iou.new_full((targets.num_images * num_priors,), -1.0)
    best.scatter_reduce_(0, slot, score, reduce="amax")
    wins = positive.flatten() & (score == best[slot])

    nobody = num_objects
    objects = torch.arange(num_objects, device=slot.device)[:, None].expand_as(candidates)
    matched = torch.full_like(best, nobody, dtype=torch.int64)
    matched.scatter_reduce_(0, slot, torch.where(wins, objects.flatten(), nobody), reduce="amin")
    background_mask = matched == nobody
    matched.masked_fill_(background_mask, 0)
    labels = targets.classes[matched].masked_fill_(background_mask, num_classes)
    shape = (targets.num_images, num_priors)
    return Assignment(labels.view(shape), matched.view(shape), best.clamp_(min=0.0).view(shape))
