"""Weights of a classification loss and a box loss that follow the losses' statistics.

Three state machines behind one interface. They hold plain floats, know no tensors, ranks or
trainers, and always give the same weights for the same numbers.

* :class:`AdaptiveLossWeight`: ALWA (Yu et al., arXiv 2103.09488), variants 1 and 2.
* :class:`UncertaintyWeight`: learned uncertainties (Kendall et al., CVPR 2018), for comparison.
* :class:`DynamicWeightAverage`: rates of descent (Liu et al., CVPR 2019), for comparison.
"""

import math
from typing import Any, Dict, List, Optional, Sequence, Tuple

__all__ = [
    "AdaptiveLossWeight",
    "DynamicWeightAverage",
    "LossWeighting",
    "UncertaintyWeight",
    "mean_and_std",
]


# Squares and sums of larger numbers leave float64, as squares of numbers below its inverse do. The
# largest loss in float32 is 3e38.
_LARGEST = 1e100


def mean_and_std(values: Sequence[float]) -> Tuple[float, float]:
    """Mean and sample standard deviation (divisor n - 1) in float64, of two values or more.

    Both are NaN if a value is NaN or infinite.
    """
    if not all(map(math.isfinite, values)):
        return math.nan, math.nan
    largest = max(map(abs, values))
    if largest > _LARGEST or 0 < largest < 1 / _LARGEST:
        mean, std = mean_and_std([v / largest for v in values])
        return mean * largest, std * largest
    mean = math.fsum(values) / len(values)
    variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
    return mean, math.sqrt(variance)


def _mean(values: Sequence[float]) -> float:
    try:
        return math.fsum(values) / len(values)
    except OverflowError:  # of the sum, not of the mean
        return math.fsum(v / len(values) for v in values)


