"""The rivals beside mmdetection's code, where that can be imported.

mmdetection is not a dependency. In an environment that has it, and mmcv with or without its
compiled operators, these cases compare; elsewhere they time d2ext alone.

Shapes: N images, R priors, C classes, M samples, K positives.
"""

import contextlib
import importlib
import types
from typing import Any, Callable, Dict, List, Optional

import torch

from d2ext.ops.box_variants import ghm_r_loss, log_iou_loss
from d2ext.ops.prediction_assignment import (
    dynamic_soft_label_assignment,
    simota_assignment,
    task_aligned_assignment,
)
from d2ext.ops.sigmoid_losses import varifocal_loss

from .runner import Case, Ratio

__all__ = ["cases"]

STRIDES = (8, 16, 32, 64, 128)


def cases(args: Any) -> List[Case]:
    """Assignment of a batch with few objects and with many, and losses with their gradients."""
    mmdet = _mmdet()
    size, images = (128, 2) if args.quick else (640, 4)
    result = []
    for num_objects in (5, 9) if args.quick else (20, 50):
        scene = _scene(images, num_objects, size, args.device)
        note = f"{images} images of {size} x {size}, {scene.classes_total} classes"
        for name, ours in _ours(scene).items():
            peer = None if mmdet is None else _peer(mmdet, name, scene)
            result.append(_case(f"{name}, {num_objects} objects an image", ours, peer, note))
    return result + _losses(mmdet, args)


def _case(name: str, ours: Callable, peer: Optional[Callable], note: str) -> Case:
    if peer is None:
        return Case(name, {"d2ext": ours}, note=note)
    return Case(
        name,
        {"d2ext": ours, "mmdetection": peer},
        [Ratio("d2ext", "mmdetection", 1.0)],
        note=note,
    )


def _mmdet() -> Optional[types.SimpleNamespace]:
    """Its assigners and losses, or None. What needs a compiled operator is never called."""
    with contextlib.suppress(ImportError):
        loader = importlib.import_module("mmcv.utils.ext_loader")
        with contextlib.suppress(ImportError):
            importlib.import_module("mmcv._ext")
            return _parts()
        loader.load_ext = lambda name, functions: types.SimpleNamespace(**dict.fromkeys(functions))
        return _parts()
    return None


def _parts() -> types.SimpleNamespace:
    tasks = importlib.import_module("mmdet.models.task_modules.assigners")
    losses = importlib.import_module("mmdet.models.losses")
    structures = importlib.import_module("mmengine.structures")
    return types.SimpleNamespace(tasks=tasks, losses=losses, Data=structures.InstanceData)


