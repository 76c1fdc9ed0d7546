"""Numerics campaign, part 7: the rivals in the slots.

Shapes: K pairs of boxes or positives, M rows of logits, C classes.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics_kit import (
    HALF,
    NAN,
    assert_close,
    assert_finite,
    covers,
    draw_boxes,
    draw_labels,
    draw_logits,
    dtypes,
    generator,
    gradient,
    leaf,
    rows,
    seeds,
)

from d2ext.ops import box_variants as bv
from d2ext.ops.boxes import centre_distance, enclosing_sides, pair_iou
from d2ext.ops.class_margin import (
    class_margin_scores,
    class_margins,
    effective_class_margin_loss,
)
from d2ext.ops.correlation import correlation_loss, soft_ranks
from d2ext.ops.logit_norm import normalize_logits, update_logit_statistics
from d2ext.ops.object_blocks import BestObject, ObjectBlocks, pairs_of_a_block
from d2ext.ops.prediction_assignment import (
    dynamic_soft_label_assignment,
    simota_assignment,
    task_aligned_assignment,
)
from d2ext.ops.prediction_candidates import choose, widened
from d2ext.ops.sigmoid_losses import (
    matchability_aware_loss,
    sigmoid_loss_per_row,
    varifocal_loss,
)

SIZES = torch.tensor([480.0, 640.0])
BOX_LOSSES = {
    bv.nwd_loss: lambda a, b: bv.nwd_loss(a, b, constant=30.0),
    bv.mpdiou_loss: lambda a, b: bv.mpdiou_loss(a, b, SIZES.expand(len(a), 2)),
    bv.log_iou_loss: bv.log_iou_loss,
    bv.legacy_log_iou_loss: bv.legacy_log_iou_loss,
    bv.inner_iou_loss: lambda a, b: bv.inner_iou_loss(a, b, ratio=1.2, base="ciou"),
    bv.wise_iou_loss: lambda a, b: bv.wise_iou_loss(
        a, b, mean=torch.tensor(0.7, dtype=torch.float64)
    ),
}


def draw_pairs(count, seed, dtype, size=500.0):
    """Boxes apart, near each other and identical."""
    a, b = draw_boxes(count, seed, dtype, size), draw_boxes(count, seed + 1, dtype, size)
    kind = torch.rand(count, generator=generator(seed + 2))
    b[kind < 0.2] = a[kind < 0.2]
    near = (kind > 0.2) & (kind < 0.6)
    b[near] = (a[near].double() + torch.tensor([1.0, 0.5, 1.5, 2.0])).to(dtype)
    return a, b


def plain(name, a, b):
    """One pair, in Python's floats."""
    eps = 1e-7
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    meet = width * height if width > 0 and height > 0 else 0.0
    iou = meet / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - meet + eps)
    shift = [(a[i] + a[i + 2] - b[i] - b[i + 2]) / 2 for i in (0, 1)]
    size = [(a[i + 2] - a[i]) - (b[i + 2] - b[i]) for i in (0, 1)]
    if name == "nwd_loss":
        squared = sum(x * x for x in shift) + sum(x * x for x in size) / 4 + eps
        return 1 - math.exp(-math.sqrt(squared) / 30)
    if name == "mpdiou_loss":
        return 1 - iou + sum((x - y) ** 2 for x, y in zip(a, b)) / (480**2 + 640**2)
    if name == "log_iou_loss":
        return -math.log(max(iou, 1e-6))
    if name == "legacy_log_iou_loss":
        areas = [max(x[2] - x[0] - 1, 0) * max(x[3] - x[1] - 1, 0) for x in (a, b)]
        meet = max(width - 1, 0) * max(height - 1, 0)
        return -math.log((meet + 1) / (sum(areas) - meet + 1))
    hull = max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])
    far = (shift[0] ** 2 + shift[1] ** 2) / (hull[0] ** 2 + hull[1] ** 2 + eps)
    beta = (1 - iou) / 0.7
    return math.exp(far) * (1 - iou) * beta / (3 * 1.9 ** (beta - 3))