class LossWeighting:
    """Base class: weights of one pair of losses, changed only when a window of pairs is full.

    Args:
        interval: pairs of losses in a window; windows do not overlap.
        start_iter: pairs that are ignored at first, e.g. while the learning rate warms up.

    Attributes:
        last_update: what the last full window gave, by name; empty before the first.
        num_observed: pairs seen.
        num_windows: windows that were full.
        num_updates: those of them that changed a weight.
    """

    #: Settings that a saved state must share with the object it is loaded into.
    _settings: Tuple[str, ...] = ("interval",)
    #: Further values that make up the state.
    _state: Tuple[str, ...] = ()

    def __init__(self, interval: int, start_iter: int = 0, minimum_interval: int = 1):
        if int(interval) != interval or interval < minimum_interval:
            raise ValueError(
                f"The interval must be an integer of at least {minimum_interval}, not {interval}."
            )
        if start_iter < 0:
            raise ValueError(f"The start iteration must be 0 or more, not {start_iter}.")
        self.interval = int(interval)
        self.start_iter = int(start_iter)
        self.num_observed = 0
        self.num_windows = 0
        self.num_updates = 0
        self.last_update: Dict[str, float] = {}
        self._window: List[Tuple[float, float]] = []

    @property
    def weights(self) -> Tuple[float, float]:
        """Weights of the classification loss and of the box loss for the next iteration."""
        raise NotImplementedError(f"{type(self).__name__} must define weights.")

    @property
    def remaining(self) -> int:
        """Pairs after which the weights can change at the earliest; at least 1."""
        waiting = max(self.start_iter - self.num_observed, 0)
        return waiting + self.interval - len(self._window)

    @property
    def stuck(self) -> bool:
        """Whether a weight has collapsed early and is not going to recover by itself."""
        return False

    def observe(self, raw_cls: float, raw_box: float) -> float:
        """Record one iteration's unweighted losses.

        A pair with an infinite or undefined number is dropped: it would poison a whole window.

        Returns:
            The weight of the classification loss for the next iteration.
        """
        self.num_observed += 1
        usable = math.isfinite(raw_cls) and math.isfinite(raw_box)
        if usable and self.num_observed > self.start_iter:
            self._window.append(self._record(raw_cls, raw_box))
            if len(self._window) == self.interval:
                changed = self._close([c for c, _ in self._window], [b for _, b in self._window])
                self._window = []
                self.num_windows += 1
                self.num_updates += int(changed)
        return self.weights[0]

    def _record(self, raw_cls: float, raw_box: float) -> Tuple[float, float]:
        """What the window keeps of a pair of losses."""
        return raw_cls, raw_box

    def _close(self, cls: List[float], box: List[float]) -> bool:
        """Update from a full window; return whether a weight changed."""
        raise NotImplementedError(f"{type(self).__name__} must define _close.")

    def state_dict(self) -> Dict[str, Any]:
        """Settings and state as plain numbers, strings, lists and dicts."""
        return {
            "version": 1,
            "kind": type(self).__name__,
            "settings": {name: getattr(self, name) for name in self._settings},
            "num_observed": self.num_observed,
            "num_windows": self.num_windows,
            "num_updates": self.num_updates,
            "last_update": dict(self.last_update),
            "window_cls": [c for c, _ in self._window],
            "window_box": [b for _, b in self._window],
            **{name: getattr(self, name) for name in self._state},
        }

    def load_state_dict(self, state: Dict[str, Any], strict: bool = True) -> None:
        """Restore what :meth:`state_dict` gave.

        Args:
            state: a state dict.
            strict: refuse a state that was made under other settings. Otherwise the weights are
                taken over and the window, whose entries mean something else, starts empty.

        Raises:
            ValueError: if the state belongs to another kind of weighting, or to other settings.
        """
        settings = {name: getattr(self, name) for name in self._settings}
        same_kind = state.get("kind") == type(self).__name__
        same_settings = state.get("settings") == settings
        if not same_kind or (strict and not same_settings):
            raise ValueError(
                f"The saved loss weights are of {state.get('kind')} with {state.get('settings')}, "
                f"but the configuration asks for {type(self).__name__} with {settings}; resume "
                "with the settings of the saved run."
            )
        for name in ("num_observed", "num_windows", "num_updates", *self._state):
            setattr(self, name, state[name])
        self.last_update = dict(state["last_update"])
        pairs = zip(state["window_cls"], state["window_box"])
        self._window = [(c, b) for c, b in pairs] if same_settings else []


