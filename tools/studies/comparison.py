"""Runs compared seed by seed: means, intervals, tests, and what several tests at once allow.

Shapes: S seeds, B draws of the test images.
"""

import math
import statistics
from typing import Dict, List, NamedTuple, Optional, Sequence

import numpy as np
from scipy import special

__all__ = ["Mean", "compare", "holm", "interval_with_images", "seeds_needed"]


class Mean(NamedTuple):
    """A mean over seeds, and what Student's t says of it; nan for a single seed.

    Attributes:
        value: the mean.
        deviation: standard deviation of the seeds.
        half_width: half of the mean's 95 % confidence interval.
        p: of the two-sided test that it is 0.
    """

    value: float
    deviation: float
    half_width: float
    p: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Mean":
        n, mean = len(values), statistics.fmean(values)
        if n < 2:
            return cls(mean, math.nan, math.nan, math.nan)
        deviation = statistics.stdev(values)
        error = deviation / math.sqrt(n)
        t = abs(mean) / error if error else math.inf if mean else 0.0
        return cls(mean, deviation, _limit(n) * error, float(2 * special.stdtr(n - 1, -t)))


def _limit(n: int) -> float:
    """Student's t that n values exceed, either way, in 5 % of cases if their mean is 0."""
    return float(special.stdtrit(n - 1, 0.975))


def compare(
    values: Dict[str, Dict[int, float]], baseline: Optional[str]
) -> Dict[str, Dict[str, float]]:
    """A figure of each run, and its difference to the baseline seed by seed.

    Args:
        values: the figure of each run by seed.
        baseline: the run that others are compared with.

    Returns:
        For each run the fields of :class:`Mean` as ``mean``, ``std`` and ``spread``, ``seeds`` and,
        unless it is the baseline, those of the difference as ``difference``, ``deviation``,
        ``interval`` and ``p``.
    """
    table = {}
    for name, by_seed in values.items():
        own = Mean.of(list(by_seed.values()))
        row = {"seeds": len(by_seed), "mean": own.value, "std": own.deviation}
        row["spread"] = own.half_width
        shared = sorted(by_seed.keys() & values.get(baseline, {}).keys())
        if name != baseline and shared:
            pairs = Mean.of([by_seed[s] - values[baseline][s] for s in shared])
            row.update(zip(("difference", "deviation", "interval", "p"), pairs))
        table[name] = row
    return table


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
