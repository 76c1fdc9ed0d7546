"""Numerics campaign, part 5: priors, guides and thresholds of Sampling-Free training.

Shapes: C classes, k losses.
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
    dtypes,
    generator,
    gradient,
    leaf,
    seeds,
)

from d2ext.ops.sampling_free import (
    class_adaptive_thresholds,
    frozen_ratio,
    guided_ratio,
    guided_scale,
    initial_gradient_mass,
    initial_loss,
    optimal_prior,
    prior_to_bias,
    sigma_weighted,
    softmax_prior_bias,
)

counts = st.integers(1, 10**9)


@given(counts, counts, st.integers(1, 5000))
@covers(optimal_prior, prior_to_bias, initial_loss, initial_gradient_mass)
def test_priors(foreground, background, num_classes):
    samples = foreground + background
    prior = optimal_prior(foreground, samples, num_classes)
    assert prior == pytest.approx(foreground / num_classes / samples, rel=1e-15)
    bias = prior_to_bias(prior)
    assert 1 / (1 + math.exp(-bias)) == pytest.approx(prior, rel=1e-12)
    # The loss of N samples of which one class of each foreground sample is positive, one by one.
    loss = initial_loss(prior, foreground, samples, num_classes)
    negatives = num_classes * samples - foreground
    want = (foreground * math.log1p(math.exp(-bias)) + negatives * -math.log1p(-prior)) / foreground
    assert loss == pytest.approx(want, rel=1e-9)
    mass, size = initial_gradient_mass(prior, foreground, samples, num_classes)
    assert mass == pytest.approx(0, abs=1e-6)
    assert size == pytest.approx(2 * (1 - prior), rel=1e-6)


bad_counts = st.sampled_from([0, -1, -1e4, NAN, INF, -INF])


@given(bad_counts, st.sampled_from([0, 1, 2]))
@covers(optimal_prior, prior_to_bias, initial_loss, initial_gradient_mass)
def test_impossible_counts_and_priors_are_refused(bad, place):
    numbers = [3, 10, 4]
    numbers[place] = bad
    for call in (
        lambda: optimal_prior(*numbers),
        lambda: initial_loss(0.1, *numbers),
        lambda: initial_gradient_mass(0.1, *numbers),
        lambda: prior_to_bias(bad),
        lambda: initial_loss(bad, 3, 10, 4),
        lambda: initial_gradient_mass(bad, 3, 10, 4),
    ):
        with pytest.raises(ValueError, match="must lie|needs 0 <"):
            call()
    # All of several classes may be foreground, which INF of INF samples is not.
    with pytest.raises(ValueError, match="needs 0 <"):
        optimal_prior(INF, INF, 4)


def draw_counts(num_classes, seed, dtype):
    g = generator(seed)
    return (torch.rand(num_classes, generator=g, dtype=torch.float64) * 50 + 1).round().to(dtype)


@given(classes, dtypes, seeds, st.booleans(), st.sampled_from([1.5, 1e3, 1e9]))
@covers(softmax_prior_bias)
def test_softmax_bias_gives_the_frequencies(num_classes, dtype, seed, uniform, times):
    counts = draw_counts(num_classes, seed, dtype)
    exact = counts.double()
    samples = float(exact.sum() * times)
    bias = softmax_prior_bias(counts, samples, uniform=uniform)
    wanted = torch.full_like(exact, float(exact.mean())) if uniform else exact
    wanted = torch.cat([wanted, exact.new_tensor([samples - float(exact.sum())])]) / samples
    assert bias.dtype == torch.float64
    torch.testing.assert_close(bias.softmax(0), wanted, rtol=1e-9, atol=0)
    for bad, samples in ((NAN, 1e6), (INF, 1e6), (-1.0, 1e6), (1.0, INF), (1.0, NAN), (1.0, 0.5)):
        wrong = exact.clone()
        wrong[0] = bad
        with pytest.raises(ValueError, match="Softmax biases need"):
            softmax_prior_bias(wrong, samples)


@given(classes, dtypes, seeds, st.floats(1e-9, 1))
@covers(class_adaptive_thresholds)
def test_thresholds(num_classes, dtype, seed, ratio):
    counts = draw_counts(num_classes, seed, dtype)
    counts[seed % num_classes] = 0 if num_classes > 1 else 1
    thresholds = class_adaptive_thresholds(counts, ratio)
    total = sum(counts.tolist())
    want = torch.tensor([ratio * x / total for x in counts.tolist()], dtype=torch.float64)
    assert_close(thresholds, want, torch.float32 if dtype in HALF else dtype)
    for bad in (NAN, INF, -1.0):
        wrong = counts.clone()
        wrong[0] = bad
        with pytest.raises(ValueError, match="Class-adaptive thresholds need"):
            class_adaptive_thresholds(wrong, ratio)
        with pytest.raises(ValueError, match="foreground ratio"):
            class_adaptive_thresholds(counts, bad)
    with pytest.raises(ValueError, match="Class-adaptive thresholds need"):
        class_adaptive_thresholds(torch.zeros(num_classes), ratio)


loss_values = st.sampled_from([0.0, 1e-30, 1e-6, 0.3, 1.0, 37.0, 1e4])


@given(loss_values, st.lists(loss_values, min_size=1, max_size=3), dtypes, st.floats(0.1, 4))
@covers(guided_ratio, guided_scale)
def test_guides(cls, guides, dtype, weight):
    cls = leaf(torch.tensor(cls, dtype=dtype))
    guides = [leaf(torch.tensor(x, dtype=dtype)) for x in guides]
    ratio = guided_ratio(cls, guides)
    scaled, same = guided_scale(cls, guides, weight)
    mean = sum(x.item() for x in guides) / len(guides)
    value = cls.item()
    want = mean / value if value > 1e-35 else 0.0
    wide = torch.float32 if dtype in HALF else dtype
    want = want if want < torch.finfo(wide).max else 0.0
    assert_close(ratio, torch.tensor(want, dtype=torch.float64), wide)
    assert_close(scaled, torch.tensor(weight * want * value, dtype=torch.float64), wide)
    assert torch.equal(ratio, same) and not ratio.requires_grad
    assert_finite(scaled)
    # Nothing flows into the guides, and the class loss gets the ratio.
    assert all((gradient(scaled, x) == 0).all() for x in guides)
    if weight * want < 6e4:
        expected = torch.tensor(weight * want, dtype=torch.float64)
        assert_close(gradient(scaled, cls), expected, dtype)


@given(bad_values, dtypes, st.booleans())
@covers(guided_ratio, guided_scale)
def test_a_bad_loss_is_seen(bad, dtype, in_guide):
    cls, guide = torch.tensor(2.0, dtype=dtype), torch.tensor(3.0, dtype=dtype)
    cls, guide = (cls, guide * bad) if in_guide else (cls * bad, guide)
    scaled, ratio = guided_scale(cls, [guide])
    # A guide is a loss too, so that the sum that is trained tells.
    assert not torch.isfinite(scaled + guide) and torch.isfinite(ratio)
    assert torch.isfinite(scaled) == in_guide


@given(st.lists(st.tuples(loss_values, loss_values), min_size=1, max_size=8), st.integers(1, 6))
@covers(frozen_ratio)
def test_frozen_ratio(steps, warmup):
    ratio, iters, want = torch.tensor(0.0), torch.tensor(0), 0.0
    for number, (cls, guide) in enumerate(steps):
        losses = [torch.tensor(cls), torch.tensor(guide)]
        ratio, iters = frozen_ratio(ratio, iters, losses, warmup)
        now = guide / cls if cls > 1e-37 and guide / cls < 3.4e38 else 0.0
        want = now if number < warmup and now > 0 else want
        assert_close(ratio, torch.tensor(want, dtype=torch.float64), torch.float32)
    assert iters == min(len(steps), warmup)


@given(bad_values, st.booleans())
@covers(frozen_ratio)
def test_a_bad_last_step_of_the_warm_up_does_not_switch_the_class_loss_off(bad, in_guide):
    good, ratio, iters = [torch.tensor(2.0), torch.tensor(3.0)], torch.tensor(0.0), torch.tensor(0)
    ratio, iters = frozen_ratio(ratio, iters, good, 2)
    good[int(in_guide)] = torch.tensor(bad)
    ratio, iters = frozen_ratio(ratio, iters, good, 2)
    assert ratio == 1.5 and iters == 2


@given(st.integers(1, 4), dtypes, seeds)
@covers(sigma_weighted)
def test_sigmas(count, dtype, seed):
    g = generator(seed)
    losses = [leaf(x.to(dtype)) for x in torch.rand(count, generator=g) * 10]
    sigmas = leaf((torch.rand(count, generator=g) * 2 + 0.2).to(dtype))
    weighted, penalty = sigma_weighted(losses, sigmas)
    for got, loss, sigma in zip(weighted, losses, sigmas.tolist()):
        assert_close(got, torch.tensor(loss.item() / (2 * sigma**2), dtype=torch.float64), dtype)
        assert_close(
            gradient(got, loss), torch.tensor(1 / (2 * sigma**2), dtype=torch.float64), dtype
        )
    want = sum(math.log(s) for s in sigmas.tolist())
    assert_close(penalty, torch.tensor(want, dtype=torch.float64), dtype, scale=max(1.0, abs(want)))
    assert_finite(gradient(penalty + sum(weighted), sigmas))
    bad = sigmas.detach().clone()
    bad[0] = 0.0
    weighted, penalty = sigma_weighted(losses, bad)
    assert not torch.isfinite(weighted[0] + penalty)
    if dtype == torch.float64:
        torch.autograd.gradcheck(
            lambda s: sum(sigma_weighted([x.detach() for x in losses], s)[0]), sigmas
        )
