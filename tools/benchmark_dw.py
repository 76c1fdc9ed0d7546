#!/usr/bin/env python
"""Time and memory of DW's loss, forward and backward, beside a dense version of the same loss.

The dense version works on (points x objects) matrices, image by image, and lets autograd keep what
it wants, as a straightforward implementation does. Both run on the same inputs, in turns, and
their results are compared before anything is timed. Peak memory is the growth of the process'
resident memory (Linux), each version and size in a process of its own.

    python tools/benchmark_dw.py [--objects 10 50 200] [--rounds 7] [--threads 1]
"""

import argparse
import multiprocessing
import statistics
import time
from typing import Callable, Dict, List, Tuple

import torch
from torch.nn import functional as F

from d2ext.ops.dual_weighting import dual_weighting_losses

STRIDES = (8, 16, 32, 64, 128)
Loss = Callable[..., Dict[str, torch.Tensor]]


def make_inputs(num_objects: int, num_images: int = 2, num_classes: int = 80, seed: int = 0):
    """Random predictions of an 800 x 1088 image and objects of log-uniform sizes."""
    torch.manual_seed(seed)
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
    leaves = [t.requires_grad_() for t in (cls_logits, obj_logits, ltrb)]
    return points, strides, leaves, boxes, classes


def decode(points: torch.Tensor, ltrb: torch.Tensor) -> torch.Tensor:
    return torch.cat((points - ltrb[..., :2], points + ltrb[..., 2:]), dim=-1)


def dense_losses(points, strides, cls_logits, obj_logits, pred_boxes, gt_boxes, gt_classes):
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


def step(loss: Loss, inputs) -> Tuple[List[float], List[torch.Tensor]]:
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


def check_equal(num_objects: int) -> None:
    """Stop if the two versions differ by more than rounding."""
    inputs = make_inputs(num_objects)
    ours, dense = step(dual_weighting_losses, inputs), step(dense_losses, inputs)
    for a, b in zip((torch.tensor(ours[0]), *ours[1]), (torch.tensor(dense[0]), *dense[1])):
        difference = float((a - b).abs().max() / b.abs().max())
        if difference > 1e-4:
            raise SystemExit(f"The two versions differ by {difference:.1e}; timing them is moot.")


def _memory(key: str) -> float:
    """A memory figure of this process in MiB: VmRSS (now) or VmHWM (peak)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith(key))


def _peak(name: str, num_objects: int, threads: int, queue) -> None:
    torch.set_num_threads(threads)
    inputs = make_inputs(num_objects)
    with open("/proc/self/clear_refs", "w") as reset:  # the peak of the imports may be higher
        reset.write("5")
    before = _memory("VmRSS")
    step({"ours": dual_weighting_losses, "dense": dense_losses}[name], inputs)
    queue.put(_memory("VmHWM") - before)


def peak_memory(name: str, num_objects: int, threads: int) -> float:
    """MiB by which one step lets the peak resident memory of a fresh process grow."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_peak, args=(name, num_objects, threads, queue))
    process.start()
    value = queue.get()
    process.join()
    return value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--objects", type=int, nargs="+", default=[10, 50])
    parser.add_argument("--rounds", type=int, default=7, help="timed rounds of each version")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)

    print(f"{'objects':>8} {'version':>8} {'time [s]':>9} {'peak [MiB]':>11} {'faster':>7}")
    for num_objects in args.objects:
        check_equal(num_objects)
        inputs = make_inputs(num_objects)
        times = {"dense": [], "ours": []}
        for _ in range(args.rounds + 1):  # the first round warms up
            for name, loss in (("dense", dense_losses), ("ours", dual_weighting_losses)):
                begin = time.perf_counter()
                step(loss, inputs)
                times[name].append(time.perf_counter() - begin)
        median = {k: statistics.median(v[1:]) for k, v in times.items()}
        for name in ("dense", "ours"):
            peak = peak_memory(name, num_objects, args.threads)
            ratio = median["dense"] / median[name]
            print(f"{num_objects:8} {name:>8} {median[name]:9.4f} {peak:11.0f} {ratio:6.1f}x")


if __name__ == "__main__":
    main()
