"""Dual weighting (DW): a positive and a negative weight for every (point, object) pair.

Li, He, Li, Zhang: "A Dual Weighting Label Assignment Scheme for Object Detection", CVPR 2022.

Shapes: N images, P points of an image (all levels), C classes, G objects of the whole batch,
G_i objects of image i, K pairs of a point and an object whose box holds the point.

No point gets a label. Each object has a bag, the points inside its box on all levels, and each
pair of the bag gets two constants: ``pos_weight`` says how much the point is to learn the object's
class and box, ``neg_metric`` how much it remains a negative of that class. Everything after the
search for the pairs is one-dimensional over the K pairs, so time and memory grow with the pairs.
"""

import struct
from dataclasses import dataclass
from typing import Any, Dict, List, NamedTuple, Tuple

import torch

from .box_refinement import refine_boxes
from .dual_weighting_batch import WeightingBatch
from .joint_sigmoid import joint_sigmoid_losses
from .point_pairs import points_in_boxes

__all__ = [
    "DualWeightingConstants",
    "DualWeights",
    "dual_weighting_losses",
    "dual_weights",
    "refine_boxes",
]

T_METRICS = ("exp_giou", "iou_pow", "none")
NEG_METRICS = ("bag_norm", "fixed", "complement")
NEG_CONFLICTS = ("last", "min")
EPS = 1e-12
BOX_EPS = 1e-6


@dataclass(frozen=True)
class DualWeightingConstants:
    """The constants of DW; the defaults are those of the authors' code.

    Args:
        soft_prior: weigh the bag by a Gaussian around the object's centre; otherwise by 1 where
            that Gaussian exceeds ``prior_threshold`` and by 0 elsewhere.
        prior_sigma: the Gaussian's width in strides.
        prior_threshold: see ``soft_prior``.
        t_metric: consistency of class and box: ``"exp_giou"``, ``s exp(-beta (1 - GIoU))``, as in
            the authors' code, or ``"iou_pow"``, ``s IoU^beta``, as in the paper.
        beta: see ``t_metric``.
        mu: exponent of the positive weight, ``exp(mu t) t``.
        mu_norm: exponent in the sum that divides it. Smaller than ``mu``, so that the weights of
            an object sum to more than 1 and grow as training goes on, which balances the positive
            with the negative loss; the paper divides by the sum of the numerators (``mu_norm=mu``).
        neg_metric: the decreasing function of the IoU that relaxes a negative: ``"bag_norm"``,
            scaled to reach 0 and 1 in each bag, or ``"fixed"``, the paper's curve, 1 at
            ``neg_iou`` and 0 at IoU 0.95. ``"complement"`` switches the weighting of negatives on
            their own off, for ablations: 1 less the positive weight over the largest of the bag,
            as in the assignments that DW sets out to improve.
        gamma1: exponent of the IoU in it.
        neg_iou: pairs of a smaller IoU are full negatives.
        gamma2: exponent of the joint score in the negative loss (it has a gradient).
        neg_conflict: which object decides where several of one class hold one point: ``"last"``
            of them in annotation order, or ``"min"``, that of the smallest negative weight.
        pos_loss_weight: factor of both positive losses.
        loc_loss_weight: further factor of the box loss.
    """

    soft_prior: bool = True
    prior_sigma: float = 1.11
    prior_threshold: float = 0.3
    t_metric: str = "exp_giou"
    beta: float = 5.0
    mu: float = 5.0
    mu_norm: float = 3.0
    neg_metric: str = "bag_norm"
    gamma1: float = 2.0
    neg_iou: float = 0.5
    gamma2: float = 2.0
    neg_conflict: str = "last"
    pos_loss_weight: float = 0.25
    loc_loss_weight: float = 5.0

    def __post_init__(self) -> None:
        for name, known in (
            ("t_metric", T_METRICS),
            ("neg_metric", NEG_METRICS),
            ("neg_conflict", NEG_CONFLICTS),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} of dual weighting must be one of {', '.join(known)}, "
                    f"not '{getattr(self, name)}'."
                )
        # Written so that NaN is refused, too.
        if not self.prior_sigma > 0:
            raise ValueError(f"prior_sigma must be above 0, not {self.prior_sigma}.")
        if not 0 < self.neg_iou < 0.95:
            raise ValueError(f"neg_iou must lie between 0 and 0.95, not {self.neg_iou}.")
        if not (self.gamma1 > 0 and self.gamma2 >= 1):
            # p^gamma2 has an infinite slope at p = 0 for exponents below 1.
            raise ValueError(
                "gamma1 must be above 0 and gamma2 at least 1, "
                f"not {self.gamma1} and {self.gamma2}."
            )


class DualWeights(NamedTuple):
    """One entry a pair, (K,) each, sorted by object and then by point; none has a graph.

    Attributes:
        image, point, gt: indices; objects are counted over the batch, in the order of the images.
        iou, giou: of the predicted with the object's box.
        score: joint score of the object's class.
        prior: the centre prior.
        pos_weight: weight of the positive losses, without ``pos_loss_weight``.
        neg_metric: this pair's factor of the negative loss, before conflicts are settled.
    """

    image: torch.Tensor
    point: torch.Tensor
    gt: torch.Tensor
    iou: torch.Tensor
    giou: torch.Tensor
    score: torch.Tensor
    prior: torch.Tensor
    pos_weight: torch.Tensor
    neg_metric: torch.Tensor


