"""Label assignment by the predictions themselves: task-aligned, SimOTA, dynamic soft labels.

Shapes: N images, R priors (points of all levels), C classes, G objects of the whole batch, V
candidates of an image, n images and K ranks of objects of a block, S priors an object may choose.

* :func:`task_aligned_assignment`: Feng et al., TOOD, ICCV 2021, in its form and in that of YOLO.
* :func:`simota_assignment`: Ge et al., YOLOX, arXiv 2107.08430.
* :func:`dynamic_soft_label_assignment`: Lyu et al., RTMDet, arXiv 2212.07784.

All look at a whole batch, without a loop over images or objects, with one host-device sync and
without gradients. Half precision is computed in float32: the sixth power of an overlap has no
number in float16. Of equal measures the prior with the lower index comes first, of objects the
first one. A prediction that is not a number is never assigned.
"""

from typing import Callable, NamedTuple, Optional, Tuple, cast

import torch

from .column_boxes import are_inside, column_ciou, column_iou, nearest_side, widened_columns
from .prediction_candidates import (
    Candidates,
    Choice,
    Measure,
    Measured,
    Negative,
    Pairs,
    PredictionBatch,
    choose,
    widened,
)

__all__ = [
    "PredictionAssignment",
    "dynamic_soft_label_assignment",
    "simota_assignment",
    "task_aligned_assignment",
]

Overlap = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]

# Where a prior is not near its object, SimOTA takes it only if there is no other.
_FAR = 1e5


class PredictionAssignment(NamedTuple):
    """Who is responsible for which object, and how well it does.

    Attributes:
        labels: (N, R) int64; 0..C-1 a class, C background.
        matched: (N, R) int64, the object, counted over the batch; 0 for background.
        quality: (N, R), overlap of the predicted box with the object; 0 for background.
        target: (N, R), what a soft class loss aims at; 0 for background.
    """

    labels: torch.Tensor
    matched: torch.Tensor
    quality: torch.Tensor
    target: torch.Tensor