class AdaptiveLossWeight(LossWeighting):
    """Adaptive loss weight adjustment (ALWA).

    Over each window X and Y are computed from the classification and the box loss: mean + standard
    deviation (variant 1) or the standard deviation (variant 2). If ``X > Y``, the classification
    weight becomes ``Y / X``; otherwise it keeps its value. The box weight never changes.

    The defaults are the authors' rule: X is measured on the *weighted* loss but *replaces* the
    weight. Under noise the weight then swings between two values, an early large X / Y can lock it
    at a small value for the whole training, and a window without variation in the box loss sets it
    to 0 for ever. With ``stats_on="raw"`` and ``min_weight=0.1`` it is Y / X of the last window in
    which X exceeded Y, within limits. Where X never does so again after an early transient, only a
    ``start_iter`` behind the transient helps: no rule raises a weight while ``X <= Y``.

    Args:
        variant: 1 or 2.
        interval: iterations in a window (the authors' C).
        stats_on: "weighted" or "raw", the losses X and Y are measured on.
        compose: "replace" sets the weight to Y / X, "multiply" multiplies it by Y / X. With raw
            statistics only "replace" makes sense: multiplying again each window drifts to 0.
        min_weight: lower limit, applied after an update.
        max_weight: upper limit, applied after an update.
        start_iter: iterations before the first window.
        init_cls: classification weight before the first update.
        init_box: box weight, constant.
    """

    #: A weight below this, with many windows in which X stayed below half of Y, counts as stuck.
    STUCK_WEIGHT = 0.25
    STUCK_WINDOWS = 10

    _settings = ("variant", "interval", "stats_on", "compose")
    _state = ("weight", "windows_far_below")

    def __init__(
        self,
        variant: int = 2,
        interval: int = 100,
        stats_on: str = "weighted",
        compose: str = "replace",
        min_weight: float = 0.0,
        max_weight: float = 1.0,
        start_iter: int = 0,
        *,
        init_cls: float = 1.0,
        init_box: float = 1.0,
    ):
        super().__init__(interval, start_iter, minimum_interval=2)
        if variant not in (1, 2):
            raise ValueError(f"ALWA has the variants 1 and 2, not {variant}.")
        if stats_on not in ("weighted", "raw"):
            raise ValueError(f"ALWA's statistics are on 'weighted' or 'raw', not '{stats_on}'.")
        if compose not in ("replace", "multiply"):
            raise ValueError(f"ALWA's compose is 'replace' or 'multiply', not '{compose}'.")
        if not 0 <= min_weight <= max_weight < math.inf:
            raise ValueError(
                "ALWA needs 0 <= minimum weight <= maximum weight, not "
                f"{min_weight} and {max_weight}."
            )
        if not (0 < init_cls < math.inf and 0 < init_box < math.inf):
            raise ValueError(
                f"The initial weights must be positive numbers, not {init_cls} and {init_box}."
            )
        self.variant = variant
        self.stats_on = stats_on
        self.compose = compose
        self.min_weight = min_weight
        self.max_weight = max_weight
        self.weight = float(init_cls)
        self.box_weight = float(init_box)
        self.windows_far_below = 0

    @property
    def weights(self) -> Tuple[float, float]:
        return self.weight, self.box_weight

    @property
    def stuck(self) -> bool:
        if self.weight == 0:
            return True
        return self.weight < self.STUCK_WEIGHT and self.windows_far_below >= self.STUCK_WINDOWS

    def state_dict(self) -> Dict[str, Any]:
        return {**super().state_dict(), "limits": [self.min_weight, self.max_weight]}

    def load_state_dict(self, state: Dict[str, Any], strict: bool = True) -> None:
        super().load_state_dict(state, strict)
        limits = [self.min_weight, self.max_weight]
        # New limits hold at once. Old ones left a weight beyond them, e.g. the first, as it was.
        if list(state.get("limits", limits)) != limits:
            self.weight = min(max(self.weight, self.min_weight), self.max_weight)

    def _record(self, raw_cls: float, raw_box: float) -> Tuple[float, float]:
        if self.stats_on == "raw":
            return raw_cls, raw_box
        return raw_cls * self.weight, raw_box * self.box_weight

    def _close(self, cls: List[float], box: List[float]) -> bool:
        x, y = self._statistic(cls), self._statistic(box)
        # With a box loss below 0, X exceeds Y without being above 0. For losses near the end of
        # float64 it is infinite or not a number.
        fired = y < x < math.inf and x > 0
        if fired:
            ratio = 1 - (x - y) / x
            new = ratio if self.compose == "replace" else self.weight * ratio
            self.weight = min(max(new, self.min_weight), self.max_weight)
        self.last_update = {"X": x, "Y": y, "fired": float(fired)}
        self.windows_far_below = self.windows_far_below + 1 if x < 0.5 * y else 0
        return fired

    def _statistic(self, values: List[float]) -> float:
        mean, std = mean_and_std(values)
        return mean + std if self.variant == 1 else std