@given(st.sampled_from(list(BOX_LOSSES)), rows, dtypes, seeds)
@covers(*BOX_LOSSES, centre_distance, enclosing_sides)
def test_box_losses_equal_the_plain_form(function, count, dtype, seed):
    a, b = draw_pairs(count, seed, dtype)
    a = leaf(a)
    value = BOX_LOSSES[function](a, b)
    wide = torch.float32 if dtype in HALF else dtype
    assert value.dtype == wide and value.shape == (count,)
    if function is not bv.inner_iou_loss:
        want = [plain(function.__name__, x, y) for x, y in zip(a.tolist(), b.tolist())]
        assert_close(value, torch.tensor(want, dtype=torch.float64), wide, scale=20)
    # A side over EPS, which is not a number of float16, is the slope of CIoU in a box without area.
    flat = (a[:, 2:] - a[:, :2]).amin(dim=1) < 0.01
    assert_finite(value)
    assert not torch.isnan(gradient(value.sum(), a)[~flat]).any()
    wide_a, wide_b = a.detach().to(wide), b.to(wide)
    assert_close(
        centre_distance(wide_a, wide_b),
        ((wide_a[:, :2] + wide_a[:, 2:] - wide_b[:, :2] - wide_b[:, 2:]) / 2).square().sum(dim=1),
        wide,
    )
    hull = torch.maximum(wide_a, wide_b)[:, 2:] - torch.minimum(wide_a, wide_b)[:, :2]
    assert torch.equal(torch.stack(enclosing_sides(wide_a, wide_b), dim=1), hull)


@pytest.mark.parametrize(
    "function", [bv.nwd_loss, bv.mpdiou_loss, bv.log_iou_loss, bv.legacy_log_iou_loss]
)
def test_gradcheck_of_box_losses(function):
    a = torch.tensor([[3.0, 4, 23, 17], [1, 2, 9, 30]], dtype=torch.float64)
    b = torch.tensor([[5.0, 7, 27, 26], [2, 3, 20, 12]], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: BOX_LOSSES[function](x, b), leaf(a))
    for base in ("iou", "giou", "diou"):
        assert torch.autograd.gradcheck(lambda x, k=base: bv.inner_iou_loss(x, b, base=k), leaf(a))


@pytest.mark.parametrize("function", list(BOX_LOSSES))
def test_a_row_that_is_no_number_spoils_no_other(function):
    a, b = draw_pairs(5, 11, torch.float32)
    want = BOX_LOSSES[function](a, b)
    a[2, 1] = NAN
    value = BOX_LOSSES[function](a, b)
    others = torch.arange(5) != 2
    assert torch.equal(value[others], want[others]) and torch.isnan(value[2])


@given(rows, seeds, st.floats(0, 1))
@covers(bv.wise_iou_mean)
def test_running_mean_stays_among_its_numbers(count, seed, momentum):
    a, b = draw_pairs(count, seed, torch.float64)
    mean = bv.wise_iou_mean(a, b, torch.tensor(1.0, dtype=torch.float64), momentum=momentum)
    now = 1 - pair_iou(a, b)
    assert mean == pytest.approx(1 - momentum * (1 - float(now.mean())) if count else 1.0)


@given(rows, dtypes, seeds, st.sampled_from([1, 3, 10]))
@covers(bv.ghm_r_loss, bv.ghm_r_bins)
def test_ghm_r_weighs_regions_alike(count, dtype, seed, bins):
    g = generator(seed)
    deltas = leaf(torch.randn(count, 4, generator=g).to(dtype))
    target = torch.randn(count, 4, generator=g).to(dtype)
    region, number = bv.ghm_r_bins(deltas, target, bins=bins)
    assert region.shape == (count, 4) and number.sum() == 4 * count
    loss = bv.ghm_r_loss(deltas, target, bins=bins)
    plain_loss = ((deltas.double() - target.double()).square() + 0.02**2).sqrt() - 0.02
    occupied = sum(float(n) > 0 for n in number)
    for i, row in enumerate(loss.double().tolist()):
        for j, value in enumerate(row):
            weight = 4 * count / (float(number[region[i, j]]) * occupied)
            assert value == pytest.approx(
                float(plain_loss[i, j].detach()) * weight, rel=1e-3, abs=1e-6
            )
    assert_finite(gradient(loss.sum(), deltas))


