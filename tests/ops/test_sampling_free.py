"""Optimal bias, guided scale and thresholds: formulas, gradients, degenerate cases, refusals."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

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


def scalar(value, grad=False, dtype=torch.float64):
    return torch.tensor(value, dtype=dtype, requires_grad=grad)


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-12, 1 - 1e-9))
def test_bias_inverts_the_sigmoid(prior):
    bias = prior_to_bias(prior)
    assert torch.sigmoid(scalar(bias)).item() == pytest.approx(prior, rel=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 500), st.integers(1000, 200000), st.integers(2, 90), st.floats(0.2, 5))
def test_no_prior_beats_the_optimal_one(foreground, samples, classes, factor):
    best = optimal_prior(foreground, samples, classes)
    at_best = initial_loss(best, foreground, samples, classes)
    assert at_best <= initial_loss(min(best * factor, 0.99), foreground, samples, classes) + 1e-9
    total, mass = initial_gradient_mass(best, foreground, samples, classes)
    assert total == pytest.approx(0, abs=1e-9)
    assert mass == pytest.approx(2 * (1 - best), rel=1e-9)


def test_initial_loss_is_the_cross_entropy_of_constant_logits():
    classes, foreground, samples, prior = 5, 4, 60, 0.07
    target = torch.zeros(samples, classes, dtype=torch.float64)
    target[range(foreground), range(foreground)] = 1
    logits = torch.full_like(target, prior_to_bias(prior)).requires_grad_()
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / foreground
    loss.backward()
    assert loss.item() == pytest.approx(initial_loss(prior, foreground, samples, classes))
    total, mass = initial_gradient_mass(prior, foreground, samples, classes)
    assert logits.grad.sum().item() == pytest.approx(total)
    assert logits.grad.abs().sum().item() == pytest.approx(mass)


@pytest.mark.parametrize("counts", [(0, 10, 1), (11, 10, 1), (5, 10, 0), (10, 10, 1)])
def test_impossible_counts_are_refused(counts):
    with pytest.raises(ValueError, match="prior needs|All 10 samples are foreground"):
        optimal_prior(*counts)


@pytest.mark.parametrize("prior", [0.0, 1.0, -0.1, math.nan])
def test_impossible_priors_are_refused(prior):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        prior_to_bias(prior)


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-6, 1e6), st.lists(st.floats(0, 1e4), min_size=1, max_size=3), st.floats(0.1, 3))
def test_scaled_value_is_the_guides_mean(cls, guides, weight):
    loss = scalar(cls, grad=True)
    guide_tensors = [scalar(g, grad=True) for g in guides]
    scaled, ratio = guided_scale(loss, guide_tensors, weight)
    scaled.backward()
    mean = sum(guides) / len(guides)
    assert scaled.item() == pytest.approx(weight * mean, rel=1e-9)
    assert loss.grad.item() == pytest.approx(weight * mean / cls, rel=1e-9)
    assert ratio.item() * weight == pytest.approx(loss.grad.item(), rel=1e-12)
    assert not ratio.requires_grad and all(g.grad is None for g in guide_tensors)


def test_normaliser_of_the_class_loss_cancels():
    logits = torch.randn(6, 3, dtype=torch.float64, requires_grad=True)
    target = (torch.rand(6, 3) > 0.5).double()
    results = []
    for divisor in (1.0, 37.0):
        raw = F.binary_cross_entropy_with_logits(logits, target, reduction="sum") / divisor
        scaled, _ = guided_scale(raw, [scalar(0.7)], 2.0)
        results.append((scaled.detach(), torch.autograd.grad(scaled, logits)[0]))
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("cls, guide", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (1e-320, 1e10)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_losses_give_finite_zeros_with_graph(cls, guide, dtype):
    loss = scalar(cls, grad=True, dtype=dtype)
    scaled, ratio = guided_scale(loss, [scalar(guide, dtype=dtype)])
    scaled.backward()
    assert scaled.item() == 0 and ratio.item() == 0 and loss.grad.item() == 0


def test_undefined_class_loss_stays_visible():
    scaled, _ = guided_scale(scalar(math.nan), [scalar(1.0)])
    assert math.isnan(scaled.item())


def test_half_precision_losses_are_scaled_in_float32():
    loss = scalar(6e4, dtype=torch.float16)
    scaled, ratio = guided_scale(loss, [scalar(1e-3, dtype=torch.float16)])
    assert scaled.dtype == ratio.dtype == torch.float32
    assert scaled.item() == pytest.approx(1e-3, rel=1e-3)


def test_ratio_freezes_after_the_warm_up():
    ratio, iters = scalar(0.0), torch.tensor(0)
    seen = []
    for step in range(5):
        losses = [scalar(1.0 + step), scalar(3.0), scalar(1.0)]
        ratio, iters = frozen_ratio(ratio, iters, losses, 3)
        seen.append(ratio.item())
    assert seen == pytest.approx([2.0, 1.0, 2 / 3, 2 / 3, 2 / 3]) and iters.item() == 3


def test_sigma_weighting_passes_gradcheck():
    sigmas = torch.tensor([0.7, 1.3], dtype=torch.float64, requires_grad=True)
    losses = [scalar(2.0, grad=True), scalar(0.4, grad=True)]

    def objective(a, b, s):
        weighted, penalty = sigma_weighted([a, b], s)
        return sum(weighted) + penalty

    assert torch.autograd.gradcheck(objective, (*losses, sigmas))
    weighted, penalty = sigma_weighted(losses, torch.ones(2, dtype=torch.float64))
    assert [w.item() for w in weighted] == [1.0, 0.2] and penalty.item() == 0


def test_softmax_bias_gives_the_frequencies_as_scores():
    counts = torch.tensor([30, 10, 5])
    scores = softmax_prior_bias(counts, 900).softmax(0)
    torch.testing.assert_close(scores, torch.tensor([30, 10, 5, 855], dtype=torch.float64) / 900)
    uniform = softmax_prior_bias(counts, 900, uniform=True)
    assert uniform[:3].tolist() == [0, 0, 0]
    assert uniform.softmax(0)[-1].item() == pytest.approx(0.95)


def test_thresholds_share_the_foreground_ratio():
    thresholds = class_adaptive_thresholds(torch.tensor([1, 3, 0]), 1e-3)
    assert thresholds.dtype == torch.float32
    assert thresholds.tolist() == pytest.approx([2.5e-4, 7.5e-4, 0.0])


def test_bad_input_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match="at least one guiding loss"):
        guided_ratio(scalar(1.0), [])
    with pytest.raises(ValueError, match="2 losses need as many sigmas"):
        sigma_weighted([scalar(1.0)] * 2, torch.ones(3))
    with pytest.raises(ValueError, match="not all zero"):
        class_adaptive_thresholds(torch.zeros(3), 0.1)
    with pytest.raises(ValueError, match=r"foreground ratio must lie in \(0, 1\]"):
        class_adaptive_thresholds(torch.ones(3), 0.0)
    with pytest.raises(ValueError, match="bias -inf; use the uniform form"):
        softmax_prior_bias(torch.tensor([1, 0]), 10)
    with pytest.raises(ValueError, match="one count per class"):
        softmax_prior_bias(torch.tensor([5, 5]), 10)
