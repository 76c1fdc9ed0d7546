"""Assignment of a batch: IoU, centre sampling and ATSS, beside what goes image by image.

Peers are the labelling of Detectron2's RetinaNet and FCOS, and ATSS written down plainly, one
object after the other.

Shapes: N images, G objects of an image, R priors of all levels, C classes.
"""

from types import SimpleNamespace
from typing import Any, Callable, List, Tuple

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.structures import Boxes, Instances, pairwise_iou

from d2ext.modeling.assigners import (
    ATSSAssigner,
    CenterAssigner,
    IoUAssigner,
    Priors,
    pack_targets,
)
from d2ext.modeling.proposal_generator.sampling import subsample_rows

from .runner import Case, Ratio

__all__ = ["cases", "make_anchors", "make_targets", "plain_atss"]

STRIDES = (8, 16, 32, 64, 128)
NUM_CLASSES = 80
Size = Tuple[int, int]


def make_targets(num_images: int, num_objects: int, size: Size, device: Any) -> List[Instances]:
    """Objects of log-uniform sizes, the same in every run."""
    g = torch.Generator().manual_seed(0)
    targets, whole = [], torch.tensor(size[::-1])
    for _ in range(num_images):
        sides = torch.exp(torch.empty(num_objects, 2).uniform_(2.77, 6.4, generator=g))
        sides = torch.min(sides, whole * 0.95)
        corner = torch.rand(num_objects, 2, generator=g) * (whole - sides)
        classes = torch.randint(NUM_CLASSES, (num_objects,), generator=g)
        boxes = torch.cat((corner, corner + sides), dim=1)
        targets.append(Instances(size, gt_boxes=Boxes(boxes), gt_classes=classes).to(device))
    return targets


def make_anchors(
    size: Size, device: Any, sizes, ratios, strides=STRIDES, offset: float = 0.0
) -> List[Boxes]:
    generator = DefaultAnchorGenerator(
        sizes=sizes, aspect_ratios=[ratios], strides=list(strides), offset=offset
    ).to(device)
    maps = [torch.zeros(1, 1, -(-size[0] // s), -(-size[1] // s), device=device) for s in strides]
    return generator(maps)


def cases(args: Any) -> List[Case]:
    """Two images with few objects and with a crowd."""
    height, width = size = (256, 320) if args.quick else (800, 1088)
    result = []
    for num_objects in (10, 100):
        targets = make_targets(2, num_objects, size, args.device)
        for name, ours, peer, peer_name in _pairs(targets, size, args.device):
            result.append(
                Case(
                    f"{name}, {num_objects} objects an image",
                    {"d2ext": ours, peer_name: peer},
                    [Ratio("d2ext", peer_name)],
                    note=f"2 images of {height} x {width}",
                )
            )
    return result


def _pairs(targets: List[Instances], size: Size, device: Any) -> List[tuple]:
    """What is assigned, our way, the peer's way, and whose that is."""
    octaves = [[4 * s * 2 ** (k / 3) for k in range(3)] for s in STRIDES]
    retinanet = make_anchors(size, device, octaves, [0.5, 1.0, 2.0])
    points = make_anchors(size, device, [[s] for s in STRIDES], [1.0], offset=0.5)
    squares = make_anchors(size, device, [[8 * s] for s in STRIDES], [1.0], offset=0.5)
    rpn_strides = (4, 8, 16, 32, 64)
    rpn = make_anchors(size, device, [[8 * s] for s in rpn_strides], [0.5, 1.0, 2.0], rpn_strides)
    return [
        (
            "IoU (RetinaNet)",
            _assign(
                IoUAssigner([0.4, 0.5], [0, -1, 1], allow_low_quality=True), retinanet, targets
            ),
            _upstream_retinanet(retinanet, targets),
            "Detectron2",
        ),
        (
            "centre sampling (FCOS)",
            _assign(CenterAssigner(center_sampling_radius=1.5), points, targets),
            _upstream_fcos(points, targets),
            "Detectron2",
        ),
        (
            "ATSS",
            _assign(ATSSAssigner(), squares, targets),
            lambda: [plain_atss(squares, x) for x in targets],
            "plain",
        ),
        ("IoU and random samples (RPN)", *_rpn(rpn, targets), "Detectron2"),
    ]


def _assign(assigner: Any, anchors: List[Boxes], targets: List[Instances]) -> Callable:
    def ours():
        packed = pack_targets(targets)
        assignment = assigner(Priors.from_boxes(anchors), packed, NUM_CLASSES)
        return assignment.labels, assignment.matched_boxes(packed)

    return ours


def _upstream_retinanet(anchors: List[Boxes], targets: List[Instances]) -> Callable:
    matcher = Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=True)
    model = SimpleNamespace(anchor_matcher=matcher, num_classes=NUM_CLASSES)
    return lambda: RetinaNet.label_anchors(model, anchors, targets)


def _upstream_fcos(anchors: List[Boxes], targets: List[Instances]) -> Callable:
    model = SimpleNamespace(num_classes=NUM_CLASSES, center_sampling_radius=1.5)
    model._match_anchors = lambda *args: FCOS._match_anchors(model, *args)
    return lambda: FCOS.label_anchors(model, anchors, targets)


def _rpn(anchors: List[Boxes], targets: List[Instances]) -> Tuple[Callable, Callable]:
    assigner = IoUAssigner([0.3, 0.7], [0, -1, 1], allow_low_quality=True)

    def ours():
        packed = pack_targets(targets)
        assignment = assigner(Priors.from_boxes(anchors), packed.class_agnostic(), 1)
        labels = torch.where(assignment.labels < 0, -1, 1 - assignment.labels).to(torch.int8)
        return subsample_rows(labels, 256, 0.5), assignment.matched_boxes(packed)

    model = SimpleNamespace(
        anchor_matcher=Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True),
        anchor_boundary_thresh=-1,
        batch_size_per_image=256,
        positive_fraction=0.5,
    )
    model._subsample_labels = lambda label: RPN._subsample_labels(model, label)
    return ours, lambda: RPN.label_and_sample_anchors(model, anchors, targets)


@torch.no_grad()
def plain_atss(
    anchors: List[Boxes], instances: Instances, top: int = 9
) -> Tuple[torch.Tensor, torch.Tensor]:
    """ATSS of one image, straight from the paper's algorithm: labels (R,), matched boxes (R, 4)."""
    priors, boxes = Boxes.cat(anchors), instances.gt_boxes
    centers = priors.get_centers()
    best = centers.new_full((len(priors),), -1.0)
    labels = torch.full((len(priors),), NUM_CLASSES, device=centers.device)
    matched = torch.zeros_like(priors.tensor)
    for box, label in zip(boxes.tensor, instances.gt_classes):
        iou = pairwise_iou(priors, Boxes(box[None]))[:, 0]
        distance = (centers - (box[:2] + box[2:]) / 2).square().sum(dim=1)
        candidates, start = [], 0
        for level in anchors:
            near = distance[start : start + len(level)]
            nearest = near.topk(min(top, len(near)), largest=False).indices
            candidates.append(nearest + start)
            start += len(level)
        index = torch.cat(candidates)
        threshold = iou[index].mean() + iou[index].std()
        sides = torch.cat([centers[index] - box[:2], box[2:] - centers[index]], dim=1)
        keep = (iou[index] >= threshold) & (sides.amin(dim=1) > 0) & (iou[index] > best[index])
        index = index[keep]
        best[index], labels[index], matched[index] = iou[index], label, box
    return labels, matched
