"""Losses, forward and backward: the sigmoid family beside fvcore's, DW beside a dense form of it.

A case may have ``memory``: the two sides as functions whose peak of tensors is to be counted with
``d2ext.testing.peak_bytes``, on a CPU.

Shapes: M samples, N images, P points, G objects of an image, C classes.
"""

import warnings
from typing import Any, Callable, Dict, List, Tuple

import torch
from torch.nn import functional as F

warnings.filterwarnings("ignore", message=".*torch.jit", category=Warning)

from fvcore.nn import sigmoid_focal_loss_jit  # noqa: E402

from d2ext.ops import sigmoid_losses as ours  # noqa: E402
from d2ext.ops.dual_weighting import dual_weighting_losses  # noqa: E402

__all__ = ["cases", "check_dw_equal", "dense_dw_losses", "dw_step", "make_dw_inputs"]

STRIDES = (8, 16, 32, 64, 128)
SHAPES = ((44000, 80), (20000, 1203))
KINDS = ("bce", "focal", "qfl", "efl", "eqfl")


def cases(args: Any) -> List[Dict[str, Any]]:
    """Every loss of the family on two shapes, and DW with few and with many objects."""
    device = getattr(args, "device", "cpu")
    result = []
    for rows, classes in SHAPES:
        steps = make_sigmoid_steps(rows, classes, device)
        for kind in KINDS:
            result.append(
                {
                    "name": f"loss/{kind}/{rows}x{classes}",
                    "ours": steps[kind],
                    "peer": steps["fvcore"],
                    "memory": (steps[kind], steps["fvcore"]),
                    "note": "forward and backward; peer: fvcore's sigmoid_focal_loss_jit, its "
                    "one-hot target given",
                }
            )
    for num_objects in (10, 50):
        check_dw_equal(4)
        inputs = make_dw_inputs(num_objects, device=device)
        sides = [
            lambda loss=loss, inputs=inputs: dw_step(loss, inputs)
            for loss in (dual_weighting_losses, dense_dw_losses)
        ]
        result.append(
            {
                "name": f"loss/dw/2x{num_objects}",
                "ours": sides[0],
                "peer": sides[1],
                "memory": tuple(sides),
                "note": f"2 images of 800 x 1088 with {num_objects} objects, forward and backward; "
                "peer: the same loss on (points x objects) matrices",
            }
        )
    return result