@given(st.sampled_from(["varifocal", "mal"]), rows, st.sampled_from([1, 3, 80]), dtypes, seeds)
@covers(varifocal_loss, matchability_aware_loss, sigmoid_loss_per_row)
def test_rows_sum_to_the_fused_losses(kind, count, classes, dtype, seed):
    logits = draw_logits((count, classes), seed, dtype)
    labels = draw_labels(count, classes, seed)
    quality = torch.rand(count, generator=generator(seed + 5))
    quality[:1] = 0.0
    logits[labels < 0] = NAN
    quality[(labels < 0) | (labels >= classes)] = NAN
    weights = torch.rand(classes, generator=generator(seed + 6)) + 0.5
    fused_logits, row_logits = leaf(logits), leaf(logits)
    function = varifocal_loss if kind == "varifocal" else matchability_aware_loss
    fused = function(fused_logits, labels, quality, alpha=0.7, gamma=1.5, class_weights=weights)
    by_row = sigmoid_loss_per_row(
        *(row_logits, labels), kind=kind, quality=quality, alpha=0.7, gamma=1.5,
        class_weights=weights,
    )  # fmt: skip
    wide = torch.float32 if dtype in HALF else dtype
    assert fused.dtype == wide and by_row.shape == (count,)
    scale = max(float(by_row.detach().abs().sum()), 1.0)
    assert_close(fused, by_row.sum().double(), wide, scale=scale)
    slope, want = gradient(fused, fused_logits), gradient(by_row.sum(), row_logits)
    assert_finite(slope)
    assert_close(slope, want, dtype)
    if dtype == torch.float64 and count:
        torch.autograd.gradcheck(
            lambda z: varifocal_loss(z, labels, quality), leaf(logits.nan_to_num(0.0).clamp(-9, 9))
        )


@given(rows, st.sampled_from([1, 2, 7, 80]), dtypes, seeds)
@covers(effective_class_margin_loss, class_margins, class_margin_scores)
def test_class_margins_are_their_formula(count, classes, dtype, seed):
    g = generator(seed)
    logits = leaf(draw_logits((count, classes + 1), seed, dtype))
    labels = draw_labels(count, classes, seed)
    counts = torch.randint(0, 1000, (classes,), generator=g)
    margin, weight = class_margins(counts, background_ratio=2.0)
    numbers = [max(float(n), 1.0) for n in counts]
    numbers.append(2.0 * sum(numbers))
    for j, n in enumerate(numbers):
        rest = (sum(numbers) - n) / n
        assert float(margin[j]) == pytest.approx(math.log(rest) / 4, abs=1e-9)
        assert float(weight[j]) == pytest.approx(rest * math.log1p(1 / rest))
    loss = effective_class_margin_loss(logits, labels, counts, background_ratio=2.0)
    shifted = 2 * logits.detach().double() - margin
    target = torch.zeros_like(shifted)
    target[torch.arange(count), labels.clamp(min=0)] = 1.0
    bce = torch.nn.functional.binary_cross_entropy_with_logits(shifted, target, reduction="none")
    want = (bce * weight)[labels >= 0].sum()
    wide = torch.float32 if dtype in HALF else dtype
    assert_close(loss, want, wide)
    assert_finite(gradient(loss, logits))
    scores = class_margin_scores(logits)
    assert scores.shape == (count, classes) and ((scores >= 0) & (scores <= 1)).all()


@given(rows, st.sampled_from([1, 3, 80]), dtypes, seeds)
@covers(normalize_logits, update_logit_statistics)
def test_normalised_logits_have_equal_spread(count, classes, dtype, seed):
    logits = draw_logits((count, classes + 1), seed, dtype, extreme=False)
    start = torch.zeros(classes + 1).double(), torch.ones(classes + 1).double()
    mean, var = update_logit_statistics(*start, logits, momentum=1.0)
    if count:
        assert_close(mean, logits.double().mean(dim=0), torch.float64)
    if count < 2:
        assert torch.equal(var, start[1])
    result = normalize_logits(logits, mean, var)
    assert result.dtype == (torch.float32 if dtype in HALF else dtype)
    assert torch.equal(result[:, -1], logits[:, -1].to(result.dtype))
    assert_finite(result)
    if count > 2 and var.min() > 1e-3:
        assert_close(
            result[:, :-1].double().var(dim=0), torch.ones(classes).double(), torch.float16
        )


