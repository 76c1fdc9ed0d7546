"""A learning rate to begin with: the loss while the rate grows from step to step.

Smith: Cyclical Learning Rates for Training Neural Networks, WACV 2017.

Shapes: T steps.
"""

import math
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, Optional

import numpy as np
import torch
from torch import nn

from d2ext.engine.single_step import take_step

from .figures import BLUE, GREEN, GREY, ORANGE, VERMILION, new_figure, save_figure, title

__all__ = ["centred", "draw_range_test", "range_test", "suggest_rate"]


def range_test(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Iterable[Any],
    *,
    lowest: float = 1e-6,
    highest: float = 1.0,
    steps: int = 100,
    diverged: float = 4.0,
    smoothing: float = 0.9,
    settle: int = 0,
    precision: Optional[Any] = None,
    accumulate: int = 1,
    clip: Optional[Callable[[torch.optim.Optimizer], Any]] = None,
    report: Callable[[str], None] = print,
) -> Dict[str, np.ndarray]:
    """Train while the rate grows geometrically; stop early if the loss explodes.

    Args:
        model: gives a dictionary of losses (or one loss) for a batch; its weights change.
        optimizer: all of its groups get rates in the proportion they have now.
        batches: training batches, repeated if they end.
        lowest, highest: first and last rate of the group with the highest one.
        steps: T.
        diverged: stop when the smoothed loss is so many times the lowest one.
        smoothing: of the loss, as a moving average corrected for its start.
        settle: so many steps at the lowest rate come first and are not counted, while statistics of
            layers and losses, which begin at made-up values, move the loss at any rate.
        precision, accumulate, clip: see :func:`~d2ext.engine.single_step.take_step`.
        report: called with a line of progress every ten steps.

    Returns:
        ``lr``, ``loss`` and ``smooth``: (T,), fewer if it stopped
    """
    from detectron2.utils.events import EventStorage

    how: Dict[str, Any] = {"precision": precision, "accumulate": accumulate, "clip": clip}
    model.train()
    top = max(group["lr"] for group in optimizer.param_groups)
    shares = [group["lr"] / top for group in optimizer.param_groups]
    rates, losses, smooth = [], [], []
    average, stream = 0.0, _repeat(batches)
    with EventStorage():
        for group, share in zip(optimizer.param_groups, shares):
            group["lr"] = lowest * share
        for _ in range(settle):
            take_step(model, optimizer, stream, **how)
        for step in range(steps):
            rate = lowest * (highest / lowest) ** (step / max(steps - 1, 1))
            for group, share in zip(optimizer.param_groups, shares):
                group["lr"] = rate * share
            value = sum(take_step(model, optimizer, stream, **how).values())
            if not math.isfinite(value):
                break
            average = smoothing * average + (1 - smoothing) * value
            rates.append(rate)
            losses.append(value)
            smooth.append(average / (1 - smoothing ** (step + 1)))
            if (step + 1) % 10 == 0:
                report(f"step {step + 1} of {steps}: lr {rate:.2e}, loss {smooth[-1]:.3f}")
            if smooth[-1] > diverged * min(smooth):
                break
    return {"lr": np.array(rates), "loss": np.array(losses), "smooth": np.array(smooth)}


def _repeat(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches without end."""
    while True:
        empty = True
        for batch in batches:
            empty = False
            yield batch
        if empty:
            raise ValueError("There is no batch to train on; give some.")


def centred(values: np.ndarray) -> np.ndarray:
    """(T,) smoothed to both sides, so that a fall is not seen later than it happens."""
    width = max(len(values) / 15, 1e-9)
    steps = np.arange(len(values))
    kernel = np.exp(-0.5 * ((steps[:, None] - steps[None]) / width) ** 2)
    return kernel @ values / kernel.sum(axis=1)


def suggest_rate(found: Dict[str, np.ndarray]) -> Dict[str, Optional[float]]:
    """Rates to try, from what :func:`range_test` returns.

    Returns:
        ``steepest``, where the loss falls fastest by the logarithm of the rate, and ``safe``, a
        tenth of the rate at the lowest loss. None if the loss does not fall by more than its noise.
    """
    lr, loss = found["lr"], found["loss"]
    nothing: Dict[str, Optional[float]] = {"steepest": None, "safe": None}
    if len(lr) < 3:
        return nothing
    curve = centred(loss)
    end = int(np.argmin(curve)) + 1
    # The noise of a value is that of a mean over some 3.5 widths of the smoothing. What explodes
    # after the lowest loss is not noise. The lowest of a few such means, against the first, which
    # has half of the window, differs by some 3 noises where there is no fall at all.
    noise = np.std(loss[:end] - curve[:end]) / np.sqrt(max(3.5 * len(lr) / 15, 1))
    if end < 2 or curve[0] - curve[end - 1] <= 5 * noise:
        return nothing
    begin = _begin_of_fall(lr, curve[:end], noise)
    slope = np.gradient(curve[:end], np.log(lr[:end]))
    steepest = begin + int(np.argmin(slope[begin:]))
    return {"steepest": float(lr[steepest]), "safe": float(lr[end - 1] / 10)}


def _begin_of_fall(lr: np.ndarray, curve: np.ndarray, noise: float) -> int:
    """Where the fall to the lowest loss begins: after the last plateau before it.

    In the first steps the loss falls at any rate, while layers and losses gather statistics. That
    drop ends in a plateau, of half a decade at least; what the rate does goes on at higher rates.
    """
    decades = np.log10(lr[-1] / lr[0])
    stretch = max(2, round(len(lr) / max(decades, 1e-9) / 2))
    lowest = curve[-1]
    for k in range(len(curve) - 1, stretch, -1):
        has_fallen = curve[k] - lowest > 3 * noise
        if has_fallen and curve[k - stretch] - curve[k] < 0.1 * (curve[k] - lowest):
            return k
    return 0


def draw_range_test(
    found: Dict[str, np.ndarray], rates: Dict[str, Optional[float]], current: float, path: Path
) -> None:
    """Draw loss against rate, with the suggestions and the config's own rate."""
    figure, axes = new_figure((7, 4.2))
    axes.plot(found["lr"], found["loss"], color=GREY, lw=0.7, label="loss of a step")
    curve = centred(found["loss"])
    axes.plot(found["lr"], curve, color=BLUE, lw=1.8, label="smoothed")
    marks = (
        ("steepest", GREEN, "-", "steepest fall"),
        ("safe", ORANGE, "--", "a tenth of the lowest loss's"),
    )
    for key, color, style, text in marks:
        if rates[key] is not None:
            axes.axvline(rates[key], color=color, ls=style, label=f"{text}: {rates[key]:.2e}")
    axes.axvline(current, color=VERMILION, ls=":", label=f"SOLVER.BASE_LR: {current:.2e}")
    axes.set_xscale("log")
    low, high = (curve.min(), curve.max()) if len(curve) else (0, 1)
    axes.set_ylim(max(0, low - 0.1 * (high - low)), high + 0.2 * (high - low) + 1e-6)
    title(axes, "Loss while the learning rate grows from step to step", "learning rate",
          "total loss", size=10)  # fmt: skip
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)
    save_figure(figure, path)
