"""Statistics of paired seeds, against SciPy's tests and against draws."""

import math

import numpy as np
import pytest
from scipy import stats
from studies.comparison import Mean, compare, holm, seeds_needed


@pytest.mark.parametrize("seeds", [2, 12, 200])
def test_intervals_and_tests_are_those_of_students_t(seeds):
    values = [0.2 + (k % 2) for k in range(seeds)]
    test = stats.ttest_1samp(values, 0.0)
    low, high = test.confidence_interval()
    mean = Mean.of(values)
    assert (mean.half_width, mean.p) == pytest.approx(((high - low) / 2, test.pvalue))
    assert Mean.of([0.5] * seeds).p == 0.0 and Mean.of([0.0] * seeds).p == 1.0


def test_a_single_seed_has_no_interval():
    row = compare({"a": {1: 1.0}, "b": {1: 3.0}}, "a")["b"]
    assert row["difference"] == 2.0
    assert all(math.isnan(row[key]) for key in ("std", "spread", "deviation", "interval", "p"))


@pytest.mark.parametrize(
    "values, corrected",
    [([0.03, 0.01, 0.02, 0.5], [0.06, 0.04, 0.06, 0.5]), ([0.6, 0.9], [1.0, 1.0]), ([], [])],
)
def test_holms_correction(values, corrected):
    assert holm(values) == pytest.approx(corrected)


@pytest.mark.parametrize("spread", [0.3, 0.8, 2.0])
def test_the_seeds_that_are_needed_have_the_power(spread):
    n = seeds_needed(spread)
    rng = np.random.default_rng(0)

    def power(n):
        draws = rng.normal(1.0, spread, (20000, n))
        return (stats.ttest_1samp(draws, 0.0, axis=1).pvalue < 0.05).mean()

    assert power(n) > 0.79
    assert n == 2 or power(n - 1) < 0.81
