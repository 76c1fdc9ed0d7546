"""Box losses that rival IoU, GIoU and CIoU; each gives one number a row unless it says otherwise.

Shapes: K pairs of boxes (x1, y1, x2, y2): ``boxes1`` predicted, ``boxes2`` true.

Half precision is computed in float32. Nothing here asserts on the boxes or reads their values on
the host. A NaN in a row stays in that row, but for what is a statistic of all rows (the weights of
GHM-R, the mean of Wise-IoU).
"""

from typing import Optional, Tuple

import torch

from .boxes import (
    EPS,
    centre_distance,
    ciou_loss,
    diou_loss,
    enclosing_sides,
    giou_loss,
    iou_loss,
    pair_iou,
)
from .precision import full_precision

__all__ = [
    "ghm_r_bins",
    "ghm_r_loss",
    "inner_iou_loss",
    "legacy_log_iou_loss",
    "log_iou_loss",
    "mpdiou_loss",
    "nwd_loss",
    "wise_iou_loss",
    "wise_iou_mean",
]

_BASES = {"iou": iou_loss, "giou": giou_loss, "diou": diou_loss, "ciou": ciou_loss}


def nwd_loss(
    boxes1: torch.Tensor, boxes2: torch.Tensor, *, constant: float = 12.8, eps: float = 1e-7
) -> torch.Tensor:
    """Normalised Gaussian Wasserstein distance loss (Wang et al., arXiv 2110.13389).

    ``1 - exp(-W / constant)``, W the distance of the two boxes as Gaussians: that of the centres,
    and half that of the sizes. Unlike an overlap it has a slope wherever boxes do not meet, as long
    as W is not many times the constant.

    Args:
        boxes1, boxes2: (K, 4).
        constant: the mean size of the data set's objects in pixels.
        eps: added under the root, so that identical boxes have a finite gradient.
    """
    shift, size = _shift_and_size(full_precision(boxes1), full_precision(boxes2))
    squared = shift.square().sum(dim=-1) + size.square().sum(dim=-1) / 4 + eps
    return 1 - torch.exp(-squared.sqrt() / constant)


def mpdiou_loss(
    boxes1: torch.Tensor, boxes2: torch.Tensor, image_sizes: torch.Tensor
) -> torch.Tensor:
    """``1 - IoU`` and the squared distances of both corners over that of the image's corners.

    Ma and Xu, arXiv 2307.07662.

    Args:
        boxes1, boxes2: (K, 4).
        image_sizes: (K, 2), height and width of each row's input image.
    """
    boxes1, boxes2 = full_precision(boxes1), full_precision(boxes2)
    diagonal = image_sizes.to(boxes1.dtype).square().sum(dim=-1)
    return iou_loss(boxes1, boxes2) + (boxes1 - boxes2).square().sum(dim=-1) / diagonal


def log_iou_loss(boxes1: torch.Tensor, boxes2: torch.Tensor, *, eps: float = 1e-6) -> torch.Tensor:
    """``-log(max(IoU, eps))`` (Yu et al., UnitBox, 2016). Disjoint boxes have no gradient."""
    return -pair_iou(boxes1, boxes2).clamp(min=eps).log()


def legacy_log_iou_loss(boxes1: torch.Tensor, boxes2: torch.Tensor) -> torch.Tensor:
    """``-log((I + 1) / (U + 1))``: the IoU loss of the first FCOS, whose boxes end with a pixel.

    Intersection I and union U are those of boxes that end one pixel before ``x2`` and ``y2``, as
    distances to the last pixels give them.
    """
    ends = [0.0, 0.0, 1.0, 1.0]
    boxes1, boxes2 = full_precision(boxes1), full_precision(boxes2)
    boxes1, boxes2 = boxes1 - boxes1.new_tensor(ends), boxes2 - boxes2.new_tensor(ends)
    low = torch.maximum(boxes1[..., :2], boxes2[..., :2])
    common = _area(low, torch.minimum(boxes1[..., 2:], boxes2[..., 2:]))
    both = sum(_area(boxes[..., :2], boxes[..., 2:]) for boxes in (boxes1, boxes2))
    return -((common + 1) / (both - common + 1)).log()


def _area(low: torch.Tensor, high: torch.Tensor) -> torch.Tensor:
    """Area between corners (K, 2); 0 where they are in the wrong order."""
    return (high - low).clamp(min=0).prod(dim=-1)


def inner_iou_loss(
    boxes1: torch.Tensor, boxes2: torch.Tensor, *, ratio: float = 0.7, base: str = "iou"
) -> torch.Tensor:
    """An IoU loss that looks at boxes scaled about their centres (Zhang et al., arXiv 2311.02877).

    ``L + IoU - IoU_inner``, where L is a loss that contains ``1 - IoU``.

    Args:
        boxes1, boxes2: (K, 4).
        ratio: of the scaled to the whole sides. Below 1 the slope at high overlaps is larger, above
            1 boxes that just miss each other still attract.
        base: L: "iou", "giou", "diou" or "ciou".
    """
    if base not in _BASES:
        raise ValueError(f"base must be one of {', '.join(_BASES)}, not '{base}'.")
    if not ratio > 0:
        raise ValueError(f"ratio must be above 0, not {ratio}.")
    boxes1, boxes2 = full_precision(boxes1), full_precision(boxes2)
    inner = pair_iou(_scaled(boxes1, ratio), _scaled(boxes2, ratio))
    return _BASES[base](boxes1, boxes2) + pair_iou(boxes1, boxes2) - inner