@given(st.sampled_from(["concordance", "pearson", "spearman"]), rows, dtypes, seeds)
@covers(correlation_loss)
def test_correlation_is_between_0_and_2(kind, count, dtype, seed):
    g = generator(seed)
    scores = leaf(torch.rand(count, generator=g).to(dtype))
    iou = torch.rand(count, generator=g).to(dtype).requires_grad_()
    loss = correlation_loss(scores, iou, kind=kind, strength=0.5 / max(count, 1))
    assert -1e-5 <= float(loss.detach()) <= 2 + 1e-5
    assert_finite(gradient(loss, scores))
    assert not gradient(loss, iou).any()
    assert float(correlation_loss(iou.detach(), iou, kind=kind).detach()) == pytest.approx(
        0, abs=1e-2
    )
    if count > 1:
        constant = leaf(torch.full((count,), 0.3).to(dtype))
        loss = correlation_loss(constant, iou, kind=kind)
        assert float(loss.detach()) == 0 and not gradient(loss, constant).any()
    if dtype == torch.float64 and count > 4 and kind != "spearman":
        torch.autograd.gradcheck(lambda s: correlation_loss(s, iou.detach(), kind=kind), scores)


@given(rows, seeds)
@covers(soft_ranks)
def test_soft_ranks_of_far_numbers_are_their_ranks(count, seed):
    values = torch.randperm(count, generator=generator(seed)).double()
    assert torch.allclose(soft_ranks(values, 0.5), values + 1)
    ranks = soft_ranks(torch.rand(count, generator=generator(seed)).double(), 0.05)
    assert float(ranks.sum()) == pytest.approx(count * (count + 1) / 2)


@given(st.sampled_from([0, 1, 3, 9]), st.sampled_from([1, 3, 80]), dtypes, seeds)
@covers(task_aligned_assignment, simota_assignment, dynamic_soft_label_assignment)
@covers(choose, widened, ObjectBlocks, BestObject, pairs_of_a_block)
def test_assignments_are_consistent(count, classes, dtype, seed):
    """Degenerate objects and predictions, saturated scores: valid labels, targets in [0, 1]."""
    g = generator(seed)
    shift = (torch.arange(6) + 0.5) * 16
    y, x = torch.meshgrid(shift, shift, indexing="ij")
    points = torch.stack([x.flatten(), y.flatten()], dim=1)
    strides = torch.full((36,), 16.0)
    gt = draw_boxes(count, seed, torch.float32, 96.0)
    boxes = draw_boxes(72, seed + 1, torch.float32, 96.0).view(2, 36, 4)
    logits = draw_logits((2, 36, classes), seed, dtype)
    gt_classes = torch.randint(0, classes, (count,), generator=g)
    image = torch.randint(0, 2, (count,), generator=g).sort().values
    rest = (gt, gt_classes, image)
    assert pairs_of_a_block(points.device, 5) == 5
    wide = widened(gt, 16.0)
    # A plane of 2e4 pixels keeps no hundredth of one in float32.
    assert ((wide[:, 2:] - wide[:, :2]) >= 16.0 - 1e-2).all()
    for result in (
        task_aligned_assignment(logits.sigmoid(), boxes, points, *rest),
        task_aligned_assignment(logits.sigmoid(), boxes, points, *rest, form="yolo", min_side=9.0),
        simota_assignment(logits.sigmoid(), boxes, points, strides, *rest),
        dynamic_soft_label_assignment(logits, boxes, points, strides, *rest),
    ):
        positive = result.labels < classes
        assert ((result.labels >= 0) & (result.labels <= classes)).all()
        assert_finite(result.quality, result.target)
        assert ((result.target >= 0) & (result.target <= 1 + 1e-5)).all()
        assert not result.target[~positive].any() and not result.matched[~positive].any()
        if count:
            assert torch.equal(result.labels[positive], gt_classes[result.matched[positive]])
            own = image[result.matched] == torch.arange(2)[:, None]
            assert own[positive].all()
        else:
            assert not positive.any()
