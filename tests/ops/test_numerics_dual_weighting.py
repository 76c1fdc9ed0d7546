"""Numerics campaign, part 3: dual weighting, its joint loss and its search for pairs.

Shapes: N images, P points, C classes, M = N P rows, G objects, K pairs.
"""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from numerics_kit import (
    HALF,
    INF,
    NAN,
    as_leaf64,
    assert_close,
    assert_finite,
    bad_values,
    classes,
    covers,
    draw_boxes,
    draw_logits,
    dtypes,
    generator,
    gradient,
    leaf,
    seeds,
)
from torch.nn import functional as F

from d2ext.ops.dual_weighting import DualWeightingConstants, dual_weighting_losses, dual_weights
from d2ext.ops.joint_sigmoid import joint_sigmoid_losses
from d2ext.ops.point_pairs import points_in_boxes

few = st.sampled_from([0, 1, 2, 9])
wide_dtypes = st.sampled_from([torch.float32, torch.float64])


def draw_cells(num_rows, num_classes, num_pairs, seed, dtype):
    """Cells that may repeat, with weights as the op wants them."""
    g = generator(seed)
    num_pairs = num_pairs if num_rows else 0
    cell = torch.randint(0, max(num_rows * num_classes, 1), (num_pairs,), generator=g)
    pos = torch.rand(num_pairs, generator=g, dtype=torch.float64).to(dtype)
    table = torch.rand(num_rows * num_classes, generator=g, dtype=torch.float64).to(dtype)
    return cell, pos, table[cell]


def plain_joint(x, y, cell, pos, neg, gamma):
    """Cell by cell in logarithms of probabilities; (positive, negative) sums."""
    log_p = F.logsigmoid(x) + F.logsigmoid(y)[:, None]
    log_rest = torch.logaddexp(F.logsigmoid(-x), F.logsigmoid(x) + F.logsigmoid(-y)[:, None])
    weight = torch.ones_like(x).flatten().index_put((cell,), neg.double()).view_as(x)
    # As documented, 1 - p counts as constant below 1e-30.
    negative = weight * torch.exp(gamma * log_p) * -log_rest.clamp(min=math.log(1e-30))
    return (pos.double() * -log_p.flatten()[cell]).sum(), negative.sum()


@given(few, classes, few, wide_dtypes, seeds, st.sampled_from([1.0, 1.5, 2.0]))
@covers(joint_sigmoid_losses)
def test_joint_losses_equal_the_plain_form(num_rows, num_classes, num_pairs, dtype, seed, gamma):
    x = draw_logits((num_rows, num_classes), seed, dtype)
    y = draw_logits((num_rows,), seed + 1, dtype)
    cell, pos, neg = draw_cells(num_rows, num_classes, num_pairs, seed + 2, dtype)
    (x, ex), (y, ey) = ((leaf(v), as_leaf64(v)) for v in (x, y))
    for got, want in zip(
        joint_sigmoid_losses(x, y, cell, pos, neg, gamma),
        plain_joint(ex, ey, cell, pos, neg, gamma),
    ):
        # 1 - p is rounded near 1, so that what p below 1e-7 costs is known to 1e-7, not relatively.
        assert_close(got, want, dtype, scale=max(float(want.detach()), 1.0))
        # Near the limit the gradient falls to 0, the plain form's at once.
        saturated = (ex > 60) & (ey > 60)[:, None]
        for a, b, skip in ((x, ex, saturated), (y, ey, saturated.any(1))):
            assert_finite(gradient(got, a))
            scale = max(float(gradient(want, b).abs().max()) if b.numel() else 0, 1.0)
            assert_close(gradient(got, a)[~skip], gradient(want, b)[~skip], dtype, scale=scale)


def test_joint_gradients_are_never_subnormal():
    x = torch.linspace(-100, 100, 3000).view(1000, 3).requires_grad_()
    y = torch.linspace(-90, 90, 1000)[torch.randperm(1000, generator=generator(0))]
    cell, pos, neg = draw_cells(1000, 3, 500, 1, torch.float32)
    positive, negative = joint_sigmoid_losses(x, y.requires_grad_(), cell, pos * 1e-20, neg)
    for part in torch.autograd.grad((positive + negative) / 100, (x, y)):
        size = part.abs()
        assert (size == 0).any() and (size > 0).any()
        assert not ((size > 0) & (size < torch.finfo(torch.float32).tiny)).any()