def wise_iou_loss(
    boxes1: torch.Tensor,
    boxes2: torch.Tensor,
    *,
    mean: Optional[torch.Tensor] = None,
    alpha: float = 1.9,
    delta: float = 3.0,
) -> torch.Tensor:
    """Wise-IoU (Tong et al., arXiv 2301.10051): a factor that grows with the distance of centres.

    Version 1 is ``exp(distance^2 / diagonal^2) (1 - IoU)``, the diagonal that of the enclosing box,
    a constant. Version 3 multiplies it by ``beta / (delta alpha^(beta - delta))``, with ``beta``
    the row's ``1 - IoU`` over its running mean: neither the easiest nor the worst boxes count most.

    Args:
        boxes1, boxes2: (K, 4).
        mean: the running mean, a scalar; None: version 1.
        alpha, delta: of version 3.
    """
    boxes1, boxes2 = full_precision(boxes1), full_precision(boxes2)
    width, height = enclosing_sides(boxes1, boxes2)
    diagonal = (width.square() + height.square() + EPS).detach()
    loss = iou_loss(boxes1, boxes2)
    result = torch.exp(centre_distance(boxes1, boxes2) / diagonal) * loss
    if mean is None:
        return result
    beta = loss.detach() / torch.as_tensor(mean).to(loss).clamp(min=EPS)
    return result * (beta / (delta * torch.pow(alpha, beta - delta)))


@torch.no_grad()
def wise_iou_mean(
    boxes1: torch.Tensor, boxes2: torch.Tensor, mean: torch.Tensor, *, momentum: float
) -> torch.Tensor:
    """The running mean of ``1 - IoU`` with K more rows; unchanged if K is 0."""
    if len(boxes1) == 0:
        return mean
    now = iou_loss(boxes1, boxes2).mean().to(mean)
    return (1 - momentum) * mean + momentum * now


def ghm_r_loss(
    deltas: torch.Tensor,
    target_deltas: torch.Tensor,
    *,
    mu: float = 0.02,
    bins: int = 10,
    weight: Optional[torch.Tensor] = None,
    group: Optional[torch.Tensor] = None,
    num_groups: int = 1,
) -> torch.Tensor:
    """GHM-R (Li et al., AAAI 2019): a smooth L1 whose rows are divided by how many are like them.

    ``(sqrt(d^2 + mu^2) - mu) w``: likeness is the size of the gradient, ``|d| / sqrt(d^2 + mu^2)``,
    in one of so many equal regions of [0, 1], and w is the number of all coordinates over that of
    the region and over the number of regions that have any.

    Args:
        deltas, target_deltas: (K, 4).
        mu: where the loss turns from quadratic to linear.
        bins: regions.
        weight: (bins,) w, for a caller who counts over several batches or ranks; None: of these
            rows alone.
        group, num_groups: see :func:`ghm_r_bins`; the weights are then (num_groups * bins,).

    Returns:
        (K, 4).
    """
    deltas, target_deltas = full_precision(deltas), full_precision(target_deltas)
    difference = deltas - target_deltas
    root = (difference.square() + mu**2).sqrt()
    region, count = ghm_r_bins(
        deltas, target_deltas, mu=mu, bins=bins, group=group, num_groups=num_groups
    )
    if weight is None:
        by_group = count.view(num_groups, bins)
        occupied = (by_group > 0).sum(dim=1, keepdim=True)
        weight = (region.numel() / (by_group * occupied).clamp(min=1)).flatten()
    return (root - mu) * weight.to(root.dtype)[region]


@torch.no_grad()
def ghm_r_bins(
    deltas: torch.Tensor,
    target_deltas: torch.Tensor,
    *,
    mu: float = 0.02,
    bins: int = 10,
    group: Optional[torch.Tensor] = None,
    num_groups: int = 1,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """The region of each coordinate, (K, 4) int64, and how many each has, float64.

    Rows of several groups, (K,) numbers below ``num_groups``, have regions of their own: there are
    (num_groups * bins,) of them, group after group.
    """
    difference = full_precision(deltas) - full_precision(target_deltas)
    size = difference.abs() / (difference.square() + mu**2).sqrt()
    # A NaN stays one in the loss, whatever its region.
    region = (size * bins).nan_to_num_(nan=0.0).long().clamp_(0, bins - 1)
    if group is not None:
        region += group[:, None] * bins
    count = torch.zeros(num_groups * bins, dtype=torch.float64, device=region.device)
    return region, count.index_add_(0, region.flatten(), torch.ones_like(region).flatten().double())


def _shift_and_size(
    boxes1: torch.Tensor, boxes2: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Differences of the centres and of the sides, (K, 2) each."""
    low, high = boxes1[..., :2] - boxes2[..., :2], boxes1[..., 2:] - boxes2[..., 2:]
    return (low + high) / 2, high - low


def _scaled(boxes: torch.Tensor, ratio: float) -> torch.Tensor:
    """Boxes of ``ratio`` times the sides about the same centres."""
    centre, half = (boxes[:, :2] + boxes[:, 2:]) / 2, (boxes[:, 2:] - boxes[:, :2]) * (ratio / 2)
    return torch.cat([centre - half, centre + half], dim=1)
