"""Numerics campaign, part 2: overlaps, box losses and the refinement of boxes.

Shapes: K pairs of boxes; N images, h x w maps.
"""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics_kit import (
    HALF,
    INF,
    NAN,
    assert_close,
    assert_finite,
    bad_values,
    covers,
    draw_boxes,
    dtypes,
    generator,
    gradient,
    leaf,
    rows,
    seeds,
)

from d2ext.ops.box_refinement import refine_boxes
from d2ext.ops.boxes import (
    box_deltas,
    ciou_loss,
    diou_loss,
    giou_loss,
    iou_loss,
    pair_iou,
    smooth_l1_loss,
)

EPS = 1e-7
LOSSES = (pair_iou, iou_loss, giou_loss, diou_loss, ciou_loss)


def plain(name, a, b):
    """One pair, in Python's floats."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    meet = width * height if width > 0 and height > 0 else 0.0
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - meet
    iou = meet / (union + EPS)
    if name == "pair_iou":
        return iou
    if name == "iou_loss":
        return 1 - iou
    hull_w, hull_h = max(a[2], b[2]) - min(a[0], b[0]), max(a[3], b[3]) - min(a[1], b[1])
    if name == "giou_loss":
        return 1 - iou + (hull_w * hull_h - union) / (hull_w * hull_h + EPS)
    apart = math.hypot(a[0] + a[2] - b[0] - b[2], a[1] + a[3] - b[1] - b[3]) / 2
    diou = 1 - iou + apart**2 / (hull_w**2 + hull_h**2 + EPS)
    if name == "diou_loss":
        return diou
    slopes = [math.atan((x[2] - x[0]) / max(x[3] - x[1], EPS)) for x in (a, b)]
    v = 4 / math.pi**2 * (slopes[1] - slopes[0]) ** 2
    return diou + v * v / (1 - iou + v + EPS)


def draw_pairs(count, seed, dtype):
    """Valid boxes beside each other, in each other, identical, and degenerate."""
    a, b = draw_boxes(count, seed, dtype), draw_boxes(count, seed + 1, dtype)
    kind = torch.rand(count, generator=generator(seed + 2))
    b[kind < 0.2] = a[kind < 0.2]
    near = (kind > 0.2) & (kind < 0.5)
    b[near] = (a[near].double() + torch.tensor([1.0, 0.5, 1.5, 2.0])).to(dtype)
    return a, b


@given(st.sampled_from(LOSSES), rows, dtypes, seeds)
@covers(*LOSSES)
def test_losses_of_pairs_equal_the_plain_form(loss, count, dtype, seed):
    a, b = draw_pairs(count, seed, dtype)
    a, exact = leaf(a), leaf(a.double())
    value = loss(a, b)
    wide = torch.float32 if dtype in HALF else dtype
    assert value.dtype == wide and value.shape == (count,)
    want = [plain(loss.__name__, x, y) for x, y in zip(a.tolist(), b.tolist())]
    assert_close(value, torch.tensor(want, dtype=torch.float64), wide, scale=1)
    low, high = {"pair_iou": (0, 1), "iou_loss": (0, 1)}.get(loss.__name__, (0, 3))
    assert ((value >= low - 1e-5) & (value <= high + 1e-5)).all()
    # Finite everywhere, and right wherever no two edges meet, which is where it is smooth.
    grad = gradient(value.sum(), a)
    # A side over EPS, which is not a number of float16, is the slope of GIoU in an enclosing box
    # without area and of CIoU in a box without width and height.
    hull = torch.maximum(a, b)[:, 2:] - torch.minimum(a, b)[:, :2]
    flat = torch.cat([hull, a[:, 2:] - a[:, :2]], dim=1).amin(1) < 0.01
    assert_finite(grad[~flat] if dtype == torch.float16 else grad)
    assert not torch.isnan(grad).any()
    smooth = (a - b).abs().amin(1) > 0.25
    side = torch.cat([a.detach(), b], 1).double()
    smooth &= torch.stack([side[:, 2] - side[:, 0], side[:, 3] - side[:, 1]]).amin(0) > 0.25
    want_grad = gradient(loss(exact, b.double()).sum(), exact)
    loose = torch.float32 if dtype == torch.float64 else dtype
    assert_close(grad[smooth], want_grad[smooth], loose)


@given(st.sampled_from(LOSSES[:4]), st.integers(1, 2), seeds)
@covers(*LOSSES[:4])
def test_gradcheck(loss, count, seed):
    a, b = draw_boxes(count, seed, torch.float64, 50.0), draw_boxes(count, seed + 1, torch.float64)
    regular = torch.tensor([[3.0, 4.0, 23.0, 17.0]], dtype=torch.float64)
    smooth = (a - b).abs().amin(1, keepdim=True) > 0.1
    size = torch.stack([x[:, 2:] - x[:, :2] for x in (a, b)]).amin(0).amin(1, keepdim=True) > 0.1
    crossing = (a[:, 2:] - b[:, :2]).abs().amin(1, keepdim=True) > 0.1
    crossing &= (b[:, 2:] - a[:, :2]).abs().amin(1, keepdim=True) > 0.1
    a = torch.where(smooth & size & crossing, a, regular)
    b = torch.where(smooth & size & crossing, b, regular + torch.tensor([5.0, 3.0, 4.0, 9.0]))
    torch.autograd.gradcheck(lambda x: loss(x, b), leaf(a))


def test_gradient_of_ciou_is_that_with_alpha_held():
    """Alpha is a constant by definition, so that finite differences are another gradient."""
    a = leaf(torch.tensor([[3.0, 4, 23, 17], [0, 0, 9, 30]], dtype=torch.float64))
    b = torch.tensor([[8.0, 7, 27, 26], [2, 3, 20, 12]], dtype=torch.float64)
    slope = torch.atan((b[:, 2] - b[:, 0]) / (b[:, 3] - b[:, 1]))
    v = 4 / math.pi**2 * (slope - torch.atan((a[:, 2] - a[:, 0]) / (a[:, 3] - a[:, 1]))) ** 2
    alpha = (v / (iou_loss(a, b) + v + EPS)).detach()
    want = gradient((diou_loss(a, b) + alpha * v).sum(), a)
    torch.testing.assert_close(gradient(ciou_loss(a, b).sum(), a), want)


@given(st.sampled_from(LOSSES), dtypes, seeds, bad_values, st.integers(0, 3), st.booleans())
@covers(*LOSSES)
def test_a_bad_coordinate_is_seen_or_is_its_limit(loss, dtype, seed, bad, column, second):
    a, b = draw_pairs(5, seed, dtype)
    want = loss(a, b)
    bad_pair = (a, b)[second]
    bad_pair[2, column] = bad
    if bad == INF and column < 2 or bad == -INF and column >= 2:
        return  # a box inside out has no area, and nothing is promised of it
    value = loss(a, b)
    others = torch.arange(5) != 2
    assert torch.equal(value[others], want[others])
    if bad != bad:
        assert torch.isnan(value[2])
    elif torch.isfinite(value[2]):
        # Only the IoU has a limit: that with a box that grows without end.
        assert loss in (pair_iou, iou_loss)
        assert value[2] == (0.0 if loss is pair_iou else 1.0)


@given(rows, dtypes, seeds, bad_values, st.integers(0, 3), st.booleans())
@covers(box_deltas)
def test_deltas(count, dtype, seed, bad, column, in_source):
    """Of boxes with an area those of the formula; without one, or with NaN, seen in that row."""
    sources, targets = draw_pairs(count, seed, dtype)
    # Half precision computes in half precision, so that its boxes must be of some size.
    weights = (10.0, 10.0, 5.0, 5.0)
    deltas = box_deltas(sources, targets, weights)
    assert deltas.shape == (count, 4) and deltas.dtype == dtype
    for got, a, b in zip(deltas.tolist(), sources.tolist(), targets.tolist()):
        for k in (0, 1):
            size, wanted = a[k + 2] - a[k], b[k + 2] - b[k]
            if size == 0 or wanted == 0:
                assert not math.isfinite(got[k + 2])
            elif dtype not in HALF:
                shift = 10 * ((b[k] + b[k + 2]) - (a[k] + a[k + 2])) / 2 / size
                tolerance = 1e-3 if dtype == torch.float32 else 1e-9
                # A corner is exact to 1e-4 in float32, and is counted in sizes.
                assert got[k] == pytest.approx(shift, rel=tolerance, abs=tolerance / size)
                ratio = 5 * math.log(wanted / size)
                # Of sizes that are almost equal, the rounding of their ratio is left.
                least = max(tolerance / size, 20 * torch.finfo(dtype).eps)
                assert got[k + 2] == pytest.approx(ratio, rel=tolerance, abs=least)
    if count:
        poisoned = (sources if in_source else targets).clone()
        poisoned[0, column] = bad
        pair = (poisoned, targets) if in_source else (sources, poisoned)
        got = box_deltas(*pair, weights)
        assert not torch.isfinite(got[0]).all()
        assert torch.equal(got[1:].nan_to_num(7), deltas[1:].nan_to_num(7))


@given(rows, dtypes, seeds, st.sampled_from([0.0, 1e-6, 0.1, 1.0, 3.0]))
@covers(smooth_l1_loss)
def test_smooth_l1(count, dtype, seed, beta):
    g = generator(seed)
    values = torch.randn(2, count, 4, generator=g, dtype=torch.float64) * 3
    values[torch.rand(values.shape, generator=g) < 0.2] = 4e4
    values[0][torch.rand(count, 4, generator=g) < 0.2] *= -1
    a, b = (x.to(dtype) for x in values)
    b = torch.where(torch.rand(b.shape, generator=g) < 0.2, a, b)
    a = leaf(a)
    value = smooth_l1_loss(a, b, beta)
    n = (a.detach().double() - b.double()).abs()
    quadratic = n < (beta if beta >= 1e-5 else 0)
    want = torch.where(
        quadratic, n**2 / (2 * max(beta, 1e-5)), n - (beta if beta > 1e-5 else 0) / 2
    )
    assert_close(value, want, torch.float32 if dtype in HALF else dtype)
    slope = (a.detach().double() - b.double()).sign() * torch.where(
        quadratic, n / max(beta, 1e-5), 1.0
    )
    assert_close(gradient(value.sum(), a), slope, dtype)
    if count:
        bad = a.detach().clone()
        bad[0, 1] = NAN
        value = smooth_l1_loss(bad, b, beta)
        assert torch.isnan(value[0, 1]) and torch.isnan(value).sum() == 1


def plain_refinement(ltrb, offsets, stride):
    """Every side of every cell by itself, with bilinear interpolation written out."""
    _, h, w = ltrb.shape
    result = torch.zeros_like(ltrb)

    def corner(side, row, column):
        if not (0 <= row < h and 0 <= column < w):
            return 0.0
        middle = (column if side % 2 == 0 else row) * stride + stride / 2
        return middle + (-1 if side < 2 else 1) * float(ltrb[side, row, column])

    for row in range(h):
        for column in range(w):
            for side in range(4):
                dy, dx = (float(x) for x in offsets[2 * side : 2 * side + 2, row, column])
                move = (-1 if side < 2 else 1) * float(ltrb[side, row, column]) / stride
                x, y = column + dx, row + dy
                x, y = (x + move, y) if side % 2 == 0 else (x, y + move)
                left, top = math.floor(x), math.floor(y)
                read = sum(
                    corner(side, top + i, left + j)
                    * (1 - abs(y - top - i)) * (1 - abs(x - left - j))
                    for i in (0, 1) for j in (0, 1)
                )  # fmt: skip
                middle = (column if side % 2 == 0 else row) * stride + stride / 2
                result[side, row, column] = max((middle - read) * (1 if side < 2 else -1), 0.0)
    return result


def draw_maps(n, h, w, seed, dtype, stride):
    g = generator(seed)
    ltrb = torch.rand(n, 4, h, w, generator=g, dtype=torch.float64) * 3 * stride
    ltrb[torch.rand(ltrb.shape, generator=g) < 0.1] = 0
    ltrb[torch.rand(ltrb.shape, generator=g) < 0.05] = 1e4
    offsets = torch.randn(n, 8, h, w, generator=g, dtype=torch.float64)
    offsets[torch.rand(offsets.shape, generator=g) < 0.05] = -1e4
    return ltrb.to(dtype), offsets.to(dtype)


sizes = st.sampled_from([(1, 1), (1, 5), (4, 3), (2, 2), (0, 3), (3, 0)])


@given(st.integers(0, 2), sizes, dtypes, seeds, st.sampled_from([4.0, 8.0, 128.0]))
@covers(refine_boxes)
def test_refinement_equals_the_plain_form(n, size, dtype, seed, stride):
    ltrb, offsets = (leaf(x) for x in draw_maps(n, *size, seed, dtype, stride))
    refined = refine_boxes(ltrb, offsets, stride)
    wide = torch.float32 if dtype in HALF else dtype
    assert refined.dtype == wide and refined.shape == ltrb.shape
    for image in range(n):
        want = plain_refinement(
            ltrb[image].detach().double(), offsets[image].detach().double(), stride
        )
        # A position of 1e4 cells is exact to 1e-3 in float32, and is read from a map of 1e4 pixels.
        scale = 1e4 if float(want.abs().max() if want.numel() else 0) > 1e3 else 4e3
        assert_close(refined[image], want, wide, scale=scale)
    assert_finite(gradient(refined.sum(), ltrb), gradient(refined.sum(), offsets))


@given(sizes, dtypes, seeds, bad_values, st.integers(0, 11))
@covers(refine_boxes)
def test_bad_distances_and_offsets_are_seen(size, dtype, seed, bad, channel):
    if 0 in size:
        return
    ltrb, offsets = draw_maps(1, *size, seed, dtype, 8.0)
    cell = (seed % size[0], seed % size[1])
    side = channel if channel < 4 else (channel - 4) // 2
    (ltrb[0, channel] if channel < 4 else offsets[0, channel - 4])[cell] = bad
    refined = refine_boxes(ltrb, offsets, 8.0)
    assert not torch.isfinite(refined[0, side][cell])


def test_gradcheck_of_the_refinement():
    g = generator(0)
    ltrb = leaf(torch.rand(1, 4, 3, 3, generator=g, dtype=torch.float64) * 8 + 4)
    offsets = leaf(torch.randn(1, 8, 3, 3, generator=g, dtype=torch.float64))
    torch.autograd.gradcheck(lambda x, y: refine_boxes(x, y, 8.0), (ltrb, offsets))
