"""Weights of a classification loss and a box loss that follow the losses' statistics.

State machines behind one interface. They hold plain floats, know no ranks or trainers, and always
give the same weights for the same numbers.

* :class:`AdaptiveLossWeight`: ALWA (Yu et al., arXiv 2103.09488), variants 1 and 2.
* :class:`UncertaintyWeight`: learned uncertainties (Kendall et al., CVPR 2018), for comparison.
* :class:`DynamicWeightAverage`: rates of descent (Liu et al., CVPR 2019), for comparison.
* :class:`FAMOWeight`: equal relative descent (Liu et al., NeurIPS 2023), for comparison.
* :class:`GradNormWeight`: sizes of gradients (Chen et al., ICML 2018), for comparison.
"""

import math
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch

from .loss_weighting import LossWeighting, mean_and_std, mean_of

__all__ = [
    "AdaptiveLossWeight",
    "DynamicWeightAverage",
    "FAMOWeight",
    "GradNormWeight",
    "LossWeighting",
    "UncertaintyWeight",
    "gradnorm_gradient",
    "mean_and_std",
]


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
    a ``start_iter`` after the transient helps: no rule raises a weight while ``X <= Y``.

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

    SETTINGS = ("variant", "interval", "stats_on", "compose")
    STATE = ("weight", "windows_far_below")

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

    def window_entry(self, raw_cls: float, raw_box: float) -> Tuple[float, float]:
        if self.stats_on == "raw":
            return raw_cls, raw_box
        return raw_cls * self.weight, raw_box * self.box_weight

    def close_window(self, cls: List[float], box: List[float]) -> bool:
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


class _BothWeights(LossWeighting):
    """A rule that moves both weights."""

    def __init__(self, interval: int, start_iter: int):
        super().__init__(interval, start_iter)
        self.used_weights = [1.0, 1.0]

    @property
    def weights(self) -> Tuple[float, float]:
        return self.used_weights[0], self.used_weights[1]


def _scaled(weights: List[float]) -> List[float]:
    """Weights in the same proportion, with the sum 2."""
    return [2 * weight / sum(weights) for weight in weights]


class UncertaintyWeight(_BothWeights):
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

    SETTINGS = ("interval", "lr")
    STATE = ("s_cls", "s_box", "used_weights")

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

    def window_entry(self, raw_cls: float, raw_box: float) -> Tuple[float, float]:
        self.s_cls -= self.lr * (0.5 - math.exp(-self.s_cls) * raw_cls)
        self.s_box -= self.lr * (0.5 - 0.5 * math.exp(-self.s_box) * raw_box)
        # A huge loss may throw s so far that exp(-s) overflows later; the weight is limited anyway.
        self.s_cls = min(max(self.s_cls, -50.0), 50.0)
        self.s_box = min(max(self.s_box, -50.0), 50.0)
        return raw_cls, raw_box

    def close_window(self, cls: List[float], box: List[float]) -> bool:
        self.used_weights = [
            min(math.exp(-self.s_cls), self.max_weight),
            min(0.5 * math.exp(-self.s_box), self.max_weight),
        ]
        self.last_update = {"s_cls": self.s_cls, "s_box": self.s_box}
        return True


class DynamicWeightAverage(_BothWeights):
    """Dynamic weight averaging: the loss that falls more slowly gets the larger weight.

    ``w_k = 2 exp(r_k / T) / sum_i exp(r_i / T)`` where ``r_k`` is the mean of loss k over the last
    window divided by that over the window before. Both weights are 1 for the first two windows.

    Args:
        interval: iterations in a window (an epoch in the paper).
        temperature: T; large values make the weights equal.
        start_iter: iterations before the first window.
    """

    SETTINGS = ("interval", "temperature")
    STATE = ("used_weights", "previous")

    def __init__(self, interval: int = 100, temperature: float = 2.0, start_iter: int = 0):
        super().__init__(interval, start_iter)
        if not 0 < temperature < math.inf:
            raise ValueError(f"The temperature must be a positive number, not {temperature}.")
        self.temperature = temperature
        self.previous: Optional[List[float]] = None

    def close_window(self, cls: List[float], box: List[float]) -> bool:
        means = [mean_of(cls), mean_of(box)]
        previous, self.previous = self.previous, means
        if previous is None or min(previous) <= 0:
            return False
        rates = [new / old for new, old in zip(means, previous)]
        # A loss that has grown out of nearly nothing has an infinite rate, which says no weight.
        if not all(map(math.isfinite, rates)):
            return False
        # The maximum is taken off first: exp of a loss that exploded would overflow.
        exps = [math.exp((rate - max(rates)) / self.temperature) for rate in rates]
        self.used_weights = _scaled(exps)
        self.last_update = {"rate_cls": rates[0], "rate_box": rates[1]}
        return True