def _scene(images: int, num_objects: int, size: int, device: Any) -> types.SimpleNamespace:
    """Points of five levels, predictions near them, and objects of many sizes."""
    g = torch.Generator().manual_seed(0)
    points, strides = [], []
    for stride in STRIDES:
        shift = (torch.arange(size // stride) + 0.5) * stride
        y, x = torch.meshgrid(shift, shift, indexing="ij")
        points.append(torch.stack([x.flatten(), y.flatten()], dim=1))
        strides.append(torch.full((x.numel(),), float(stride)))
    points, strides = torch.cat(points), torch.cat(strides)
    gt = []
    for _ in range(images):
        sides = torch.exp(torch.empty(num_objects, 2).uniform_(2.5, 5.8, generator=g))
        sides = sides.clamp(max=size * 0.9)
        corner = torch.rand(num_objects, 2, generator=g) * (size - sides)
        gt.append(torch.cat([corner, corner + sides], dim=1).to(device))
    half = strides[:, None] * (torch.rand(images, len(points), 2, generator=g) * 6 + 1)
    classes_total = 80
    return types.SimpleNamespace(
        points=points.to(device),
        strides=strides.to(device),
        boxes=torch.cat([points - half, points + half], dim=2).to(device),
        logits=(torch.randn(images, len(points), classes_total, generator=g) - 2).to(device),
        gt=gt,
        classes=[torch.arange(num_objects, device=device) % classes_total for _ in gt],
        image=torch.arange(images, device=device).repeat_interleave(num_objects),
        classes_total=classes_total,
    )


def _ours(s: types.SimpleNamespace) -> Dict[str, Callable]:
    objects = (torch.cat(s.gt), torch.cat(s.classes), s.image)
    scores = s.logits.sigmoid()
    yolo = {"form": "yolo", "topk": 10, "alpha": 0.5, "min_side": 16.0}
    places = (s.points, s.strides)
    return {
        "task-aligned (TOOD)": lambda: task_aligned_assignment(scores, s.boxes, s.points, *objects),
        "task-aligned (YOLO)": lambda: task_aligned_assignment(
            scores, s.boxes, s.points, *objects, **yolo
        ),
        "SimOTA": lambda: simota_assignment(scores, s.boxes, *places, *objects),
        "dynamic soft labels": lambda: dynamic_soft_label_assignment(
            s.logits, s.boxes, *places, *objects
        ),
    }


def _peer(mmdet: types.SimpleNamespace, name: str, s: types.SimpleNamespace) -> Optional[Callable]:
    """The same with mmdetection, image by image, as its heads call it."""
    side = s.strides[:, None]
    squares = torch.cat([s.points - 4 * side, s.points + 4 * side], dim=1)
    points = torch.cat([s.points, side, side], dim=1)
    scores = s.logits.sigmoid()
    tasks = mmdet.tasks
    made = {
        "task-aligned (TOOD)": (tasks.TaskAlignedAssigner, {"topk": 13}, scores, squares),
        "SimOTA": (tasks.SimOTAAssigner, {}, scores, points),
        "dynamic soft labels": (tasks.DynamicSoftLabelAssigner, {}, s.logits, points),
    }
    if name not in made:
        return None
    cls, options, values, priors = made[name]
    assigner, more = cls(**options), {"alpha": 1, "beta": 6} if "TOOD" in name else {}

    def run() -> None:
        for i, boxes in enumerate(s.gt):
            seen = mmdet.Data(scores=values[i], bboxes=s.boxes[i], priors=priors)
            assigner.assign(seen, mmdet.Data(bboxes=boxes, labels=s.classes[i]), **more)

    return run


def _losses(mmdet: Optional[types.SimpleNamespace], args: Any) -> List[Case]:
    """Varifocal, log IoU and GHM-R, forward and backward."""
    g = torch.Generator().manual_seed(0)
    rows, positives = (500, 50) if args.quick else (34000, 500)
    logits = (torch.randn(rows, 80, generator=g) - 4).to(args.device).requires_grad_()
    labels = torch.full((rows,), 80, device=args.device)
    labels[:positives] = torch.arange(positives, device=args.device) % 80
    quality = torch.rand(rows, generator=g).to(args.device)
    target = torch.zeros(rows, 80, device=args.device)
    target[torch.arange(positives), labels[:positives]] = quality[:positives]
    low = torch.rand(positives, 2, generator=g) * 300
    boxes = torch.cat([low, low + 40], dim=1).to(args.device)
    moved = (boxes + torch.randn(positives, 4, generator=g).to(args.device) * 5).requires_grad_()
    ones = torch.ones_like(boxes)

    def backward(loss: Callable, leaf: torch.Tensor) -> Callable:
        def run() -> None:
            leaf.grad = None
            loss().sum().backward()

        return run

    ours = {
        "varifocal": (lambda: varifocal_loss(logits, labels, quality), logits),
        "log IoU": (lambda: log_iou_loss(moved, boxes), moved),
        "GHM-R": (lambda: ghm_r_loss(moved, boxes), moved),
    }
    peers: Dict[str, Callable] = {}
    if mmdet is not None:
        losses = mmdet.losses
        varifocal = losses.VarifocalLoss(reduction="sum")
        log_iou, ghm = losses.IoULoss(mode="log", reduction="sum"), losses.GHMR()
        peers = {
            "varifocal": lambda: varifocal(logits, target),
            "log IoU": lambda: log_iou(moved, boxes),
            "GHM-R": lambda: ghm(moved, boxes, ones),
        }
    note = {"varifocal": f"{rows} x 80"}
    return [
        _case(
            f"{name} loss",
            backward(loss, leaf),
            backward(peers[name], leaf) if name in peers else None,
            note.get(name, f"{positives} boxes"),
        )
        for name, (loss, leaf) in ours.items()
    ]
