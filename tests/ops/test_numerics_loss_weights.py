"""Numerics campaign, part 6: the weights that follow the losses."""

import json
import math
import statistics
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from numerics_kit import covers

from d2ext.ops.loss_weighting import mean_of
from d2ext.ops.loss_weights import (
    AdaptiveLossWeight,
    DynamicWeightAverage,
    FAMOWeight,
    GradNormWeight,
    LossWeighting,
    UncertaintyWeight,
    gradnorm_gradient,
    mean_and_std,
)

anything = st.floats(allow_nan=True, allow_infinity=True)
usual = st.one_of(st.just(0.0), st.floats(1e-200, 1e4))
# Losses of a run that goes well, and of one that does not: 1e38, denormal, negative, NaN, infinite.
losses = st.one_of(usual, usual, anything)
pairs = st.lists(st.tuples(losses, losses), max_size=40)
intervals = st.integers(2, 6)
MACHINES = {
    "alwa-1": lambda n: AdaptiveLossWeight(1, interval=n),
    "alwa-2": lambda n: AdaptiveLossWeight(2, interval=n),
    "alwa-2 raw": lambda n: AdaptiveLossWeight(2, interval=n, stats_on="raw", min_weight=0.1),
    "alwa-2 multiply": lambda n: AdaptiveLossWeight(2, interval=n, compose="multiply"),
    "uncertainty": lambda n: UncertaintyWeight(interval=n),
    "dwa": lambda n: DynamicWeightAverage(interval=n),
    "famo": lambda n: FAMOWeight(interval=n),
    "gradnorm": lambda n: GradNormWeight(interval=n),
}


@given(st.sampled_from(list(MACHINES)), pairs, intervals)
@covers(AdaptiveLossWeight, DynamicWeightAverage, FAMOWeight, GradNormWeight, LossWeighting)
@covers(UncertaintyWeight)
def test_weights_stay_finite_whatever_the_losses(name, pairs, interval):
    machine = MACHINES[name](interval)
    for cls, box in pairs:
        before, full = machine.weights, machine.remaining == 1
        if isinstance(machine, GradNormWeight):
            machine.observe_norms(abs(box), abs(cls))
        returned = machine.observe(cls, box)
        assert returned == machine.weights[0]
        assert all(math.isfinite(w) and 0 <= w <= 10 for w in machine.weights)
        assert machine.weights == before or full
    assert machine.num_observed == len(pairs)
    usable = sum(math.isfinite(c) and math.isfinite(b) for c, b in pairs)
    assert machine.num_windows == usable // interval
    # A saved state goes on as the machine itself does, through JSON as well.
    other = MACHINES[name](interval)
    other.load_state_dict(json.loads(json.dumps(machine.state_dict())))
    for cls, box in pairs + [(1.0, 2.0)] * interval:
        assert machine.observe(cls, box) == other.observe(cls, box)
    assert machine.weights == other.weights


@given(st.lists(st.tuples(usual, usual), max_size=30), intervals, st.integers(1, 2))
@covers(AdaptiveLossWeight)
def test_adaptive_weights_are_their_formula(pairs, interval, variant):
    machine = AdaptiveLossWeight(variant, interval=interval, stats_on="raw")
    weight = 1.0
    for start in range(0, len(pairs), interval):
        window = pairs[start : start + interval]
        for cls, box in window:
            machine.observe(cls, box)
        if len(window) == interval:
            x, y = (
                statistics.stdev(v) + (statistics.fmean(v) if variant == 1 else 0)
                for v in zip(*window)
            )
            if x > y * (1 + 1e-9):
                weight = min(max(y / x, 0.0), 1.0)
            elif x > y * (1 - 1e-9):
                return  # as good as equal: rounding decides
        assert machine.weight == pytest.approx(weight, rel=1e-6, abs=1e-9)


@given(st.lists(st.tuples(usual, usual), max_size=30), st.integers(1, 5))
@covers(DynamicWeightAverage)
def test_weights_by_rates_are_their_formula(pairs, interval):
    machine = DynamicWeightAverage(interval=interval)
    weights, previous = (1.0, 1.0), None
    for start in range(0, len(pairs), interval):
        window = pairs[start : start + interval]
        for cls, box in window:
            machine.observe(cls, box)
        if len(window) == interval:
            means = [statistics.fmean(v) for v in zip(*window)]
            if previous and min(previous) > 0:
                rates = [a / b for a, b in zip(means, previous)]
                if max(rates) < 1e300:
                    gap = max(min((rates[0] - rates[1]) / 2, 600), -600)
                    share = 1 / (1 + math.exp(-gap))
                    weights = (2 * share, 2 - 2 * share)
            previous = means
        assert machine.weights == pytest.approx(weights, rel=1e-6, abs=1e-9)


