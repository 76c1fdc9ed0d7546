"""Evaluation during training, and what follows from its figures."""

import logging
import math
from typing import Any, Callable, Dict, Iterable, Optional

from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from ..random_state import isolated_random_state
from .base import HookBase, MeasuringHook
from .validation_loss import ValidationLoss

__all__ = ["BestCheckpointer", "EarlyStopping", "Evaluate", "figures_of", "main_figure"]

logger = logging.getLogger(__name__)


class Evaluate(MeasuringHook):
    """Evaluates every ``period`` steps and after the last one, in ``after_step``.

    Before a long evaluation the trainer's state is saved if a checkpoint is due at this step, so
    a kill in the middle costs nothing: a resumed run begins with the evaluation. Random numbers
    drawn by an evaluation do not change the training.

    Args:
        period: steps between evaluations; 0: at the end only.
        function: returns a nested dict of figures on rank 0; called on every rank.
    """

    def __init__(self, period: int, function: Callable[[], Optional[Dict[str, Any]]]):
        super().__init__()
        self.period = period
        self._function: Optional[Callable[[], Optional[Dict[str, Any]]]] = function

    def after_step(self) -> None:
        if self._function is None or not self.trainer.is_due(self.period):
            return
        self.trainer.state.save_before(self)
        with isolated_random_state():
            results = self._function()
        # Every rank gets the figures: a rank that decides by them must decide like the others.
        results = comm.all_gather(results)[0]
        self.last_figures, self.measured_at = {}, self.trainer.iter
        for name, value in flatten_results_dict(results or {}).items():
            try:
                self.last_figures[name] = value = float(value)
            except (TypeError, ValueError) as error:
                raise ValueError(
                    f"The evaluator returned {value!r} as '{name}'; let it return numbers."
                ) from error
            self.trainer.storage.put_scalar(name, value, smoothing_hint=False)
        comm.synchronize()

    def after_train(self) -> None:
        # The function is likely a closure over the trainer: break the circle.
        self._function = None


def figures_of(trainer: Any) -> Dict[str, float]:
    """What the hooks of a trainer have measured in this step."""
    found: Dict[str, float] = {}
    for hook in trainer.all_hooks:
        if isinstance(hook, MeasuringHook) and hook.measured_at == trainer.iter:
            found.update(hook.last_figures)
    return found


def main_figure(figures: Iterable[str]) -> Optional[str]:
    """The name of the figure that an evaluation is judged by: the first task's AP."""
    return next((name for name in figures if name.rsplit("/", 1)[-1] == "AP"), None)


class _BestMetric(HookBase):
    """Remembers the best value of a figure. Looks at it in the step that produced it."""

    def __init__(self, metric: str, mode: str = "max", min_delta: float = 0.0):
        if mode not in ("max", "min"):
            raise ValueError(f"The mode for {metric} is '{mode}'; choose max or min.")
        self.metric, self.sign = metric, 1.0 if mode == "max" else -1.0
        self.min_delta = min_delta
        self.best: Optional[float] = None
        self.best_iter: Optional[int] = None
        self._warned = False

    def newest(self) -> Optional[float]:
        """This step's value, or None if the step did not produce one."""
        value, iteration = self.trainer.storage.latest().get(self.metric, (None, None))
        return value if iteration == self.trainer.iter else None

    def improve(self, value: float) -> bool:
        """Take in a value; returns whether it is the best so far. NaN never is."""
        better = math.isfinite(value) and (
            self.best is None or self.sign * (value - self.best) > self.min_delta
        )
        if better:
            self.best, self.best_iter = value, self.trainer.iter
        return better

    def after_train(self) -> None:
        if self.best is None and self.trainer.finished and not self._warned:
            self._warned = True
            known = ", ".join(k for k in self.trainer.storage.latest() if "/" in k) or "none"
            logger.warning(f"'{self.metric}' never came up (figures with a '/': {known}).")

    def state_dict(self) -> Dict[str, Any]:
        return {"best": self.best, "best_iter": self.best_iter}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        self.best, self.best_iter = state_dict["best"], state_dict["best_iter"]


class BestCheckpointer(_BestMetric):
    """Writes ``model_best.pth`` when a figure is better than ever.

    Args:
        metric: the figure's name in the log, for example "bbox/AP" or "ema/bbox/AP"; "auto": the AP
            of the first task that is evaluated.
        mode: "max" or "min".
        name: the file's name without ".pth".
    """

    def __init__(self, metric: str, mode: str = "max", name: str = "model_best"):
        super().__init__(metric, mode)
        self._name = name

    def after_step(self) -> None:
        if self.metric == "auto":
            self.metric = main_figure(figures_of(self.trainer)) or "auto"
        value = self.newest()
        if value is not None and self.improve(value):
            logger.info(f"{self.metric} {value:.4f} is the best so far.")
            self.trainer.save_checkpoint(self._name, tag=False)

    def after_train(self) -> None:
        if self.metric != "auto":  # else there may be no AP at all
            super().after_train()

    def state_dict(self) -> Dict[str, Any]:
        return {**super().state_dict(), "metric": self.metric}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        if self.metric == "auto":
            self.metric = state_dict.get("metric", "auto")


class EarlyStopping(_BestMetric):
    """Ends the training when a figure has not improved for ``patience`` evaluations in a row.

    A run that ended so stays ended when it is resumed with the same patience or less.

    Args:
        metric: the figure's name in the log.
        patience: evaluations without improvement that end the training.
        mode: "max" or "min".
        min_delta: an improvement must be larger than this.
    """

    def __init__(self, metric: str, patience: int, mode: str = "max", min_delta: float = 0.0):
        super().__init__(metric, mode, min_delta)
        self.patience, self.waited = patience, 0

    def before_train(self) -> None:
        if self.waited >= self.patience:
            self._ask()

    def after_step(self) -> None:
        value = self.newest()
        # What is evaluated after it has asked changes nothing, also in a run that is resumed.
        if value is None or self.waited >= self.patience:
            return
        self.waited = 0 if self.improve(value) else self.waited + 1
        if self.waited >= self.patience:
            self._ask(evaluated=self._all_is_evaluated())

    def _ask(self, evaluated: bool = False) -> None:
        self.trainer.request_stop(
            f"{self.metric} has not improved on {self.best} (step {self.best_iter}) "
            f"for {self.waited} evaluations",
            evaluated=evaluated,
        )

    def _all_is_evaluated(self) -> bool:
        """Whether this step, which this hook stands at the end of, has evaluated all there is."""
        measuring = [h for h in self.trainer.all_hooks if isinstance(h, (Evaluate, ValidationLoss))]
        return all(self.trainer.is_due(hook.period) for hook in measuring)

    def state_dict(self) -> Dict[str, Any]:
        return {**super().state_dict(), "waited": self.waited}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.waited = state_dict["waited"]
