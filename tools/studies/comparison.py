"""Runs compared seed by seed: means, intervals, tests, and what several tests at once allow.

Shapes: S seeds, B draws of the test images.
"""

import math
import statistics
from typing import Dict, List, Optional, Sequence

import numpy as np
from scipy import special

__all__ = ["compare", "half_width", "holm", "interval_with_images", "p_value", "seeds_needed"]


def compare(
    values: Dict[str, Dict[int, float]], baseline: Optional[str]
) -> Dict[str, Dict[str, float]]:
    """Mean and standard deviation of a figure, and its difference to the baseline seed by seed.

    Args:
        values: the figure of each run by seed.
        baseline: the run that others are compared with.

    Returns:
        For each run: ``mean``, ``std``, ``seeds``, the half-width ``spread`` of the mean's 95 %
        confidence interval and, unless it is the baseline, ``difference`` with its standard
        deviation ``deviation`` over seeds, the half-width ``interval`` of its 95 % confidence
        interval and ``p`` (Student's t over seeds). nan is what a single seed does not say.
    """
    table = {}
    for name, by_seed in values.items():
        own = list(by_seed.values())
        row = {"seeds": len(own), "mean": statistics.fmean(own)}
        row.update(std=_deviation(own), spread=half_width(own))
        shared = sorted(by_seed.keys() & values.get(baseline, {}).keys())
        if name != baseline and shared:
            pairs = [by_seed[s] - values[baseline][s] for s in shared]
            row.update(difference=statistics.fmean(pairs), deviation=_deviation(pairs))
            row.update(interval=half_width(pairs), p=p_value(pairs))
        table[name] = row
    return table


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else math.nan


def half_width(values: Sequence[float]) -> float:
    """Half the width of the 95 % confidence interval of a mean; nan for a single value."""
    n = len(values)
    return _limit(n) * _deviation(values) / math.sqrt(n)


def _limit(n: int) -> float:
    """Student's t that n values exceed, either way, in 5 % of cases if their mean is 0."""
    return float(special.stdtrit(n - 1, 0.975))


def p_value(values: Sequence[float]) -> float:
    """Of the two-sided t test that a mean is 0; nan for a single value."""
    n = len(values)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.divide(statistics.fmean(values) * math.sqrt(n), _deviation(values))
    return float(2 * special.stdtr(n - 1, -abs(t)))


def seeds_needed(deviation: float, effect: float = 1.0, power: float = 0.8) -> int:
    """How many paired seeds show an effect, at 5 %, two-sided; at least 2.

    Args:
        deviation: standard deviation of the paired differences.
        effect: the mean difference.
        power: how often it is to be shown.
    """
    for n in range(2, 1000):
        shift = effect * math.sqrt(n) / max(deviation, 1e-9)
        if 1 - special.nctdtr(n - 1, shift, _limit(n)) >= power:
            return n
    return 1000


def interval_with_images(draws: np.ndarray, times: int = 4000) -> np.ndarray:
    """95 % of the mean difference over other seeds and other test images.

    Args:
        draws: (S, B) difference of each seed on each draw of images.
        times: how often seeds are drawn.
    """
    rng = np.random.default_rng(0)
    seeds = rng.integers(len(draws), size=(times, len(draws)))
    images = rng.integers(draws.shape[1], size=(times, 1))
    return np.percentile(draws[seeds, images].mean(1), [2.5, 97.5])


def holm(p_values: Sequence[float]) -> List[float]:
    """Holm's correction of the p values of several tests, in their order."""
    order = np.argsort(p_values, kind="stable")
    scaled = np.take(p_values, order) * np.arange(len(order), 0, -1)
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return corrected.tolist()