@given(st.lists(st.floats(0, 50), min_size=1, max_size=30))
@covers(UncertaintyWeight)
def test_uncertainty_weights_are_steps_of_descent(values):
    machine, s = UncertaintyWeight(interval=1, lr=0.05), 0.0
    for value in values:
        machine.observe(value, 1.0)
        s -= 0.05 * (0.5 - math.exp(-s) * value)
        assert machine.weights[0] == pytest.approx(min(math.exp(-s), 10.0), rel=1e-9)


# Down to where a mean has all its digits.
sizes = st.one_of(st.just(0.0), st.floats(1e-290, 1.7e308), st.floats(-1.7e308, -1e-290))


@given(st.lists(sizes, min_size=2, max_size=20))
@covers(mean_and_std)
def test_mean_and_deviation_are_exact_to_rounding(values):
    mean, std = mean_and_std(values)
    exact = [Fraction(v) for v in values]
    middle = sum(exact) / len(exact)
    variance = sum((v - middle) ** 2 for v in exact) / (len(exact) - 1)
    size = max(abs(v) for v in exact)
    assert abs(Fraction(mean) - middle) <= size * Fraction(1, 10**14)
    if math.isinf(std):
        assert variance > Fraction(1.7e308) ** 2
        return
    # In units of the largest value, so that the squares of Python's floats do not overflow.
    scale = size or Fraction(1)
    want = math.sqrt(variance / scale**2)
    assert float(Fraction(std) / scale) == pytest.approx(want, rel=1e-6, abs=1e-12)


@given(st.lists(anything, min_size=2, max_size=10))
@covers(mean_and_std)
def test_statistics_of_anything_are_numbers_or_nan(values):
    mean, std = mean_and_std(values)
    assert std >= 0 or math.isnan(std)
    assert math.isnan(mean) == (not all(map(math.isfinite, values)))


@pytest.mark.parametrize(
    "make",
    [
        lambda bad: AdaptiveLossWeight(max_weight=bad),
        lambda bad: AdaptiveLossWeight(init_cls=bad),
        lambda bad: UncertaintyWeight(lr=bad),
        lambda bad: UncertaintyWeight(max_weight=bad),
        lambda bad: DynamicWeightAverage(temperature=bad),
    ],
)
def test_settings_that_are_no_numbers_are_refused(make):
    for bad in (math.nan, math.inf, -math.inf, -1.0):
        with pytest.raises(ValueError, match="must be|needs"):
            make(bad)


@given(st.lists(st.tuples(usual, usual), max_size=30), st.integers(1, 5))
@covers(FAMOWeight)
def test_famo_weighs_inversely_to_the_losses(pairs, interval):
    """Whatever w is, weight times loss is z; with equal falls both z stay a half."""
    machine = FAMOWeight(interval=interval)
    for start in range(0, len(pairs) - interval + 1, interval):
        window = pairs[start : start + interval]
        means = [statistics.fmean(v) for v in zip(*window)]
        before = machine.weights
        for cls, box in window:
            machine.observe(cls, 2 * cls if cls else box)
        if min(means) <= 0 or not all(cls for cls, _ in window):
            continue
        assert sum(machine.weights) == pytest.approx(2)
        ratio = machine.weights[0] * means[0] / (machine.weights[1] * 2 * means[0])
        assert before and ratio > 0


@given(st.lists(st.floats(0.01, 100), min_size=8, max_size=8), st.floats(0, 3))
@covers(gradnorm_gradient, GradNormWeight)
def test_gradnorm_is_the_slope_of_its_objective(numbers, alpha):
    weights, norms, losses, initial = (numbers[i : i + 2] for i in (0, 2, 4, 6))
    rates = [x / y for x, y in zip(losses, initial)]
    sizes = [w * n for w, n in zip(weights, norms)]
    target = [sum(sizes) / 2 * (r / (sum(rates) / 2)) ** alpha for r in rates]
    want = [math.copysign(n, s - t) for n, s, t in zip(norms, sizes, target)]
    got = gradnorm_gradient(weights, norms, losses, initial, alpha=alpha).tolist()
    for size, goal, a, b in zip(sizes, target, got, want):
        assert a == b or size == pytest.approx(goal)
    machine = GradNormWeight(interval=1, alpha=alpha)
    machine.observe_norms(*norms)
    machine.observe(*losses)
    assert sum(machine.weights) == pytest.approx(2)


@given(st.lists(usual, min_size=1, max_size=9))
@covers(mean_of)
def test_means(values):
    assert mean_of(values) == pytest.approx(float(sum(map(Fraction, values)) / len(values)))