@given(classes, wide_dtypes, seeds, bad_values, st.booleans())
@covers(joint_sigmoid_losses)
def test_a_bad_logit_is_seen_or_is_its_limit(num_classes, dtype, seed, bad, in_objectness):
    x, y = draw_logits((4, num_classes), seed, dtype), draw_logits((4,), seed + 1, dtype)
    if in_objectness and seed % 2:
        x[2, 0] = bad  # both
    (y if in_objectness else x[:, 0])[2] = bad
    cell, pos, neg = draw_cells(4, num_classes, 5, seed, dtype)
    positive, negative = joint_sigmoid_losses(x, y, cell, pos, neg)
    if in_objectness or bad != bad:
        assert torch.isnan(negative)
    elif torch.isfinite(negative):
        limit = x.double().clamp(-1e6, 1e6)
        assert_close(negative, plain_joint(limit, y.double(), cell, pos, neg, 2.0)[1], dtype)
    if torch.isfinite(positive):
        limits = (v.double().clamp(-1e6, 1e6) for v in (x, y))
        assert_close(positive, plain_joint(*limits, cell, pos, neg, 2.0)[0], dtype)


@given(st.integers(1, 3), st.integers(1, 3), seeds)
@covers(joint_sigmoid_losses)
def test_gradcheck_of_the_joint_losses(num_rows, num_classes, seed):
    x = leaf(draw_logits((num_rows, num_classes), seed, torch.float64, extreme=False))
    y = leaf(draw_logits((num_rows,), seed + 1, torch.float64, extreme=False))
    cell, pos, neg = draw_cells(num_rows, num_classes, 3, seed, torch.float64)
    torch.autograd.gradcheck(lambda a, b: joint_sigmoid_losses(a, b, cell, pos, neg), (x, y))


def draw_points(seed, dtype, regular):
    """Points of one to three levels, or ones that are no grid."""
    g = generator(seed)
    levels = int(torch.randint(1, 4, (), generator=g))
    points, strides = [], []
    for level in range(levels):
        stride, h, w = 8.0 * 2**level, *torch.randint(1, 6, (2,), generator=g).tolist()
        x = (torch.arange(w) + 0.5).repeat(h, 1) * stride
        y = ((torch.arange(h) + 0.5) * stride)[:, None].expand(h, w)
        points.append(torch.stack([x, y], dim=-1).reshape(-1, 2))
        strides.append(torch.full((h * w,), stride))
    points, strides = torch.cat(points), torch.cat(strides)
    if not regular:
        points = points[torch.randperm(len(points), generator=g)]
    return points.to(dtype), strides.to(dtype)


def brute_force(points, boxes):
    inside = (points > boxes[:, None, :2]).all(-1) & (points < boxes[:, None, 2:]).all(-1)
    box, point = inside.nonzero().unbind(1)
    return point, box


