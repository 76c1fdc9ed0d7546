"""Assigners against Detectron2's own code and against plain per-object forms, ties included."""

import pytest
import torch
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes, Instances, pairwise_iou

from d2ext.modeling.assigners import (
    ASSIGNER_REGISTRY,
    ATSSAssigner,
    CenterAssigner,
    IoUAssigner,
    Priors,
    pack_targets,
)
from d2ext.testing import count_ops

NUM_CLASSES = 5
SIZE = 128
STRIDES = (8, 16, 32, 64)


def make_anchors(sides=(4.0,), size=SIZE, strides=STRIDES):
    """Square anchors of every level, ``sides`` in strides, centred in their cells."""
    levels = []
    for stride in strides:
        shift = (torch.arange(-(-size // stride)) + 0.5) * stride
        y, x = (v.reshape(-1, 1, 1) for v in torch.meshgrid(shift, shift, indexing="ij"))
        half = torch.tensor(sides).reshape(1, -1, 1) * stride / 2
        levels.append(Boxes(torch.cat([x - half, y - half, x + half, y + half], 2).reshape(-1, 4)))
    return levels


def make_instances(boxes, size=SIZE):
    boxes = torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Instances(
        (size, size), gt_boxes=Boxes(boxes), gt_classes=torch.arange(len(boxes)) % NUM_CLASSES
    )


def random_boxes(count, seed, integers=False):
    """Boxes partly outside the image; whole numbers make ties."""
    generator = torch.Generator().manual_seed(seed)
    center = torch.rand(count, 2, generator=generator) * SIZE * 1.2 - SIZE * 0.1
    side = torch.rand(count, 2, generator=generator) * SIZE * 0.6
    boxes = torch.cat([center - side / 2, center + side / 2], dim=1)
    return (boxes / 8).round() * 8 if integers else boxes


# No area, one pixel, a line, far outside (touches no prior), twins, the whole plane, inverted.
ODD_BOXES = [
    [20.0, 20.0, 20.0, 20.0],
    [30.0, 30.0, 31.0, 31.0],
    [40.0, 10.0, 40.0, 90.0],
    [9000.0, 9000.0, 9050.0, 9050.0],
    [16.0, 16.0, 80.0, 80.0],
    [16.0, 16.0, 80.0, 80.0],
    [-5000.0, -5000.0, 6000.0, 6000.0],
    [70.0, 70.0, 50.0, 50.0],
]
# Centred on a point of stride 8 or 16, the sides exactly at the bounds of a level's range.
BOUNDARY_BOXES = [
    [60.0 - 64, 60.0 - 64, 60.0 + 64, 60.0 + 64],
    [56.0 - 64, 56.0 - 64, 56.0 + 64, 56.0 + 64],
    [56.0 - 128, 56.0 - 128, 56.0 + 128, 56.0 + 128],
    [60.0 - 12, 60.0 - 12, 60.0 + 12, 60.0 + 12],
]
BATCHES = {
    "boundaries": [BOUNDARY_BOXES[:1], BOUNDARY_BOXES[1:2], BOUNDARY_BOXES[2:3], BOUNDARY_BOXES],
    "random": [random_boxes(7, 1), random_boxes(3, 2)],
    "ties": [random_boxes(12, 3, True), random_boxes(9, 4, True), random_boxes(1, 5, True)],
    "some images empty": [[], random_boxes(4, 6), [], random_boxes(1, 7), []],
    "odd": [ODD_BOXES, random_boxes(5, 8), [ODD_BOXES[3]], [ODD_BOXES[0]]],
    "nothing": [[], []],
    "uneven": [random_boxes(2, 9), random_boxes(60, 10, True), [], random_boxes(17, 11)],
}
# Everything in one block, several objects a block, one object of each image a block.
BLOCK_PAIRS = [None, 4000, 1]


def batch(name):
    return [make_instances(boxes) for boxes in BATCHES[name]]


def assert_same(assignment, targets, labels, boxes):
    """Equal labels, and equal boxes wherever the label is a class."""
    assert torch.equal(assignment.labels, torch.stack(labels))
    positive = (assignment.labels >= 0) & (assignment.labels < NUM_CLASSES)
    assert torch.equal(assignment.matched_boxes(targets)[positive], torch.stack(boxes)[positive])
    limit = max(len(targets.boxes), 1)
    assert (assignment.matched >= 0).all() and (assignment.matched < limit).all()


class Upstream:
    """The attributes that Detectron2's ``label_anchors`` methods ask for."""

    num_classes = NUM_CLASSES
    _match_anchors = FCOS._match_anchors

    def __init__(self, **kwargs):
        self.__dict__.update(kwargs)


@pytest.mark.parametrize("block_pairs", BLOCK_PAIRS)
@pytest.mark.parametrize("low_quality", [True, False])
@pytest.mark.parametrize("name", BATCHES)
def test_iou_assigner_equals_upstream(name, low_quality, block_pairs):
    anchors, instances = make_anchors((2.0, 4.0, 5.0)), batch(name)
    thresholds, labels = [0.4, 0.5], [0, -1, 1]
    upstream = Upstream(anchor_matcher=Matcher(thresholds, labels, low_quality))
    targets = pack_targets(instances)
    assigner = IoUAssigner(thresholds, labels, low_quality, block_pairs)
    assignment = assigner(Priors.from_boxes(anchors), targets, NUM_CLASSES)
    assert_same(assignment, targets, *RetinaNet.label_anchors(upstream, anchors, instances))

    for quality, matched, start, count, x in zip(
        assignment.quality, assignment.matched, targets.starts, targets.counts, instances
    ):
        if count == 0:
            assert (quality == 0).all()
            continue
        best, index = pairwise_iou(x.gt_boxes, Boxes.cat(anchors)).max(dim=0)
        assert torch.equal(quality, best)
        assert torch.equal(matched, index + start)


@pytest.mark.parametrize(
    "thresholds, labels", [([0.5], [0, 1]), ([0.3, 0.3], [0, -1, 1]), ([0.1, 0.4], [-1, 0, 1])]
)
def test_iou_assigner_equals_upstream_with_other_thresholds(thresholds, labels):
    anchors, instances = make_anchors((2.0, 4.0)), batch("ties") + batch("some images empty")
    upstream = Upstream(anchor_matcher=Matcher(thresholds, labels, True))
    targets = pack_targets(instances)
    assignment = IoUAssigner(thresholds, labels, True)(
        Priors.from_boxes(anchors), targets, NUM_CLASSES
    )
    assert_same(assignment, targets, *RetinaNet.label_anchors(upstream, anchors, instances))


def test_iou_of_two_boxes_without_area_is_zero():
    """0 / 0 would be NaN, and NaN the highest IoU of all."""
    anchors, instances = make_anchors((0.0, 4.0)), batch("odd")
    matcher = Matcher([0.5], [0, 1], allow_low_quality_matches=True)
    targets = pack_targets(instances)
    assigner = IoUAssigner([0.5], [0, 1], allow_low_quality=True)
    assignment = assigner(Priors.from_boxes(anchors), targets, NUM_CLASSES)
    upstream = RetinaNet.label_anchors(Upstream(anchor_matcher=matcher), anchors, instances)
    assert_same(assignment, targets, *upstream)
    assert assignment.quality.isfinite().all()


def test_iou_assigner_serves_a_proposal_generator():
    """Labels of RPN: 0 object, 1 background, -1 ignored, whatever the classes."""
    anchors, instances = make_anchors((2.0, 4.0)), batch("odd")
    targets = pack_targets(instances).class_agnostic()
    assigner = IoUAssigner([0.3, 0.7], [0, -1, 1], allow_low_quality=True)
    assignment = assigner(Priors.from_boxes(anchors), targets, 1)
    matcher = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)
    for labels, x in zip(assignment.labels, instances):
        _, expected = matcher(pairwise_iou(x.gt_boxes, Boxes.cat(anchors)))
        assert torch.equal(labels, torch.tensor([1, 0, -1])[expected.long()])


def test_object_that_touches_no_prior_makes_every_prior_a_low_quality_match():
    """Detectron2 does so; a form that only looks at overlapping pairs would not."""
    targets = pack_targets([make_instances([ODD_BOXES[3]])])
    priors = Priors.from_boxes(make_anchors())
    assert (IoUAssigner([0.5], [0, 1], True)(priors, targets, NUM_CLASSES).labels == 0).all()
    labels = IoUAssigner([0.5], [0, 1], False)(priors, targets, NUM_CLASSES).labels
    assert (labels == NUM_CLASSES).all()


@pytest.mark.parametrize(
    "thresholds, labels, message",
    [
        ([0.5], [0, -1, 1], "separate 2 labels"),
        ([0.5, 0.4], [0, -1, 1], "ascend"),
        ([0.0], [0, 1], "positive"),
        ([0.5], [0, 2], "-1, 0 or 1"),
    ],
)
def test_iou_assigner_refuses_nonsense(thresholds, labels, message):
    with pytest.raises(ValueError, match=message):
        IoUAssigner(thresholds, labels)


@pytest.mark.parametrize("block_pairs", BLOCK_PAIRS)
@pytest.mark.parametrize("radius", [1.5, 0.5, 100.0])
@pytest.mark.parametrize("name", BATCHES)
def test_center_assigner_equals_upstream(name, radius, block_pairs):
    points, instances = make_anchors((1.0,)), batch(name)
    targets = pack_targets(instances)
    assigner = CenterAssigner(center_sampling_radius=radius, block_pairs=block_pairs)
    assignment = assigner(Priors.from_boxes(points), targets, NUM_CLASSES)
    upstream = Upstream(center_sampling_radius=radius)
    assert_same(assignment, targets, *FCOS.label_anchors(upstream, points, instances))


def test_center_assigner_prefers_the_smaller_and_then_the_first_object():
    """Areas 4096 and 4100 are the same number once subtracted from 1e8 in float32."""
    points = Priors.from_boxes(make_anchors((1.0,), strides=(8,)))
    center = torch.tensor([64.0, 64.0])
    sides = torch.tensor([[64.0, 64.0625], [64.0, 64.0], [48.0, 48.0]])
    boxes = torch.cat([center - sides / 2, center + sides / 2], dim=1)
    for chosen, winner in (([0, 1, 2], 2), ([0, 1], 0), ([1, 0], 1)):
        targets = pack_targets([make_instances(boxes[chosen])])
        assignment = CenterAssigner()(points, targets, NUM_CLASSES)
        positive = assignment.labels < NUM_CLASSES
        assert positive.any()
        matched = assignment.matched_boxes(targets)[positive]
        assert torch.equal(matched, boxes[winner].expand_as(matched))


def plain_atss(anchors, instances, topk, clamp_centers):
    """ATSS in the words of the paper: image by image, object by object, level by level."""
    priors = Boxes.cat(anchors)
    centers = priors.get_centers()
    labels, matched = [], []
    for x in instances:
        best_iou = torch.full((len(priors),), -1.0)
        label = torch.full((len(priors),), NUM_CLASSES)
        boxes = torch.zeros(len(priors), 4)
        for box, cls in zip(x.gt_boxes.tensor, x.gt_classes):
            middle = (box[:2] + box[2:]) / 2
            if clamp_centers:
                height, width = x.image_size
                middle = middle.clamp(min=0).minimum(torch.tensor([width, height]))
            candidates, first = [], 0
            for level in anchors:
                distance = ((level.get_centers() - middle) ** 2).sum(dim=1).tolist()
                nearest = sorted(range(len(level)), key=lambda i, d=distance: (d[i], i))[:topk]
                candidates += [first + i for i in nearest]
                first += len(level)
            iou = pairwise_iou(Boxes(box[None]), priors[torch.tensor(candidates)])
            threshold = iou.mean(dim=1) + (iou.std(dim=1) if len(candidates) > 1 else 0)
            for i, value in zip(candidates, iou[0]):
                sides = torch.cat([centers[i] - box[:2], box[2:] - centers[i]])
                if value >= threshold and sides.min() > 0.01 and value > best_iou[i]:
                    best_iou[i], label[i], boxes[i] = value, cls, box
        labels.append(label)
        matched.append(boxes)
    return labels, matched


@pytest.mark.parametrize("block_pairs", [None, 300])
@pytest.mark.parametrize("sides, topk", [((8.0,), 9), ((3.0, 4.0), 18), ((8.0,), 1000)])
@pytest.mark.parametrize("name", BATCHES)
def test_atss_equals_the_plain_form(name, sides, topk, block_pairs):
    anchors, instances = make_anchors(sides), batch(name)
    for clamp_centers in (False, True):
        targets = pack_targets(instances)
        assigner = ATSSAssigner(topk, clamp_centers, block_pairs)
        assignment = assigner(Priors.from_boxes(anchors), targets, NUM_CLASSES)
        assert_same(assignment, targets, *plain_atss(anchors, instances, topk, clamp_centers))


def test_atss_takes_the_lower_index_of_equally_distant_priors():
    """The centre of a 2 x 2 grid is as far from all four; only one candidate is allowed."""
    anchors = make_anchors((4.0,), size=16, strides=(8,))
    targets = pack_targets([make_instances([0.0, 0.0, 16.0, 16.0])])
    labels = ATSSAssigner(topk=1)(Priors.from_boxes(anchors), targets, NUM_CLASSES).labels
    assert labels.tolist() == [[0, NUM_CLASSES, NUM_CLASSES, NUM_CLASSES]]


def test_atss_clamps_a_centre_into_the_image():
    """Of an object whose centre is outside, priors nearer to the image are positive."""
    box = make_instances([96.0, 40.0, 400.0, 88.0])
    priors = Priors.from_boxes(make_anchors((4.0,), size=512, strides=STRIDES))
    results = [
        ATSSAssigner(clamp_centers=clamp)(priors, pack_targets([box]), NUM_CLASSES).labels[0]
        for clamp in (False, True)
    ]
    x = (priors.boxes[:, 0] + priors.boxes[:, 2]) / 2
    outside, clamped = (x[labels < NUM_CLASSES] for labels in results)
    assert outside.min() > SIZE
    assert clamped.median() < outside.min() and clamped.max() < outside.max()


def test_atss_positives_have_their_centre_in_their_object():
    targets = pack_targets(batch("uneven"))
    priors = Priors.from_boxes(make_anchors((8.0,)))
    assignment = ATSSAssigner()(priors, targets, NUM_CLASSES)
    positive = assignment.labels < NUM_CLASSES
    assert positive.sum() > 20
    center = ((priors.boxes[:, :2] + priors.boxes[:, 2:]) / 2).expand(len(positive), -1, 2)
    boxes = assignment.matched_boxes(targets)[positive]
    assert (center[positive] > boxes[:, :2]).all() and (center[positive] < boxes[:, 2:]).all()
    assert (assignment.quality[positive] > 0).all() and (assignment.quality[~positive] == 0).all()
    image = positive.nonzero()[:, 0]
    assert torch.equal(targets.image[assignment.matched[positive]], image)


def test_atss_refuses_no_candidates():
    with pytest.raises(ValueError, match="topk is 0"):
        ATSSAssigner(topk=0)


ASSIGNERS = {
    "iou": (
        (2.0, 4.0, 5.0),
        {"thresholds": [0.4, 0.5], "labels": [0, -1, 1], "allow_low_quality": True},
    ),
    "center": ((1.0,), {}),
    "atss": ((8.0,), {}),
}


@pytest.mark.parametrize("name", ASSIGNERS)
def test_operations_do_not_grow_with_images_or_objects_and_nothing_waits(name):
    sides, kwargs = ASSIGNERS[name]
    assigner = ASSIGNER_REGISTRY.get(name)(**kwargs)
    priors = Priors.from_boxes(make_anchors(sides))
    totals = set()
    for counts in ([1, 2], [5, 9], [3, 0, 7, 1, 2, 9, 4, 8], [30] * 16):
        instances = [make_instances(random_boxes(n, i)) for i, n in enumerate(counts)]
        with count_ops() as ops:
            targets = pack_targets(instances)
            assignment = assigner(priors, targets, NUM_CLASSES)
            assignment.matched_boxes(targets)
        totals.add(ops.total)
        assert ops.num_syncs == 0, ops.syncs
    assert len(totals) == 1


@pytest.mark.parametrize("name", ASSIGNERS)
def test_a_crowd_of_objects_takes_modest_memory(name):
    """No tensor is larger than a block's buffers, let alone objects x priors x 4."""
    sides, kwargs = ASSIGNERS[name]
    block_pairs = 1 << 17
    assigner = ASSIGNER_REGISTRY.get(name)(**kwargs, block_pairs=block_pairs)
    priors = Priors.from_boxes(make_anchors(sides, size=512))
    instances = [make_instances(random_boxes(n, n)) for n in (2000, 0, 50)]
    targets = pack_targets(instances)
    with count_ops() as ops:
        assignment = assigner(priors, targets, NUM_CLASSES)
    assert 2000 * len(priors.boxes) > 50 * block_pairs
    # Three buffers, or the few box coordinates of the candidates.
    assert ops.largest <= max(3 * block_pairs, 4 * 2050 * 9 * len(STRIDES))
    assert (assignment.labels[0] < NUM_CLASSES).any()
    assert (assignment.labels[1] == NUM_CLASSES).all()


@pytest.mark.parametrize("name", ASSIGNERS)
def test_images_do_not_see_each_other(name):
    """Assigning a batch is assigning its images one by one."""
    sides, kwargs = ASSIGNERS[name]
    assigner = ASSIGNER_REGISTRY.get(name)(**kwargs)
    priors = Priors.from_boxes(make_anchors(sides))
    instances = batch("uneven")
    together = assigner(priors, pack_targets(instances), NUM_CLASSES)
    for i, x in enumerate(instances):
        alone = assigner(priors, pack_targets([x]), NUM_CLASSES)
        assert torch.equal(together.labels[i], alone.labels[0])


def test_pack_targets_keeps_images_apart():
    targets = pack_targets(
        [make_instances(b) for b in ([], random_boxes(2, 0), random_boxes(1, 1))]
    )
    assert targets.counts == (0, 2, 1) and targets.starts == [0, 0, 2]
    assert targets.image.tolist() == [1, 1, 2] and targets.num_images == 3
    assert targets.classes.tolist() == [0, 1, 0]
    assert targets.image_sizes == ((SIZE, SIZE),) * 3
    assert targets.class_agnostic().classes.tolist() == [0, 0, 0]


def test_pack_targets_of_boxes_without_classes():
    instances = Instances((SIZE, SIZE), gt_boxes=Boxes(random_boxes(2, 0)))
    assert pack_targets([instances]).classes.tolist() == [0, 0]


def test_pack_targets_refuses_an_empty_batch():
    with pytest.raises(ValueError, match="at least one image"):
        pack_targets([])


def test_matched_boxes_of_a_batch_without_objects_are_zero():
    targets = pack_targets(batch("nothing"))
    priors = Priors.from_boxes(make_anchors())
    boxes = CenterAssigner()(priors, targets, NUM_CLASSES).matched_boxes(targets)
    assert boxes.shape == (2, len(priors.boxes), 4) and not boxes.any()


def test_count_ops_sees_what_makes_the_host_wait():
    x = torch.arange(4.0)
    mask = x > 1
    for wait in (x.sum().item, mask.nonzero, lambda: x[mask], lambda: x.masked_select(mask)):
        with count_ops() as ops:
            wait()
        assert ops.num_syncs == 1
    with count_ops() as ops:
        x[mask] = 0.0
        x.view(2, 2).masked_fill(mask.view(2, 2), 1.0)
    assert ops.num_syncs == 0
    assert ops.by_name["view"] == 2 and ops.total < sum(ops.by_name.values())