@torch.no_grad()
def task_aligned_assignment(
    scores: torch.Tensor,
    boxes: torch.Tensor,
    points: torch.Tensor,
    gt_boxes: torch.Tensor,
    gt_classes: torch.Tensor,
    gt_image: torch.Tensor,
    *,
    form: str = "tood",
    topk: int = 13,
    alpha: float = 1.0,
    beta: float = 6.0,
    min_side: float = 0.0,
    topk2: Optional[int] = None,
) -> PredictionAssignment:
    """Each object takes the priors whose class score and box agree best with it.

    The measure is ``t = score^alpha overlap^beta``. A prior with ``t = 0`` or a target of 0 is
    background.

    Args:
        scores: (N, R, C) probabilities.
        boxes: (N, R, 4) predicted boxes.
        points: (R, 2) centres of the priors.
        gt_boxes: (G, 4), image after image.
        gt_classes: (G,).
        gt_image: (G,) image of each object, ascending.
        form: "tood": overlap is the IoU, an object takes those of its ``topk`` priors that lie
            inside it, and a prior goes to the object of highest IoU that chose it. "yolo": overlap
            is the CIoU, an object takes the ``topk`` of the priors inside it, and a prior that
            several chose goes to the one of highest overlap among all that it lies inside.
        topk: priors an object takes at most.
        alpha, beta: exponents.
        min_side: "yolo" only: sides of objects below it count as this long in the test of what
            lies inside.
        topk2: "yolo" only: priors an object keeps after conflicts; None: all.

    Returns:
        the assignment; ``target`` is t over the largest of the object's positives, times their
        largest overlap.
    """
    if form not in ("tood", "yolo"):
        raise ValueError(f"Task-aligned assignment has the forms tood and yolo, not '{form}'.")
    batch = PredictionBatch.make(scores, boxes, points, gt_boxes, gt_classes, gt_image)
    tood = form == "tood"
    overlap = column_iou if tood else column_ciou

    def aligned(score: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
        return _power(score, alpha) * _power(quality, beta)

    def measure(pairs: Pairs) -> Measured:
        quality = overlap(pairs.boxes, pairs.gt)
        if not tood:
            sides = widened_columns(pairs.gt, min_side)
            quality.mul_(nearest_side(pairs.point, sides) > 1e-9)
        return aligned(pairs.score, quality), None, None if tood else quality

    if batch.is_empty:
        return _background(batch)
    if tood:
        candidates = Candidates.all_of(batch)
    else:
        wide = widened(batch.gt_boxes, min_side)
        candidates = Candidates.near(batch, lambda rows: are_inside(batch.points, wide[rows], 1e-9))
    if candidates.prior.shape[1] == 0:
        return _background(batch)
    choice = choose(batch, candidates, topk, 0.0, measure)
    if tood:
        choice = _keep_inside(batch, candidates, choice)
        matched = _matched_by_highest_iou(batch, candidates, choice)
    else:
        matched = _matched_by_favourite(choice, len(batch.gt_boxes))
    eps = 1e-7 if tood else 1e-9
    return _with_targets(batch, candidates, matched, overlap, aligned, topk2, eps)


@torch.no_grad()
def simota_assignment(
    scores: torch.Tensor,
    boxes: torch.Tensor,
    points: torch.Tensor,
    strides: torch.Tensor,
    gt_boxes: torch.Tensor,
    gt_classes: torch.Tensor,
    gt_image: torch.Tensor,
    *,
    center_radius: float = 2.5,
    candidate_topk: int = 10,
    iou_weight: float = 3.0,
    cls_weight: float = 1.0,
) -> PredictionAssignment:
    """Each object takes its cheapest priors, as many as its best boxes' IoUs sum up to.

    A prior's cost is its class and box loss for the object; where it is not both inside the object
    and near its centre, ``1e5`` more. A prior that several objects take goes to the cheapest object
    of the image.

    Args:
        scores: (N, R, C) probabilities; in YOLOX the square root of class times objectness.
        boxes, points, gt_boxes, gt_classes, gt_image: see :func:`task_aligned_assignment`.
        strides: (R,) stride of each prior's level.
        center_radius: how near in x and y, in strides.
        candidate_topk: IoUs that are summed up.
        iou_weight, cls_weight: weights of the two parts of the cost.

    Returns:
        the assignment; ``quality`` and ``target`` are the IoU.
    """
    batch = PredictionBatch.make(scores, boxes, points, gt_boxes, gt_classes, gt_image)
    if batch.is_empty:
        return _background(batch)
    radius = center_radius * strides.to(batch.points.dtype)

    def near(rows: slice) -> torch.Tensor:
        gt = batch.gt_boxes[rows]
        centre = (gt[:, None, :2] + gt[:, None, 2:]) / 2  # (g, 1, 2)
        away = (batch.points[:, 0] - centre[..., 0]).abs_()
        away = torch.maximum(away, (batch.points[:, 1] - centre[..., 1]).abs_(), out=away)
        return are_inside(batch.points, gt, 0.0) | (away < radius)

    def measure(pairs: Pairs) -> Measured:
        iou = column_iou(pairs.boxes, pairs.gt).mul_(pairs.exists)
        cost = pairs.others - _log_of_rest(pairs.score) - pairs.score.log().clamp_(min=-100)
        cost = cost.mul_(cls_weight).sub_((iou + 1e-7).log_(), alpha=iou_weight)
        x, y = (pairs.gt[:2] + pairs.gt[2:]) / 2
        away = torch.maximum((pairs.point[0] - x).abs_(), (pairs.point[1] - y).abs_())
        central = away < radius[pairs.prior]
        near = central.logical_and_(nearest_side(pairs.point, pairs.gt) > 0)
        cost.add_(near.logical_not_(), alpha=_FAR)
        return cost.neg_(), _sum_of_best(iou, candidate_topk), cost

    candidates = Candidates.near(batch, near)
    return _by_cost(batch, candidates, candidate_topk, measure, _log_of_rest)


@torch.no_grad()
def dynamic_soft_label_assignment(
    logits: torch.Tensor,
    boxes: torch.Tensor,
    points: torch.Tensor,
    strides: torch.Tensor,
    gt_boxes: torch.Tensor,
    gt_classes: torch.Tensor,
    gt_image: torch.Tensor,
    *,
    soft_center_radius: float = 3.0,
    topk: int = 13,
    iou_weight: float = 3.0,
) -> PredictionAssignment:
    """As :func:`simota_assignment`, with soft targets and a soft centre in the cost.

    The class part of the cost aims at the IoU, as a quality focal loss of exponent 2 does, and the
    distance from the object's centre costs ``10^(distance / stride - soft_center_radius)``. A prior
    that lies in any object may go to each object of its image.

    Args:
        logits: (N, R, C), not probabilities.
        boxes, points, gt_boxes, gt_classes, gt_image: see :func:`task_aligned_assignment`.
        strides: (R,) stride of each prior's level.
        soft_center_radius: the distance, in strides, that costs 1.
        topk: IoUs that are summed up.
        iou_weight: weight of the overlap in the cost.

    Returns:
        the assignment; ``quality`` and ``target`` are the IoU.
    """
    batch = PredictionBatch.make(logits, boxes, points, gt_boxes, gt_classes, gt_image)
    if batch.is_empty:
        return _background(batch)
    strides = strides.to(batch.points.dtype)

    def measure(pairs: Pairs) -> Measured:
        iou = column_iou(pairs.boxes, pairs.gt).mul_(pairs.exists)
        z = pairs.score
        cost = pairs.others - _squared_loss(z)
        cost += (_softplus(z) - z * iou).mul_(z.sigmoid().sub_(iou).square_())
        cost.sub_((iou + 1e-7).log_(), alpha=iou_weight)
        x, y = (pairs.gt[:2] + pairs.gt[2:]) / 2
        distance = ((pairs.point[0] - x).square_() + (pairs.point[1] - y).square_()).sqrt_()
        distance = distance.div_(strides[pairs.prior]).sub_(soft_center_radius)
        cost += torch.pow(10.0, distance)
        return cost.neg_(), _sum_of_best(iou, topk), cost

    candidates = Candidates.near(
        batch, lambda rows: are_inside(batch.points, batch.gt_boxes[rows], 0)
    )
    return _by_cost(batch, candidates, topk, measure, _squared_loss)


def _with_targets(
    batch: PredictionBatch,
    candidates: Candidates,
    matched: torch.Tensor,
    overlap: Overlap,
    aligned: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    topk2: Optional[int],
    eps: float,
) -> PredictionAssignment:
    """What task-aligned assignment does once each candidate has its object, (N V,)."""
    positive, matched, row, quality = _pairs_of(batch, candidates, matched, overlap)
    cell = row * batch.scores.shape[2] + batch.gt_classes[matched]
    t = (
        aligned(batch.scores.reshape(-1)[cell], quality)
        .nan_to_num_(nan=0.0)
        .masked_fill_(~positive, 0.0)
    )
    if topk2 is not None:
        positive &= _rank_in_object(t, matched, positive) < topk2
        t.masked_fill_(~positive, 0.0)
    best_t, best_quality = (
        batch.boxes.new_zeros(len(batch.gt_boxes)).scatter_reduce_(
            0, matched, x.masked_fill(~positive, 0.0), "amax"
        )
        for x in (t, quality)
    )
    target = t / (best_t + eps)[matched] * best_quality[matched]
    positive &= target > 0
    return _spread(batch, candidates, positive, matched, quality, target)


def _by_cost(
    batch: PredictionBatch,
    candidates: Candidates,
    most: int,
    measure: Measure,
    negative: Negative,
) -> PredictionAssignment:
    """What SimOTA and DSL do once the cost is defined."""
    if candidates.prior.shape[1] == 0:
        return _background(batch)
    choice = choose(batch, candidates, most, -float("inf"), measure, negative)
    matched = _matched_by_favourite(choice, len(batch.gt_boxes))
    positive, matched, _, quality = _pairs_of(batch, candidates, matched, column_iou)
    return _spread(batch, candidates, positive, matched, quality, quality)


def _power(x: torch.Tensor, exponent: float) -> torch.Tensor:
    """``x ** exponent``; whole exponents by products, which are many times faster on a CPU."""
    if not 1 <= exponent <= 8 or exponent != int(exponent):
        return x.pow(exponent)
    result: Optional[torch.Tensor] = None
    exponent = int(exponent)
    while exponent:
        if exponent % 2:
            result = x if result is None else result * x
        x, exponent = x * x, exponent // 2
    return cast(torch.Tensor, result)  # the exponent was at least 1


def _sum_of_best(iou: torch.Tensor, number: int) -> torch.Tensor:
    """(n, K), the whole part of the sum of an object's largest IoUs, at least 1."""
    best = iou.topk(min(number, iou.shape[-1]), dim=-1).values
    return best.sum(dim=-1).nan_to_num_(nan=0.0).long().clamp_(min=1)


def _log_of_rest(score: torch.Tensor) -> torch.Tensor:
    """``-log(1 - score)``, at most 100 as in torch's binary cross entropy."""
    return torch.log1p(-score).clamp_(min=-100).neg_()


def _softplus(z: torch.Tensor) -> torch.Tensor:
    """``log(1 + e^z)`` without the threshold that torch's own has."""
    return z.clamp(min=0) + torch.log1p(torch.exp(-z.abs()))


def _squared_loss(z: torch.Tensor) -> torch.Tensor:
    """Quality focal loss of exponent 2 of a negative."""
    return _softplus(z) * z.sigmoid().square()


def _keep_inside(batch: PredictionBatch, candidates: Candidates, choice: Choice) -> Choice:
    """Drop what an object chose, but does not contain by 0.01 of a pixel."""
    prior = choice.slot % candidates.prior.shape[1]  # all priors are candidates
    point = batch.points[prior].permute(2, 0, 1)
    inside = nearest_side(point, batch.gt_boxes.t()[..., None]) > 0.01
    return choice._replace(kept=choice.kept & inside)


def _matched_by_highest_iou(
    batch: PredictionBatch, candidates: Candidates, choice: Choice
) -> torch.Tensor:
    """(N V,), the object of highest IoU among those that chose each candidate, G for nobody."""
    nobody = len(batch.gt_boxes)
    slot = choice.slot.flatten()
    box = batch.boxes.reshape(-1, 4)[slot].t()  # slots are rows, as all priors are candidates
    iou = column_iou(box, batch.gt_boxes.t().repeat_interleave(choice.slot.shape[1], dim=1))
    iou = torch.where(choice.kept.flatten(), iou, -1.0)
    best = iou.new_full((candidates.prior.numel(),), -1.0).scatter_reduce_(0, slot, iou, "amax")
    wins = choice.kept.flatten() & (iou == best[slot])
    return _first(wins, slot, candidates.prior.numel(), nobody)


def _matched_by_favourite(choice: Choice, num_objects: int) -> torch.Tensor:
    """(N V,), the object that chose a candidate, or its favourite if several did; G for nobody."""
    slot, kept = choice.slot.flatten(), choice.kept.flatten()
    only = _first(kept, slot, len(choice.favourite), num_objects)
    wanted = torch.zeros_like(only).scatter_add_(0, slot, kept.long())
    return torch.where(wanted > 1, choice.favourite, only)


def _first(
    wins: torch.Tensor, slot: torch.Tensor, num_slots: int, num_objects: int
) -> torch.Tensor:
    """(num_slots,), the first object that wins each slot, ``num_objects`` for nobody."""
    objects = torch.arange(num_objects, device=slot.device)
    objects = objects.repeat_interleave(len(slot) // num_objects)
    matched = torch.full((num_slots,), num_objects, dtype=torch.int64, device=slot.device)
    return matched.scatter_reduce_(0, slot, objects.masked_fill(~wins, num_objects), "amin")


def _pairs_of(
    batch: PredictionBatch,
    candidates: Candidates,
    matched: torch.Tensor,
    overlap: Overlap,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Who is positive, its object, its row in (N, R) and its overlap, (N V,) each."""
    positive = matched < len(batch.gt_boxes)
    matched = matched.masked_fill(~positive, 0)
    row = candidates.rows(batch).flatten()
    quality = overlap(batch.boxes.reshape(-1, 4)[row].t(), batch.gt_boxes[matched].t())
    return positive, matched, row, quality


def _rank_in_object(t: torch.Tensor, matched: torch.Tensor, positive: torch.Tensor) -> torch.Tensor:
    """Place of each positive among those of its object, by t, the first of equals first."""
    group = matched.masked_fill(~positive, int(1e9))
    order = t.sort(descending=True, stable=True).indices
    order = order[group[order].sort(stable=True).indices]
    sorted_group = group[order]
    start = torch.searchsorted(sorted_group, sorted_group)
    rank = torch.arange(len(t), device=t.device) - start
    return torch.empty_like(rank).scatter_(0, order, rank)


def _spread(
    batch: PredictionBatch,
    candidates: Candidates,
    positive: torch.Tensor,
    matched: torch.Tensor,
    quality: torch.Tensor,
    target: torch.Tensor,
) -> PredictionAssignment:
    """From candidates to all priors; everything else is background."""
    result = _background(batch)
    shape = candidates.prior.shape
    values = (
        torch.where(positive, batch.gt_classes[matched], batch.scores.shape[2]),
        matched.masked_fill(~positive, 0),
        quality.masked_fill(~positive, 0.0),
        target.masked_fill(~positive, 0.0),
    )
    spread = []
    for everywhere, found in zip(result, values):
        # Padding is written to a column that is cut off.
        wide = torch.cat([everywhere, everywhere[:, :1]], dim=1)
        spread.append(wide.scatter_(1, candidates.prior, found.view(shape))[:, :-1].contiguous())
    return PredictionAssignment(*spread)


def _background(batch: PredictionBatch) -> PredictionAssignment:
    """The assignment where there is nothing to assign."""
    num_images, num_priors, num_classes = batch.scores.shape
    labels = torch.full(
        (num_images, num_priors), num_classes, dtype=torch.int64, device=batch.points.device
    )
    zeros = batch.boxes.new_zeros(labels.shape)
    return PredictionAssignment(labels, torch.zeros_like(labels), zeros, zeros.clone())