class UncertaintyWeight(LossWeighting):
    """Learned homoscedastic uncertainties, one per loss.

    With ``s = log sigma^2`` the objective is ``exp(-s_c) L_c + s_c / 2`` for the classification and
    ``exp(-s_b) L_b / 2 + s_b / 2`` for the box loss. ``s`` takes one step of gradient descent on
    the objective in every iteration; the weights that training uses follow when a window is full,
    so that the losses need not leave the device in between. The terms ``s / 2`` have no gradient in
    the model and are left out of its loss.

    Args:
        interval: iterations between two changes of the used weights; 1 follows every step.
        lr: step size of ``s``.
        start_iter: iterations before the first step.
        max_weight: upper limit of both used weights; a loss that vanishes would have none.
    """

    _settings = ("interval", "lr")
    _state = ("s_cls", "s_box", "used_weights")

    def __init__(
        self, interval: int = 100, lr: float = 0.01, start_iter: int = 0, max_weight: float = 10.0
    ):
        super().__init__(interval, start_iter)
        if not 0 < lr < math.inf:
            raise ValueError(f"The step size of the uncertainties must be positive, not {lr}.")
        if not 0 < max_weight < math.inf:
            raise ValueError(f"The maximum weight must be a positive number, not {max_weight}.")
        self.lr = lr
        self.max_weight = max_weight
        self.s_cls = 0.0
        self.s_box = 0.0
        self.used_weights = [1.0, 0.5]

    @property
    def weights(self) -> Tuple[float, float]:
        return self.used_weights[0], self.used_weights[1]

    def _record(self, raw_cls: float, raw_box: float) -> Tuple[float, float]:
        self.s_cls -= self.lr * (0.5 - math.exp(-self.s_cls) * raw_cls)
        self.s_box -= self.lr * (0.5 - 0.5 * math.exp(-self.s_box) * raw_box)
        # A huge loss may throw s so far that exp(-s) overflows later; the weight is limited anyway.
        self.s_cls = min(max(self.s_cls, -50.0), 50.0)
        self.s_box = min(max(self.s_box, -50.0), 50.0)
        return raw_cls, raw_box

    def _close(self, cls: List[float], box: List[float]) -> bool:
        self.used_weights = [
            min(math.exp(-self.s_cls), self.max_weight),
            min(0.5 * math.exp(-self.s_box), self.max_weight),
        ]
        self.last_update = {"s_cls": self.s_cls, "s_box": self.s_box}
        return True


class DynamicWeightAverage(LossWeighting):
    """Dynamic weight averaging: the loss that falls more slowly gets the larger weight.

    ``w_k = 2 exp(r_k / T) / sum_i exp(r_i / T)`` where ``r_k`` is the mean of loss k over the last
    window divided by that over the window before. Both weights are 1 for the first two windows.

    Args:
        interval: iterations in a window (an epoch in the paper).
        temperature: T; large values make the weights equal.
        start_iter: iterations before the first window.
    """

    _settings = ("interval", "temperature")
    _state = ("used_weights", "previous")

    def __init__(self, interval: int = 100, temperature: float = 2.0, start_iter: int = 0):
        super().__init__(interval, start_iter)
        if not 0 < temperature < math.inf:
            raise ValueError(f"The temperature must be a positive number, not {temperature}.")
        self.temperature = temperature
        self.used_weights = [1.0, 1.0]
        self.previous: Optional[List[float]] = None

    @property
    def weights(self) -> Tuple[float, float]:
        return self.used_weights[0], self.used_weights[1]

    def _close(self, cls: List[float], box: List[float]) -> bool:
        means = [_mean(cls), _mean(box)]
        previous, self.previous = self.previous, means
        if previous is None or min(previous) <= 0:
            return False
        rates = [new / old for new, old in zip(means, previous)]
        # A loss that has grown out of nearly nothing has an infinite rate, which says no weight.
        if not all(map(math.isfinite, rates)):
            return False
        # The maximum is taken off first: exp of a loss that exploded would overflow.
        exps = [math.exp((rate - max(rates)) / self.temperature) for rate in rates]
        self.used_weights = [2 * e / sum(exps) for e in exps]
        self.last_update = {"rate_cls": rates[0], "rate_box": rates[1]}
        return True
