"""Assigners that see predictions against plain loops over objects, and their promises.

Equality with the reference code is test_rivals_golden.py's.
"""

import math

import pytest
import torch

from d2ext.ops import host, prediction_candidates
from d2ext.ops.prediction_assignment import (
    dynamic_soft_label_assignment,
    simota_assignment,
    task_aligned_assignment,
)
from d2ext.testing import count_ops

SIZE, CLASSES = 64, 3
STRIDES = (8, 16)


def make(counts=(3, 0, 5), seed=0, dtype=torch.float32, whole=False):
    """Arguments of the assigners but strides, and the strides; ``whole`` numbers make ties."""
    g = torch.Generator().manual_seed(seed)
    points, strides = [], []
    for stride in STRIDES:
        shift = (torch.arange(SIZE // stride) + 0.5) * stride
        y, x = torch.meshgrid(shift, shift, indexing="ij")
        points.append(torch.stack([x.flatten(), y.flatten()], dim=1))
        strides.append(torch.full((x.numel(),), float(stride)))
    points, strides = torch.cat(points), torch.cat(strides)
    gt = torch.rand(sum(counts), 4, generator=g) * 40
    gt[:, 2:] += gt[:, :2] + 4
    half = strides[:, None] * (torch.rand(len(counts), len(points), 2, generator=g) * 3 + 0.5)
    boxes = torch.cat([points - half, points + half], dim=2)
    scores = torch.rand(len(counts), len(points), CLASSES, generator=g)
    if whole:
        gt, boxes, scores = (gt / 16).round() * 16, (boxes / 16).round() * 16, scores.round() * 0.5
    classes = torch.randint(0, CLASSES, (len(gt),), generator=g)
    image = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return [x.to(dtype) for x in (scores, boxes, points, gt)] + [classes, image], strides.to(dtype)


def iou(a, b):
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    meet = max(width, 0) * max(height, 0)
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - meet
    return meet / max(union, 1e-6)


def side(point, box):
    return min(point[0] - box[0], box[2] - point[0], point[1] - box[1], box[3] - point[1])


def plain_tood(scores, boxes, points, gt, classes, topk=13):
    """One image: {prior: object} and targets, with the ties as documented."""
    t = [
        [scores[r][c] * iou(boxes[r], o) ** 6 for r in range(len(points))]
        for o, c in zip(gt, classes)
    ]
    wanted = {}
    for g, row in enumerate(t):
        best = sorted(range(len(row)), key=lambda r: (-row[r], r))[:topk]
        for r in best:
            if row[r] > 0 and side(points[r], gt[g]) > 0.01:
                wanted.setdefault(r, []).append(g)
    owner = {r: max(gs, key=lambda g: (iou(boxes[r], gt[g]), -g)) for r, gs in wanted.items()}
    target = {}
    for r, g in owner.items():
        mine = [q for q, other in owner.items() if other == g]
        top_iou = max(iou(boxes[q], gt[g]) for q in mine)
        target[r] = t[g][r] / (max(t[g][q] for q in mine) + 1e-7) * top_iou
    return owner, target


def bce(p, y):
    return (
        -(y * max(math.log(p), -100) if y else max(math.log1p(-p), -100))
        if 0 < p < 1
        else (0.0 if p == y else 100.0)
    )


def plain_simota(scores, boxes, points, strides, gt, classes):
    """One image: {prior: object}."""
    if not gt:
        return {}
    centres = [((o[0] + o[2]) / 2, (o[1] + o[3]) / 2) for o in gt]

    def central(r, g):
        x, y = centres[g]
        return max(abs(points[r][0] - x), abs(points[r][1] - y)) < 2.5 * strides[r]

    valid = [
        r
        for r in range(len(points))
        if any(side(points[r], o) > 0 or central(r, g) for g, o in enumerate(gt))
    ]
    cost = {}
    for g, o in enumerate(gt):
        for r in valid:
            c = sum(bce(p, int(j == classes[g])) for j, p in enumerate(scores[r]))
            c += 3 * -math.log(iou(boxes[r], o) + 1e-7)
            cost[g, r] = c + 1e5 * (not (central(r, g) and side(points[r], o) > 0))
    wanted = {}
    for g, o in enumerate(gt):
        best = sorted((iou(boxes[r], o) for r in valid), reverse=True)[:10]
        for r in sorted(valid, key=lambda r: (cost[g, r], r))[: max(int(sum(best)), 1)]:
            wanted.setdefault(r, []).append(g)
    return {
        r: gs[0] if len(gs) == 1 else min(range(len(gt)), key=lambda g: (cost[g, r], g))
        for r, gs in wanted.items()
    }


def images(arguments):
    scores, boxes, points, gt, classes, image = (x.tolist() for x in arguments)
    for n in range(len(scores)):
        mine = [g for g, i in enumerate(image) if i == n]
        yield (
            n,
            mine,
            (scores[n], boxes[n], points),
            [gt[g] for g in mine],
            [classes[g] for g in mine],
        )


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_task_aligned_is_its_plain_form(seed, whole):
    arguments, _ = make(seed=seed, dtype=torch.float64, whole=whole)
    result = task_aligned_assignment(*arguments)
    for n, mine, predictions, gt, classes in images(arguments):
        owner, target = plain_tood(*predictions, gt, classes)
        owner = {r: mine[g] for r, g in owner.items()}
        positive = (result.labels[n] < CLASSES).nonzero().flatten().tolist()
        assert {r: int(result.matched[n, r]) for r in positive} == owner
        for r in owner:
            assert result.target[n, r] == pytest.approx(target[r], rel=1e-9)
            assert result.labels[n, r] == arguments[4][owner[r]]


@pytest.mark.parametrize("seed", range(4))
def test_simota_is_its_plain_form(seed):
    arguments, strides = make(seed=seed, dtype=torch.float64)
    result = simota_assignment(*arguments[:3], strides, *arguments[3:])
    for n, mine, predictions, gt, classes in images(arguments):
        owner = plain_simota(*predictions, strides.tolist(), gt, classes)
        positive = (result.labels[n] < CLASSES).nonzero().flatten().tolist()
        assert {r: int(result.matched[n, r]) for r in positive} == {
            r: mine[g] for r, g in owner.items()
        }


ASSIGNERS = {
    "tood": lambda a, strides: task_aligned_assignment(*a),
    "yolo": lambda a, strides: task_aligned_assignment(*a, form="yolo", topk=10, min_side=16.0),
    "one to one": lambda a, strides: task_aligned_assignment(*a, form="yolo", topk=10, topk2=1),
    "simota": lambda a, strides: simota_assignment(*a[:3], strides, *a[3:]),
    "dsl": lambda a, strides: dynamic_soft_label_assignment(
        torch.logit(a[0], eps=1e-6), *a[1:3], strides, *a[3:]
    ),
}
every = pytest.mark.parametrize("name", list(ASSIGNERS))


@every
def test_images_are_independent_and_blocks_leave_no_trace(name, monkeypatch):
    arguments, strides = make(counts=(3, 0, 5, 1), seed=5)
    whole = ASSIGNERS[name](arguments, strides)
    monkeypatch.setattr(prediction_candidates, "_CPU_PAIRS", 64)  # many blocks
    for a, b in zip(whole, ASSIGNERS[name](arguments, strides)):
        assert torch.equal(a, b)
    first = 0
    for n, count in enumerate((3, 0, 5, 1)):
        scores, boxes, points, gt, classes, _ = arguments
        own = [
            scores[n : n + 1],
            boxes[n : n + 1],
            points,
            gt[first : first + count],
            classes[first : first + count],
            torch.zeros(count, dtype=torch.int64),
        ]
        alone = ASSIGNERS[name](own, strides)
        matched = torch.where(alone.labels < CLASSES, alone.matched + first, 0)
        for a, b in zip(whole, alone._replace(matched=matched)):
            assert torch.equal(a[n : n + 1], b)
        first += count


@every
def test_background_where_nothing_can_be_assigned(name):
    for counts in ((0,), (0, 0)):
        arguments, strides = make(counts=counts)
        result = ASSIGNERS[name](arguments, strides)
        assert (result.labels == CLASSES).all() and not any(x.any() for x in result[1:])
    arguments, strides = make()
    arguments[3] = arguments[3] + 1e4  # no prior is near
    if name != "simota":
        assert (ASSIGNERS[name](arguments, strides).labels == CLASSES).all()
    if name in ("tood", "yolo"):
        arguments, strides = make()
        arguments[0].zero_()  # t is 0 everywhere
        assert (ASSIGNERS[name](arguments, strides).labels == CLASSES).all()


@every
def test_predictions_that_are_no_numbers_are_never_assigned(name):
    arguments, strides = make(seed=3)
    arguments[1][:, ::3, 1] = float("nan")
    arguments[0][:, 1::3] = float("nan")
    result = ASSIGNERS[name](arguments, strides)
    bad = torch.zeros(len(strides), dtype=torch.bool)
    bad[::3] = bad[1::3] = True
    positive = result.labels < CLASSES
    assert positive.any()
    if name not in ("simota", "dsl"):  # these take what there is if an object has nothing else
        assert not positive[:, bad].any()
    assert torch.isfinite(result.target[:, ~bad]).all()


@every
def test_half_precision_is_computed_in_float32(name):
    arguments, strides = make(seed=7)
    half = [x.half() if x.is_floating_point() else x for x in arguments]
    single = [x.float() if x.is_floating_point() else x for x in half]
    for a, b in zip(ASSIGNERS[name](half, strides), ASSIGNERS[name](single, strides)):
        assert torch.equal(a, b)


@every
def test_labels_are_refused_or_harmless_beyond_the_classes(name, monkeypatch):
    arguments, strides = make()
    arguments[4] = arguments[4] + 7
    with pytest.raises(ValueError, match="has the label .* but the detector has 3 classes"):
        ASSIGNERS[name](arguments, strides)
    monkeypatch.setattr(host, "asking_is_free", lambda tensor: False)
    assert ASSIGNERS[name](arguments, strides).labels.max() <= CLASSES


@every
def test_one_sync_whatever_the_number_of_objects(name, monkeypatch):
    monkeypatch.setattr(host, "asking_is_free", lambda tensor: False)
    totals = []
    for counts in ((2, 1), (9, 7), (0, 30)):
        arguments, strides = make(counts=counts)
        with count_ops() as ops:
            ASSIGNERS[name](arguments, strides)
        assert ops.num_syncs <= 1, ops.syncs
        totals.append(ops.total)
    assert max(totals) - min(totals) <= 3, totals
    assert max(totals) < 330, totals


def test_forms_and_shapes_that_do_not_exist_are_refused():
    arguments, _ = make()
    with pytest.raises(ValueError, match="the forms tood and yolo, not 'yolox'"):
        task_aligned_assignment(*arguments, form="yolox")
    with pytest.raises(ValueError, match="takes scores .N, R, C. and boxes .N, R, 4."):
        task_aligned_assignment(arguments[0][0], *arguments[1:])