def dual_weighting_losses(
    points: torch.Tensor,
    strides: torch.Tensor,
    cls_logits: torch.Tensor,
    obj_logits: torch.Tensor,
    pred_boxes: torch.Tensor,
    gt_boxes: List[torch.Tensor],
    gt_classes: List[torch.Tensor],
    **constants: Any,
) -> Dict[str, torch.Tensor]:
    """The three losses of DW as sums over the batch, and what they are to be divided by.

    Computed in float32 (float64 for float64 logits), also under autocast. There is one host-device
    sync, for the number of pairs.

    Args:
        points: (P, 2), x and y of the locations of an image, level after level, row by row.
        strides: (P,), stride of each point's level.
        cls_logits: (N, P, C).
        obj_logits: (N, P), logits of the objectness that multiplies every class' score.
        pred_boxes: (N, P, 4), not clipped to the image.
        gt_boxes: N tensors of (G_i, 4).
        gt_classes: N tensors of (G_i,), 0 <= class < C.
        constants: fields of :class:`DualWeightingConstants`.

    Returns:
        a dict of scalars. ``loss_cls_pos`` and ``loss_loc`` are to be divided by ``num_gt``, the
        number of objects, and ``loss_cls_neg`` by ``neg_norm``, the sum of ``1 - P_neg``; both
        after the mean over ranks and no less than 1. The losses have a graph even without objects.
        A NaN or an infinity among the objects' boxes makes ``num_gt`` NaN: such an object holds no
        point, or all of them, and would be lost without a sign. So does a label outside of
        0 ... C - 1, unless the labels are on the CPU, where it is refused.
    """
    const = DualWeightingConstants(**constants)
    with torch.autocast(device_type=cls_logits.device.type, enabled=False):
        batch = WeightingBatch.make(
            points, strides, cls_logits, obj_logits, pred_boxes, gt_boxes, gt_classes
        )
        weights, cell, loc_loss = _weigh(batch, const)
        neg_weight, decides = _settle(cell, weights.neg_metric, batch.cls_logits.numel(), const)
        positive, negative = joint_sigmoid_losses(
            batch.cls_logits, batch.obj_logits, cell, weights.pos_weight, neg_weight, const.gamma2
        )
        factor = const.pos_loss_weight
        return {
            "loss_cls_pos": factor * positive,
            "loss_loc": factor * const.loc_loss_weight * (weights.pos_weight * loc_loss).sum(),
            "loss_cls_neg": negative,
            "num_gt": batch.num_gt,
            "neg_norm": ((1 - neg_weight) * decides).sum(),
        }


@torch.no_grad()
def dual_weights(
    points: torch.Tensor,
    strides: torch.Tensor,
    cls_logits: torch.Tensor,
    obj_logits: torch.Tensor,
    pred_boxes: torch.Tensor,
    gt_boxes: List[torch.Tensor],
    gt_classes: List[torch.Tensor],
    **constants: Any,
) -> DualWeights:
    """All pairs of a point inside an object's box, and their weights.

    Takes the arguments of :func:`dual_weighting_losses`.
    """
    const = DualWeightingConstants(**constants)
    with torch.autocast(device_type=cls_logits.device.type, enabled=False):
        batch = WeightingBatch.make(
            points, strides, cls_logits, obj_logits, pred_boxes, gt_boxes, gt_classes
        )
        return _weigh(batch, const)[0]


def _weigh(
    batch: WeightingBatch, const: DualWeightingConstants
) -> Tuple[DualWeights, torch.Tensor, torch.Tensor]:
    """Find the pairs and weigh them.

    Returns:
        the weights, the index of each pair's cell in the flattened class logits, (K,), and
        ``1 - GIoU``, (K,), with its graph.
    """
    point, gt = points_in_boxes(batch.points, batch.strides, batch.gt_boxes)
    image = batch.gt_image[gt]
    row = image * len(batch.points) + point
    gt_boxes = batch.gt_boxes[gt]
    iou, giou = _iou_and_giou(batch.pred_boxes[row], gt_boxes)
    with torch.no_grad():
        iou = iou.detach()
        cell = row * batch.cls_logits.shape[1] + batch.gt_classes[gt]
        score = batch.cls_logits.reshape(-1)[cell].sigmoid() * batch.obj_logits[row].sigmoid()
        prior = _centre_prior(batch.points[point], batch.strides[point], gt_boxes, const)
        pos_weight = _positive_weights(
            score, iou, giou.detach(), prior, gt, len(batch.gt_boxes), const
        )
        neg_metric = _negative_metric(iou, pos_weight, gt, len(batch.gt_boxes), const)
    weights = DualWeights(
        image, point, gt, iou, giou.detach(), score, prior, pos_weight, neg_metric
    )
    return weights, cell, 1 - giou