def make_sigmoid_steps(rows: int, classes: int, device: Any) -> Dict[str, Callable[[], None]]:
    """A forward and backward pass of each loss, on the same logits."""
    g = torch.Generator().manual_seed(0)
    logits = (torch.randn(rows, classes, generator=g) * 2 - 4).to(device).requires_grad_()
    labels = torch.full((rows,), classes)
    positive = torch.randperm(rows, generator=g)[: rows // 50]
    labels[positive] = torch.randint(0, classes, (len(positive),), generator=g)
    target = torch.zeros(rows, classes)
    target[positive, labels[positive]] = 1.0
    quality, ratio = torch.rand(rows, generator=g), torch.rand(classes, generator=g)
    labels, target, quality, ratio = (x.to(device) for x in (labels, target, quality, ratio))
    losses = {
        "fvcore": lambda: sigmoid_focal_loss_jit(
            logits, target, alpha=0.25, gamma=2.0, reduction="sum"
        ),
        "bce": lambda: ours.sigmoid_bce_loss(logits, labels),
        "focal": lambda: ours.sigmoid_focal_loss(logits, labels),
        "qfl": lambda: ours.quality_focal_loss(logits, labels, quality),
        "efl": lambda: ours.equalized_focal_loss(logits, labels, ratio)[0],
        "eqfl": lambda: ours.equalized_quality_focal_loss(logits, labels, quality, ratio)[0],
    }

    def step(loss: Callable[[], torch.Tensor]) -> None:
        logits.grad = None
        (loss() / len(positive)).backward()

    return {name: (lambda loss=loss: step(loss)) for name, loss in losses.items()}


def make_dw_inputs(
    num_objects: int, num_images: int = 2, num_classes: int = 80, device: Any = "cpu"
):
    """Random predictions of an 800 x 1088 image and objects of log-uniform sizes."""
    torch.manual_seed(0)
    height, width = 800, 1088
    points, strides = [], []
    for stride in STRIDES:
        h, w = -(-height // stride), -(-width // stride)
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
        points.append((torch.stack((x, y), dim=-1).reshape(-1, 2) + 0.5) * stride)
        strides.append(torch.full((h * w,), float(stride)))
    points, strides = torch.cat(points), torch.cat(strides)
    p = len(points)
    cls_logits = torch.randn(num_images, p, num_classes) - 4
    obj_logits = torch.randn(num_images, p)
    ltrb = strides[:, None] * 4 * torch.rand(num_images, p, 4) * 2
    boxes, classes = [], []
    for _ in range(num_images):
        size = torch.exp(torch.empty(num_objects, 2).uniform_(2.77, 6.4))
        size = torch.min(size, torch.tensor([width, height]) * 0.95)
        corner = torch.rand(num_objects, 2) * (torch.tensor([width, height]) - size)
        boxes.append(torch.cat((corner, corner + size), dim=1))
        classes.append(torch.randint(num_classes, (num_objects,)))
    leaves = [t.to(device).requires_grad_() for t in (cls_logits, obj_logits, ltrb)]
    points, strides = points.to(device), strides.to(device)
    boxes, classes = ([x.to(device) for x in xs] for xs in (boxes, classes))
    return points, strides, leaves, boxes, classes


def decode(points: torch.Tensor, ltrb: torch.Tensor) -> torch.Tensor:
    return torch.cat((points - ltrb[..., :2], points + ltrb[..., 2:]), dim=-1)


def dense_dw_losses(points, strides, cls_logits, obj_logits, pred_boxes, gt_boxes, gt_classes):
    """The losses of DW with (P, G) matrices for every image."""
    eps = 1e-12
    sums = dict.fromkeys(("loss_cls_pos", "loss_loc", "loss_cls_neg", "num_gt", "neg_norm"), 0.0)
    for x, y, pred, boxes, classes in zip(cls_logits, obj_logits, pred_boxes, gt_boxes, gt_classes):
        joint = x.sigmoid() * y.sigmoid()[:, None]  # (P, C)
        sides = torch.cat((points[:, None] - boxes[:, :2], boxes[:, 2:] - points[:, None]), dim=2)
        inside = sides.min(dim=2).values > 0  # (P, G)
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        distance = (points[:, None] - centre) / strides[:, None, None]
        prior = torch.exp(-distance.square().sum(dim=2) / (2 * 1.11**2)) * inside

        a, b = pred[:, None], boxes[None]
        overlap = (torch.min(a[..., 2:], b[..., 2:]) - torch.max(a[..., :2], b[..., :2])).clamp(0)
        hull = torch.max(a[..., 2:], b[..., 2:]) - torch.min(a[..., :2], b[..., :2])
        intersection, area = overlap.prod(dim=2), hull.prod(dim=2).clamp(1e-6)
        areas = (a[..., 2:] - a[..., :2]).prod(dim=2) + (b[..., 2:] - b[..., :2]).prod(dim=2)
        union = (areas - intersection).clamp(1e-6)
        iou = intersection / union
        loc_loss = 1 - (iou - (area - union) / area)
        score = joint[:, classes]
        with torch.no_grad():
            t = score * torch.exp(-5 * loc_loss)
            norm = (torch.exp(3 * t) * t * prior).sum(dim=0).clamp(eps)
            weight = torch.exp(5 * t) * t * prior / norm
            curve = (1 - iou.square()) * 4 / 3
            low = curve.masked_fill(~inside, float("inf")).min(dim=0).values
            high = curve.masked_fill(~inside, -float("inf")).max(dim=0).values.clamp(max=1)
            metric = (curve - low + eps) / (high - low + eps)
            metric[iou < 0.5] = 1
            p_neg = torch.ones_like(joint)
            gt, point = inside.t().nonzero().unbind(dim=1)
            p_neg[point, classes[gt]] = metric[point, gt]
        log_score = (F.logsigmoid(x) + F.logsigmoid(y)[:, None])[:, classes]
        rest = torch.sigmoid(-x) + x.sigmoid() * torch.sigmoid(-y)[:, None]
        sums["loss_cls_pos"] += -0.25 * (weight * log_score).sum()
        sums["loss_loc"] += 1.25 * (weight * loc_loss).sum()
        sums["loss_cls_neg"] += -(p_neg * joint.square() * rest.log()).sum()
        sums["num_gt"] += float(len(boxes))
        sums["neg_norm"] += (1 - p_neg).sum()
    return sums


def dw_step(
    loss: Callable[..., Dict[str, torch.Tensor]], inputs
) -> Tuple[List[float], List[torch.Tensor]]:
    """One forward and backward pass; returns the losses and the gradients."""
    points, strides, leaves, boxes, classes = inputs
    cls_logits, obj_logits, ltrb = leaves
    out = loss(points, strides, cls_logits, obj_logits, decode(points, ltrb), boxes, classes)
    num_gt, neg_norm = max(float(out["num_gt"]), 1.0), out["neg_norm"].clamp(min=1)
    parts = [
        out["loss_cls_pos"] / num_gt, out["loss_loc"] / num_gt, out["loss_cls_neg"] / neg_norm
    ]  # fmt: skip
    grads = torch.autograd.grad(sum(parts), leaves)
    return [float(part.detach()) for part in parts], list(grads)


def check_dw_equal(num_objects: int) -> None:
    """Stop if the two versions differ by more than rounding."""
    inputs = make_dw_inputs(num_objects)
    ours, dense = dw_step(dual_weighting_losses, inputs), dw_step(dense_dw_losses, inputs)
    for a, b in zip((torch.tensor(ours[0]), *ours[1]), (torch.tensor(dense[0]), *dense[1])):
        difference = float((a - b).abs().max() / b.abs().max())
        if difference > 1e-4:
            raise SystemExit(f"The two versions differ by {difference:.1e}; timing them is moot.")