@given(few, dtypes, seeds, st.booleans(), st.sampled_from([0.0, NAN, INF, -INF, 1e4, -1e4]))
@covers(points_in_boxes)
def test_pairs_equal_those_of_comparing_all(count, dtype, seed, regular, special):
    points, strides = draw_points(seed, dtype, regular)
    if seed % 11 == 0:
        points, strides = points[:0], strides[:0]
    boxes = draw_boxes(count, seed, dtype, size=60.0)
    # An edge on a point, and special numbers in any column.
    if count and len(points):
        boxes[0, seed % 4] = points[seed % len(points), seed % 2]
        boxes[count // 2, seed // 4 % 4] = special
        if seed % 5 == 0:
            points[seed % len(points), 0] = special
    point, box = points_in_boxes(points, strides, boxes)
    want_point, want_box = brute_force(points, boxes)
    assert torch.equal(point, want_point) and torch.equal(box, want_box)


def draw_batch(num_images, num_classes, counts, seed, dtype):
    """Arguments of the losses: predictions near the objects for some points, far for others."""
    g = generator(seed)
    points, strides = draw_points(seed, dtype, True)
    num_points = len(points)
    cls = draw_logits((num_images, num_points, num_classes), seed + 1, dtype)
    obj = draw_logits((num_images, num_points), seed + 2, dtype)
    boxes = [draw_boxes(counts[i], seed + 3 + i, dtype, size=50.0) for i in range(num_images)]
    labels = [torch.randint(0, num_classes, (len(b),), generator=g) for b in boxes]
    ltrb = torch.rand(num_images, num_points, 4, generator=g, dtype=torch.float64) * 40
    ltrb[torch.rand(ltrb.shape, generator=g) < 0.1] = 0
    near = points.double().repeat(1, 2) + ltrb * torch.tensor([-1.0, -1.0, 1.0, 1.0])
    for i, b in enumerate(boxes):
        if len(b):
            chosen = torch.rand(num_points, generator=g) < 0.4
            which = torch.randint(0, len(b), (num_points,), generator=g)
            jitter = torch.randn(num_points, 4, generator=g, dtype=torch.float64)
            near[i][chosen] = (b.double()[which] + jitter)[chosen]
            near[i][..., 2:] = torch.maximum(near[i][..., 2:], near[i][..., :2])
    return points, strides, cls, obj, near.to(dtype), boxes, labels


def plain_dual_weighting(points, strides, cls, obj, pred, gt_boxes, gt_classes):
    """Image by image and object by object, in the words of the paper, in float64."""
    points, strides = points.double(), strides.double()
    sigma = float(torch.tensor(1.11, dtype=torch.float32))
    negative_weight = torch.ones_like(cls)
    positive, location = cls.sum() * 0, pred.sum() * 0
    for i, (boxes, labels) in enumerate(zip(gt_boxes, gt_classes)):
        for box, label in zip(boxes.double(), labels):
            bag = ((points > box[:2]) & (points < box[2:])).all(1).nonzero()[:, 0]
            if not len(bag):
                continue
            a = pred[i, bag]
            sides = torch.minimum(a[:, 2:], box[2:]) - torch.maximum(a[:, :2], box[:2])
            meet = sides.clamp(min=0).prod(1)
            union = (a[:, 2:] - a[:, :2]).prod(1) + (box[2:] - box[:2]).prod() - meet
            hull = (torch.maximum(a[:, 2:], box[2:]) - torch.minimum(a[:, :2], box[:2])).prod(1)
            union, hull = union.clamp(min=1e-6), hull.clamp(min=1e-6)
            iou = meet / union
            giou = iou - (hull - union) / hull
            log_s = F.logsigmoid(cls[i, bag, label]) + F.logsigmoid(obj[i, bag])
            with torch.no_grad():
                distance = (points[bag] - (box[:2] + box[2:]) / 2) / strides[bag, None]
                prior = torch.exp(-(distance**2).sum(1) / (2 * sigma**2))
                t = log_s.exp() * torch.exp(-5 * (1 - giou))
                weight = torch.exp(5 * t) * t * prior
                weight = weight / (torch.exp(3 * t) * t * prior).sum().clamp(min=1e-12)
                metric = (1 - iou**2) / 0.75
                low, high = metric.min(), metric.max().clamp(max=1)
                metric = (metric - low + 1e-12) / (high - low + 1e-12)
                metric[iou < 0.5] = 1
                negative_weight[i, bag, label] = metric  # of several objects the last one decides
            positive = positive - 0.25 * (weight * log_s).sum()
            location = location + 1.25 * (weight * (1 - giou)).sum()
    size = cls.shape[0] * cls.shape[1]
    flat = cls.reshape(size, -1), obj.reshape(-1)
    # The negative loss of every cell, weighed: cells of weight 1 and then the rest.
    cell = (negative_weight.flatten() != 1).nonzero()[:, 0]
    negative = plain_joint(
        *flat, cell, torch.zeros(len(cell)), negative_weight.flatten()[cell], 2.0
    )[1]
    return positive, location, negative, (1 - negative_weight).sum()


def is_well_conditioned(args):
    """No IoU next to the threshold of a full negative, no bag whose IoUs are all but equal."""
    w = dual_weights(*[[x.double() for x in a] if isinstance(a, list) else a.double()
                       for a in args[:5]], args[5], args[6])  # fmt: skip
    bags = [w.iou[w.gt == g] for g in w.gt.unique()]
    spread = [float(x.max() - x.min()) for x in bags if len(x) > 1 and x.max() >= 0.5]
    return bool(((w.iou - 0.5).abs() > 1e-3).all()) and all(s > 0.05 for s in spread)


counts = st.lists(st.sampled_from([0, 0, 1, 2, 5]), min_size=3, max_size=3)


@given(st.integers(1, 3), st.sampled_from([1, 3, 80]), counts, dtypes, seeds)
@covers(dual_weighting_losses, dual_weights, DualWeightingConstants)
def test_dual_weighting_equals_the_plain_form(num_images, num_classes, count, dtype, seed):
    args = draw_batch(num_images, num_classes, count, seed, dtype)
    if dtype != torch.float64:
        assume(is_well_conditioned(args))
    inputs, exact = [leaf(x) for x in args[2:5]], [as_leaf64(x) for x in args[2:5]]
    out = dual_weighting_losses(*args[:2], *inputs, *args[5:])
    names = ("loss_cls_pos", "loss_loc", "loss_cls_neg", "neg_norm")
    wanted = plain_dual_weighting(*args[:2], *exact, *args[5:])
    wide = torch.float32 if dtype in HALF else dtype
    # exp(5 t) multiplies the rounding of t, and 0.05 divides that of the negative weights.
    wide_bound = {torch.float32: torch.float16}.get(wide, torch.float32)
    assert out["num_gt"] == sum(count[:num_images])
    for name, want in zip(names, wanted):
        assert out[name].dtype == wide
        assert_finite(out[name])
        assert_close(out[name], want, wide_bound, scale=max(1.0, float(want.detach().abs())))
    for name, want in zip(names[:3], wanted):
        for a, b in zip(inputs, exact):
            grad, want_grad = gradient(out[name], a), gradient(want, b)
            assert_finite(grad)
            scale = max(1.0, float(want_grad.abs().max()) if b.numel() else 0)
            assert_close(grad, want_grad, dtype if dtype in HALF else wide_bound, scale=scale)
    weights = dual_weights(*args)
    assert_finite(*(v for v in weights if v.is_floating_point()))
    assert ((weights.neg_metric >= 0) & (weights.neg_metric <= 1 + 1e-5)).all()
    assert (weights.pos_weight >= 0).all()


@given(dtypes, seeds, bad_values, st.sampled_from(["cls", "obj", "box", "gt"]))
@covers(dual_weighting_losses)
def test_bad_numbers_in_dual_weighting_are_seen(dtype, seed, bad, where):
    args = list(draw_batch(1, 2, [2, 0, 0], seed, dtype))
    points, cls, obj, pred, (gt,) = args[0], args[2], args[3], args[4], args[5]
    middle = points[seed % len(points)]
    gt[0] = torch.cat([middle - 3, middle + 3])  # holds that point
    row = seed % len(points)
    if where == "gt":
        gt[0, seed % 4] = bad
    elif where == "box":
        column = seed % 4
        # An infinite box; what is inside out has no area, and nothing is promised of it.
        bad = bad if bad != bad else (-INF if column < 2 else INF)
        pred[0, row, column] = bad
    elif where == "obj":
        obj[0, row] = bad
    else:
        cls[0, row, 0] = bad
    out = dual_weighting_losses(*args)
    finite = all(torch.isfinite(v) for v in out.values())
    if where == "cls" and bad == bad:
        # The class probability is then 0 or 1; the loss is that of a large logit, or infinite.
        args[2] = cls.double().clamp(-1e4, 1e4).to(dtype)
        limit = dual_weighting_losses(*args)
        assert not finite or all(torch.allclose(out[k], limit[k], rtol=1e-3) for k in out)
    else:
        assert not finite


def test_a_batch_of_no_image_is_refused():
    nothing = torch.zeros(0, 4, 2)
    with pytest.raises(ValueError, match="at least one image"):
        dual_weighting_losses(
            torch.zeros(4, 2), torch.ones(4), nothing, nothing[..., 0], nothing, [], []
        )


@pytest.mark.parametrize("num_points", [0, 1])
def test_no_points(num_points):
    points, strides = torch.full((num_points, 2), 4.0), torch.full((num_points,), 8.0)
    cls = torch.zeros(2, num_points, 3, requires_grad=True)
    boxes = [torch.tensor([[0.0, 0.0, 8.0, 8.0]]), torch.zeros(0, 4)]
    out = dual_weighting_losses(
        points, strides, cls, torch.zeros(2, num_points), torch.zeros(2, num_points, 4), boxes,
        [torch.tensor([1]), torch.zeros(0, dtype=torch.long)],
    )  # fmt: skip
    sum(out.values()).backward()
    assert out["num_gt"] == 1 and cls.grad.shape == cls.shape
    assert_finite(cls.grad, *out.values())


@given(st.sampled_from(["prior_sigma", "neg_iou", "gamma1", "gamma2"]), bad_values)
@covers(DualWeightingConstants)
def test_impossible_constants_are_refused(name, bad):
    with pytest.raises(ValueError, match=name):
        DualWeightingConstants(**{name: -1.0 if bad == INF else bad})
