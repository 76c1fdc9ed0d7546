"""What the state machines of :mod:`d2ext.ops.loss_weights` have in common."""

import math
from typing import Any, Dict, List, Sequence, Tuple

__all__ = ["LossWeighting", "mean_and_std", "mean_of"]


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


def mean_of(values: Sequence[float]) -> float:
    """Mean in float64."""
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
    SETTINGS: Tuple[str, ...] = ("interval",)
    #: Further values that make up the state.
    STATE: Tuple[str, ...] = ()

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
        """Whether a weight has collapsed early and will not recover by itself."""
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
            self._window.append(self.window_entry(raw_cls, raw_box))
            if len(self._window) == self.interval:
                changed = self.close_window(
                    [c for c, _ in self._window], [b for _, b in self._window]
                )
                self._window = []
                self.num_windows += 1
                self.num_updates += int(changed)
        return self.weights[0]

    def window_entry(self, raw_cls: float, raw_box: float) -> Tuple[float, float]:
        """What the window keeps of a pair of losses."""
        return raw_cls, raw_box

    def close_window(self, cls: List[float], box: List[float]) -> bool:
        """Update from a full window; return whether a weight changed."""
        raise NotImplementedError(f"{type(self).__name__} must define close_window.")

    def state_dict(self) -> Dict[str, Any]:
        """Settings and state as plain numbers, strings, lists and dicts."""
        return {
            "version": 1,
            "kind": type(self).__name__,
            "settings": {name: getattr(self, name) for name in self.SETTINGS},
            "num_observed": self.num_observed,
            "num_windows": self.num_windows,
            "num_updates": self.num_updates,
            "last_update": dict(self.last_update),
            "window_cls": [c for c, _ in self._window],
            "window_box": [b for _, b in self._window],
            **{name: getattr(self, name) for name in self.STATE},
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
        settings = {name: getattr(self, name) for name in self.SETTINGS}
        same_kind = state.get("kind") == type(self).__name__
        same_settings = state.get("settings") == settings
        if not same_kind or (strict and not same_settings):
            raise ValueError(
                f"The saved loss weights are of {state.get('kind')} with {state.get('settings')}, "
                f"but the configuration asks for {type(self).__name__} with {settings}; resume "
                "with the settings of the saved run."
            )
        for name in ("num_observed", "num_windows", "num_updates", *self.STATE):
            setattr(self, name, state[name])
        self.last_update = dict(state["last_update"])
        pairs = zip(state["window_cls"], state["window_box"])
        self._window = [(c, b) for c, b in pairs] if same_settings else []