def _iou_and_giou(boxes1: torch.Tensor, boxes2: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    """IoU and generalised IoU of each row of two (K, 4) tensors: (K,) each.

    Unlike :mod:`d2ext.ops.boxes`, areas are held above ``BOX_EPS`` instead of having it added, as
    in the authors' code: an exact box has IoU 1.
    """
    a, b = boxes1.t(), boxes2.t()
    # One (2, K) operation for x and y.
    overlap = (torch.min(a[2:], b[2:]) - torch.max(a[:2], b[:2])).clamp(min=0)
    hull = (torch.max(a[2:], b[2:]) - torch.min(a[:2], b[:2])).clamp(min=0)
    size1, size2 = a[2:] - a[:2], b[2:] - b[:2]
    intersection = overlap[0] * overlap[1]
    union = size1[0] * size1[1] + size2[0] * size2[1] - intersection
    union = union.clamp(min=BOX_EPS)
    area = (hull[0] * hull[1]).clamp(min=BOX_EPS)
    iou = intersection / union
    return iou, iou - (area - union) / area


def _centre_prior(
    points: torch.Tensor,
    strides: torch.Tensor,
    gt_boxes: torch.Tensor,
    const: DualWeightingConstants,
) -> torch.Tensor:
    """Gaussian of the distance, in strides, from the object's centre: (K,)."""
    # The authors keep sigma in a float32 parameter; in float64 the rounding would show.
    (sigma,) = struct.unpack("f", struct.pack("f", const.prior_sigma))
    distance = (points - (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2) / strides[:, None]
    prior = torch.exp(-distance.square().sum(dim=1) / (2 * sigma**2))
    return prior if const.soft_prior else (prior > const.prior_threshold).to(prior.dtype)


def _positive_weights(
    score: torch.Tensor,
    iou: torch.Tensor,
    giou: torch.Tensor,
    prior: torch.Tensor,
    gt: torch.Tensor,
    num_gt: int,
    const: DualWeightingConstants,
) -> torch.Tensor:
    """``exp(mu t) t q`` over the object's sum of ``exp(mu_norm t) t q``: (K,)."""
    if const.t_metric == "none":
        norm = prior.new_zeros(num_gt).index_add_(0, gt, prior)
        return prior / norm.clamp(min=EPS)[gt]
    if const.t_metric == "exp_giou":
        location = torch.exp(-const.beta * (1 - giou))
    else:
        location = iou.pow(const.beta)
    t = score * location
    weighted = t * prior
    norm = t.new_zeros(num_gt).index_add_(0, gt, torch.exp(const.mu_norm * t) * weighted)
    return torch.exp(const.mu * t) * weighted / norm.clamp(min=EPS)[gt]


def _negative_metric(
    iou: torch.Tensor,
    pos_weight: torch.Tensor,
    gt: torch.Tensor,
    num_gt: int,
    const: DualWeightingConstants,
) -> torch.Tensor:
    """How negative the point stays for the object's class, decreasing in the IoU: (K,)."""
    if const.neg_metric == "complement":
        top = pos_weight.new_zeros(num_gt).scatter_reduce_(0, gt, pos_weight, "amax")
        return 1 - pos_weight / top.clamp(min=EPS)[gt]
    power = iou.pow(const.gamma1)
    start = const.neg_iou**const.gamma1
    if const.neg_metric == "fixed":
        stop = 0.95**const.gamma1
        metric = ((stop - power) / (stop - start)).clamp(min=0)
    else:
        curve = (1 - power) * (1 / (1 - start))  # 1 at neg_iou, 0 at IoU 1
        high = curve.new_full((num_gt,), -float("inf")).scatter_reduce_(0, gt, curve, "amax")
        low = curve.new_full((num_gt,), float("inf")).scatter_reduce_(0, gt, curve, "amin")
        low, high = low[gt], high.clamp(max=1)[gt]
        # EPS turns 0 / 0 into 1: a bag of one point stays a full negative.
        metric = (curve - low + EPS) / (high - low + EPS)
    return torch.where(iou < const.neg_iou, torch.ones_like(metric), metric)


@torch.no_grad()
def _settle(
    cell: torch.Tensor, metric: torch.Tensor, num_cells: int, const: DualWeightingConstants
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Where several objects of a class hold a point, let one decide.

    Returns:
        the negative weight of each pair's cell, equal for pairs of one cell, and a (K,) boolean
        that is true for one pair of each cell.
    """
    # A plain indexed write would leave the winner to the order of threads. The pairs are sorted by
    # object, so the largest pair index is the last object's. `empty` instead of `full`: only the
    # cells of pairs are written and read.
    order = torch.arange(len(cell), device=cell.device, dtype=torch.int32)
    table = torch.empty(num_cells, dtype=torch.int32, device=cell.device)
    winner = table.scatter_reduce_(0, cell, order, "amax", include_self=False)[cell]
    if const.neg_conflict == "min":
        lowest = torch.empty(num_cells, dtype=metric.dtype, device=cell.device)
        weight = lowest.scatter_reduce_(0, cell, metric, "amin", include_self=False)[cell]
    else:
        weight = metric[winner]
    return weight, winner == order