class FAMOWeight(_BothWeights):
    """FAMO: the loss whose logarithm falls more slowly gets the larger weight.

    With ``z = softmax(w)`` the weights are ``z_k / l_k``, scaled to the sum 2. ``w`` takes a step
    of Adam along ``J^T d``, J the Jacobian of the softmax and ``d_k`` the fall of ``log l_k``.

    The authors see the fall on the same batch, with a second forward pass after the step. Here it
    is that between two windows' means, so that windows must be long enough to average the batches'
    noise out. The weights belong to the losses of the window before.

    Args:
        interval: iterations in a window.
        lr: step size of ``w``.
        decay: weight decay of ``w``, towards equal ``z``.
        start_iter: iterations before the first window.
    """

    SETTINGS = ("interval", "lr", "decay")
    STATE = ("logits", "moment", "square", "steps", "previous", "used_weights")
    _EPS = 1e-8  # of losses, and of Adam

    def __init__(
        self, interval: int = 100, lr: float = 0.025, decay: float = 0.01, start_iter: int = 0
    ):
        super().__init__(interval, start_iter)
        if not 0 < lr < math.inf:
            raise ValueError(f"The step size of FAMO must be positive, not {lr}.")
        if not 0 <= decay < math.inf:
            raise ValueError(f"The weight decay of FAMO must be 0 or more, not {decay}.")
        self.lr = lr
        self.decay = decay
        self.logits = [0.0, 0.0]
        self.moment = [0.0, 0.0]
        self.square = [0.0, 0.0]
        self.steps = 0
        self.previous: Optional[List[float]] = None

    def close_window(self, cls: List[float], box: List[float]) -> bool:
        now = [mean_of(cls), mean_of(box)]
        # A loss of 0, as where no object is, would take all of the weight.
        if min(now) <= 0:
            return False
        previous, self.previous = self.previous, now
        if previous is not None:
            self._step(previous, now)
        self.used_weights = _scaled(
            [z / (loss + self._EPS) for z, loss in zip(self._softmax(), now)]
        )
        self.last_update = {"z_cls": self._softmax()[0]}
        return True

    def _softmax(self) -> List[float]:
        exps = [math.exp(w - max(self.logits)) for w in self.logits]
        return [e / sum(exps) for e in exps]

    def _step(self, before: List[float], after: List[float]) -> None:
        falls = [math.log(b + self._EPS) - math.log(a + self._EPS) for b, a in zip(before, after)]
        z = self._softmax()
        mean = sum(share * fall for share, fall in zip(z, falls))
        self.steps += 1
        slope = [
            share * (fall - mean) + self.decay * w for share, fall, w in zip(z, falls, self.logits)
        ]
        self.moment = [0.9 * m + 0.1 * g for m, g in zip(self.moment, slope)]
        self.square = [0.999 * v + 0.001 * g**2 for v, g in zip(self.square, slope)]
        rate = self.lr / (1 - 0.9**self.steps)
        sizes = [math.sqrt(v / (1 - 0.999**self.steps)) + self._EPS for v in self.square]
        self.logits = [w - rate * m / v for w, m, v in zip(self.logits, self.moment, sizes)]


def gradnorm_gradient(
    weights: Union[Sequence[float], torch.Tensor],
    norms: Union[Sequence[float], torch.Tensor],
    losses: Union[Sequence[float], torch.Tensor],
    initial: Union[Sequence[float], torch.Tensor],
    *,
    alpha: float = 1.5,
) -> torch.Tensor:
    """Slope of GradNorm's objective in the weights of T losses.

    ``sum |w norm - mean(w norm) r^alpha|`` with ``r`` the losses relative to their first values,
    over the mean of that. The target is a constant.

    Args:
        weights: (T,).
        norms: (T,) sizes of the unweighted losses' gradients in a shared layer.
        losses, initial: (T,) now and at first, above 0.
        alpha: how strongly the rates of descent are to be equalled; 0: only the gradients' sizes.

    Returns:
        (T,) float64.
    """
    weights, norms, losses, initial = (
        torch.as_tensor(x, dtype=torch.float64) for x in (weights, norms, losses, initial)
    )
    sizes, rates = weights * norms, losses / initial
    target = sizes.mean() * (rates / rates.mean()) ** alpha
    return torch.sign(sizes - target) * norms


class GradNormWeight(_BothWeights):
    """GradNorm: all losses' gradients in a shared layer have sizes that fit their rates of descent.

    When a window closes the weights take one step along :func:`gradnorm_gradient` and are scaled to
    the sum 2. The first window gives the initial losses. The caller measures the gradients in the
    last step of each window and tells :meth:`observe_norms` before that step's losses.

    Args:
        interval: iterations in a window.
        lr: step size of the weights.
        alpha: see :func:`gradnorm_gradient`.
        start_iter: iterations before the first window.
    """

    SETTINGS = ("interval", "lr", "alpha")
    STATE = ("norms", "initial", "used_weights")
    _LEAST = 0.01  # A weight that turned negative would maximise its loss.

    def __init__(
        self, interval: int = 100, lr: float = 0.025, alpha: float = 1.5, start_iter: int = 0
    ):
        super().__init__(interval, start_iter)
        if not 0 < lr < math.inf:
            raise ValueError(f"The step size of GradNorm must be positive, not {lr}.")
        if not 0 <= alpha < math.inf:
            raise ValueError(f"The alpha of GradNorm must be 0 or more, not {alpha}.")
        self.lr = lr
        self.alpha = alpha
        self.norms = [0.0, 0.0]
        self.initial: Optional[List[float]] = None

    def observe_norms(self, cls: float, box: float) -> None:
        """Take in the sizes of both losses' gradients; those that overflow are not used."""
        self.norms = [float(cls), float(box)]

    def close_window(self, cls: List[float], box: List[float]) -> bool:
        now = [mean_of(cls), mean_of(box)]
        if min(now) <= 0:
            return False
        if self.initial is None:
            self.initial = now
        if min(self.norms) <= 0 or not all(map(math.isfinite, self.norms)):
            return False
        slope = gradnorm_gradient(
            self.used_weights, self.norms, now, self.initial, alpha=self.alpha
        ).tolist()
        self.used_weights = _scaled(
            [max(w - self.lr * s, self._LEAST) for w, s in zip(self.used_weights, slope)]
        )
        self.last_update = {"norm_cls": self.norms[0], "norm_box": self.norms[1]}
        return True
