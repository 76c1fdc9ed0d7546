"""Numerics campaign, part 4: the harmonic losses.

Shapes: K samples, C classes.
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
    classes,
    covers,
    draw_logits,
    dtypes,
    generator,
    gradient,
    leaf,
    rows,
    seeds,
)

from d2ext.ops.harmonic import (
    check_gamma,
    class_entropy,
    harmonic_factors,
    harmonic_iou_loss,
    literal_slopes,
    task_contrastive_loss,
)


def wide_of(dtype):
    return torch.float32 if dtype in HALF else dtype


def draw_losses(count, seed, dtype):
    """Losses from 0 to 1e4, as many of them small as large."""
    g = generator(seed)
    losses = torch.rand(2, count, generator=g, dtype=torch.float64) * 6 - 2
    losses = 10**losses
    losses[torch.rand(losses.shape, generator=g) < 0.2] = 0
    return losses.to(dtype).unbind()


def draw_unit(count, seed, dtype):
    """Numbers in [0, 1], the ends among them."""
    g = generator(seed)
    return (torch.rand(count, generator=g, dtype=torch.float64) * 1.4 - 0.2).clamp(0, 1).to(dtype)


@given(rows, dtypes, seeds, st.booleans(), st.booleans())
@covers(harmonic_factors, literal_slopes)
def test_factors_and_slopes(count, dtype, seed, detach, own_exponent):
    cls, loc = (leaf(x) for x in draw_losses(count, seed, dtype))
    exponent = draw_losses(count, seed + 1, dtype)[0] if own_exponent else None
    beta_r, beta_c = harmonic_factors(cls, loc, cls_exponent=exponent, detach=detach)
    e = cls if exponent is None else exponent
    want_r = torch.tensor([math.exp(-x) for x in loc.tolist()], dtype=torch.float64)
    want_c = torch.tensor([math.exp(-x) for x in e.tolist()], dtype=torch.float64)
    assert beta_r.dtype == wide_of(dtype)
    assert_close(beta_r, want_r, wide_of(dtype), scale=1)
    assert_close(beta_c, want_c, wide_of(dtype), scale=1)
    if detach:
        assert not beta_r.requires_grad and not beta_c.requires_grad
    else:
        assert_close(gradient(beta_r.sum(), loc), -want_r, dtype, scale=1)
    m_c, m_l = literal_slopes(cls, loc)
    want_c = torch.tensor([math.exp(-x) for x in cls.tolist()], dtype=torch.float64)
    loc64, cls64 = loc.detach().double(), cls.detach().double()
    for got, want in ((m_c, 1 + want_r - loc64 * want_c), (m_l, 1 + want_c - cls64 * want_r)):
        scale = max(1.0, float(want.abs().max()) if count else 0)
        assert_close(got, want, wide_of(dtype), scale=scale)


@given(dtypes, seeds, bad_values)
@covers(harmonic_factors, literal_slopes)
def test_bad_losses_stay_in_their_row(dtype, seed, bad):
    cls, loc = draw_losses(4, seed, dtype)
    want = (*harmonic_factors(cls, loc), *literal_slopes(cls, loc))
    loc = loc.clone()
    loc[1] = bad
    got = (*harmonic_factors(cls, loc), *literal_slopes(cls, loc))
    others = torch.tensor([0, 2, 3])
    assert all(torch.equal(a[others], b[others]) for a, b in zip(got, want))
    # An infinite loss has the factor 0; it is infinite itself, so that nothing is hidden.
    assert torch.isnan(got[0][1]) if bad != bad else got[0][1] == (0 if bad > 0 else INF)
    assert not torch.isfinite((1 + got[1][1]) * loc[1])


@given(rows, dtypes, seeds, st.sampled_from([0.0, 0.3, 0.8, 1.0, 2.0]))
@covers(harmonic_iou_loss)
def test_harmonic_iou_loss(count, dtype, seed, gamma):
    iou = leaf(draw_unit(count, seed, dtype))
    loss = harmonic_iou_loss(iou, gamma)
    values = iou.tolist()
    want = torch.tensor([(1 + u) ** gamma * (1 - u) for u in values], dtype=torch.float64)
    slope = torch.tensor(
        [(1 + u) ** (gamma - 1) * (gamma * (1 - u) - (1 + u)) for u in values], dtype=torch.float64
    )
    assert_close(loss, want, wide_of(dtype), scale=1)
    assert_close(gradient(loss.sum(), iou), slope, dtype, scale=1)
    if count:
        iou = iou.detach().clone()
        iou[0] = NAN
        assert torch.isnan(harmonic_iou_loss(iou, gamma)[0])


@given(st.sampled_from([-0.1, -1e4, NAN, INF, -INF]))
@covers(check_gamma, harmonic_iou_loss)
def test_impossible_gammas_are_refused(gamma):
    with pytest.raises(ValueError, match="gamma of the harmonic IoU loss"):
        check_gamma(gamma)
    with pytest.raises(ValueError, match="gamma of the harmonic IoU loss"):
        harmonic_iou_loss(torch.ones(2), gamma)


@given(rows, classes, dtypes, seeds, st.booleans())
@covers(class_entropy)
def test_entropy(count, num_classes, dtype, seed, sigmoid):
    logits = leaf(draw_logits((count, num_classes), seed, dtype))
    entropy = class_entropy(logits, sigmoid=sigmoid)
    z = logits.detach().double()
    p = z.sigmoid() if sigmoid else z.softmax(1)
    want = -torch.special.xlogy(p, p).sum(1) if p.numel() else p.new_zeros(count)
    scale = max(1.0, float(want.max()) if count else 0)
    assert_close(entropy, want, wide_of(dtype), scale=scale)
    assert (entropy >= -1e-6).all()
    assert_finite(gradient(entropy.sum(), logits))
    # d/dz of -p log p, and of the softmax's entropy.
    log_p = torch.nn.functional.logsigmoid(z) if sigmoid else z.log_softmax(1)
    if sigmoid:
        slope = -p * (1 - p) * (log_p + 1)
    else:
        slope = -p * (log_p + want[:, None]).nan_to_num(neginf=0)
    assert_close(gradient(entropy.sum(), logits), slope, dtype, scale=1)
    if count:
        bad = logits.detach().clone()
        bad[0, 0] = NAN
        assert torch.isnan(class_entropy(bad, sigmoid=sigmoid)[0])


@given(rows, dtypes, seeds, st.sampled_from(["subtract", "hard"]), st.sampled_from([0.0, 0.2, 0.9]))
@covers(task_contrastive_loss)
def test_task_contrastive_loss(count, dtype, seed, mode, margin):
    score, iou = draw_unit(count, seed, dtype), draw_unit(count, seed + 1, dtype)
    entropy = (draw_unit(count, seed + 2, dtype).double() * 1800).to(dtype)
    inputs = [leaf(x) for x in (score, iou, entropy)]
    loss = task_contrastive_loss(*inputs, margin=margin, mode=mode)
    want = []
    for p, u, h in zip(*(x.tolist() for x in inputs)):
        gap = abs(p - u)
        # As computed: half precision is exact in float32, float32 rounds the difference.
        gap = float(torch.tensor(gap, dtype=wide_of(dtype)))
        gap = max(gap - margin, 0) if mode == "subtract" else (gap if gap >= margin else 0)
        want.append(gap / (1 + math.exp(min(h, 700))))
    assert_close(loss, torch.tensor(want, dtype=torch.float64), wide_of(dtype), scale=1)
    for tensor in inputs:
        assert_finite(gradient(loss.sum(), tensor))


@given(dtypes, seeds, st.sampled_from(["subtract", "hard"]), st.integers(0, 2))
@covers(task_contrastive_loss)
def test_nan_is_not_below_a_margin(dtype, seed, mode, which):
    inputs = [draw_unit(4, seed + k, dtype) for k in range(3)]
    want = task_contrastive_loss(*inputs, mode=mode)
    inputs[which] = inputs[which].clone()
    inputs[which][2] = NAN
    loss = task_contrastive_loss(*inputs, mode=mode)
    others = torch.tensor([0, 1, 3])
    assert torch.isnan(loss[2]) and torch.equal(loss[others], want[others])
