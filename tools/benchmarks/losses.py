"""Losses, forward and backward: the sigmoid family beside fvcore's, DW beside a dense form of it.

Memory is the most that tensors take at a time, counted at the allocator: no reading of a process's
size, which the system rounds and remembers.

Shapes: M samples, N images, P points, G objects of an image, C classes.
"""

import warnings
from typing import Any, Callable, Dict, List, Optional, Tuple

import torch
from torch.nn import functional as F

warnings.filterwarnings("ignore", message=".*torch.jit", category=Warning)

from fvcore.nn import sigmoid_focal_loss_jit  # noqa: E402

from d2ext.ops import sigmoid_losses as ours  # noqa: E402
from d2ext.ops.dual_weighting import dual_weighting_losses  # noqa: E402
from d2ext.testing import peak_bytes  # noqa: E402

from .runner import Case, Ratio  # noqa: E402

__all__ = ["cases", "check_dw_equal", "dense_dw_losses", "dw_step", "make_dw_inputs"]

STRIDES = (8, 16, 32, 64, 128)
PEER = "fvcore jit"


def cases(args: Any) -> List[Case]:
    """Every loss of the family on two shapes, and DW with few and with many objects."""
    result = []
    for rows, classes in ((200, 80), (100, 1203)) if args.quick else ((44000, 80), (20000, 1203)):
        steps = make_sigmoid_steps(rows, classes, args.device)
        goal = 0.5 if classes == 80 else None
        # What fvcore's loss costs besides, its one-hot target, is left out.
        result += _time_and_memory(f"sigmoid, {rows} x {classes}", steps, PEER, goal, args.device)
    check_dw_equal(4)
    size = (128, 160) if args.quick else (800, 1088)
    for num_objects in (10, 50, 200):
        inputs = make_dw_inputs(num_objects, size, device=args.device)
        steps = {
            "d2ext": lambda x=inputs: dw_step(dual_weighting_losses, x),
            "dense": lambda x=inputs: dw_step(dense_dw_losses, x),
        }
        name = f"DW, {num_objects} objects an image"
        result += _time_and_memory(name, steps, "dense", None, args.device)
    return result


def _time_and_memory(
    name: str, steps: Dict[str, Callable], peer: str, goal: Optional[float], device: str
) -> List[Case]:
    """The seconds of each step, and on a CPU the bytes, which the allocator is asked for."""
    goals = {"focal": goal, "d2ext": goal}
    ratios = [Ratio(version, peer, goals.get(version)) for version in steps if version != peer]
    found = [Case(name, steps, ratios, note="forward and backward")]
    if torch.device(device).type == "cpu":
        peaks = {k: (lambda step=step: _peak_mib(step)) for k, step in steps.items()}
        found.append(Case(f"{name}, peak memory", peaks, ratios, note="above inputs", unit="MiB"))
    return found


def _peak_mib(step: Callable) -> float:
    for _ in range(3):  # TorchScript optimises in its second call
        step()
    return peak_bytes(step) / 2**20


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
        PEER: lambda: sigmoid_focal_loss_jit(
            logits, target, alpha=0.25, gamma=2.0, reduction="sum"
        ),
        "bce": lambda: ours.sigmoid_bce_loss(logits, labels),
        "focal": lambda: ours.sigmoid_focal_loss(logits, labels),
        "qfl": lambda: ours.quality_focal_loss(logits, labels, quality),
        "efl": lambda: ours.equalized_focal_loss(logits, labels, ratio)[0],
        "eqfl": lambda: ours.equalized_quality_focal_loss(logits, labels, quality, ratio)[0],
    }

    def step(loss: Callable[[], torch.Tensor]) -> None:
        # Not backward(): a gradient that is kept from one step to the next hides that of the next.
        torch.autograd.grad(loss() / len(positive), logits)

    return {name: (lambda loss=loss: step(loss)) for name, loss in losses.items()}


def make_dw_inputs(
    num_objects: int,
    size: Tuple[int, int] = (800, 1088),
    *,
    num_images: int = 2,
    device: Any = "cpu",
):
    """Random predictions of 80 classes, and objects of log-uniform sizes."""
    torch.manual_seed(0)
    (height, width), num_classes = size, 80
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
        sides = torch.exp(torch.empty(num_objects, 2).uniform_(2.77, 6.4))
        sides = torch.min(sides, torch.tensor([width, height]) * 0.95)
        corner = torch.rand(num_objects, 2) * (torch.tensor([width, height]) - sides)
        boxes.append(torch.cat((corner, corner + sides), dim=1))
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
