"""Pictures of the harmonic loss' gradients, from the operations that train.

    python tools/figures/harmonic_plots.py --output harmonic_gradients.png

Shapes: K pairs of a class and a box loss, T steps.
"""

import argparse
import math
from pathlib import Path
from typing import Any, Optional, Sequence, Tuple

import numpy as np
import torch

from d2ext.analysis.figures import BLACK, BLUE, GREEN, GREY, VERMILION, new_figure, save_figure
from d2ext.ops.harmonic import harmonic_factors, harmonic_iou_loss, literal_slopes

__all__ = ["descend", "draw_gradients", "harmonic_iou_curve"]

# Class losses at the start of training: uniform softmax scores, and a sigmoid's prior of 0.01.
_STARTS = (
    ("20 classes, softmax", math.log(21)),
    ("80 classes, softmax", math.log(81)),
)
_MAX_CLS, _MAX_LOC = 6.0, 3.0
_LABEL_OF_GAMMA = {0.0: "0 (IoU loss)"}


def descend(
    cls_loss: Sequence[float],
    loc_loss: Sequence[float],
    *,
    detach: bool,
    steps: int = 400,
    rate: float = 0.01,
) -> Tuple[np.ndarray, np.ndarray]:
    """Where gradient descent leads if both losses of a sample could move freely.

    A detector's losses share parameters and do not; this shows which way each is pulled.

    Args:
        cls_loss, loc_loss: K starting points (CE, L).
        detach: whether the factors are constants.
        steps, rate: T steps of gradient descent on the harmonic loss.

    Returns:
        CE and L after each step, both (T + 1, K).
    """
    point = torch.tensor([list(cls_loss), list(loc_loss)], dtype=torch.float64)
    path = [point]
    for _ in range(steps):
        leaf = point.clone().requires_grad_()
        beta_r, beta_c = harmonic_factors(leaf[0], leaf[1], detach=detach)
        loss = ((1 + beta_r) * leaf[0] + (1 + beta_c) * leaf[1]).sum()
        (slope,) = torch.autograd.grad(loss, leaf)
        point = (point - rate * slope).clamp(min=0)  # losses are never negative
        path.append(point)
    stacked = torch.stack(path).numpy()
    return stacked[:, 0], stacked[:, 1]


def harmonic_iou_curve(gamma: float, points: int = 201) -> Tuple[np.ndarray, ...]:
    """IoU, harmonic IoU loss and the size of its slope, each (``points``,)."""
    iou = torch.linspace(0, 1, points, dtype=torch.float64, requires_grad=True)
    loss = harmonic_iou_loss(iou, gamma)
    (slope,) = torch.autograd.grad(loss.sum(), iou)
    return iou.detach().numpy(), loss.detach().numpy(), -slope.numpy()


def draw_gradients(output: Path) -> Path:
    """Draw where the literal gradients point away, the two forms' paths, and the IoU loss.

    Args:
        output: the PNG file.
    """
    figure, ((signs, paths), (values, slopes)) = new_figure((10.5, 8), 2, 2, dpi=90)
    _draw_signs(signs)
    _draw_paths(paths)
    for gamma, colour in zip((0.0, 0.5, 0.8, 1.0), (GREY, BLUE, VERMILION, GREEN)):
        iou, loss, slope = harmonic_iou_curve(gamma)
        label = _LABEL_OF_GAMMA.get(gamma, f"{gamma}")
        values.plot(iou, loss, color=colour, label=label)
        slopes.plot(iou, slope, color=colour, label=label)
    values.set_title("(c) harmonic IoU loss", fontsize=10, loc="left")
    slopes.set_title("(d) size of its slope: good boxes weigh more", fontsize=10, loc="left")
    for axis in (values, slopes):
        axis.set_xlabel("IoU")
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
        axis.legend(title="gamma", fontsize=9)
    return save_figure(figure, output)


def _draw_signs(axis: Any) -> None:
    cls, loc = np.meshgrid(np.linspace(0, _MAX_CLS, 301), np.linspace(0, _MAX_LOC, 301))
    m_c, m_l = literal_slopes(torch.tensor(cls), torch.tensor(loc))
    for slope, colour, text, place in (
        (m_l.numpy(), VERMILION, "box pushed away\nfrom its object", (4.4, 0.35)),
        (m_c.numpy(), BLUE, "score\npushed\ndown", (0.36, 2.5)),
    ):
        axis.contourf(cls, loc, slope, levels=[-1e9, 0], colors=[colour], alpha=0.3)
        axis.contour(cls, loc, slope, levels=[0], colors=[colour], linewidths=1.5)
        axis.text(*place, text, ha="center", va="center", fontsize=9)
    for name, start in _STARTS:
        axis.axvline(start, color=GREY, lw=1, ls="--")
        axis.text(start + 0.06, _MAX_LOC - 0.08, name, rotation=90, va="top", fontsize=8)
    axis.set_title("(a) literal formula: where a gradient has the wrong sign", fontsize=10,
                   loc="left")  # fmt: skip
    _name_axes(axis)


def _draw_paths(axis: Any) -> None:
    cls = [math.log(21), math.log(81), 5.5, 5.5, 2.0, 0.1, 0.4]
    loc = [0.4, 0.8, 0.3, 1.6, 2.6, 2.2, 2.8]
    for detach, colour, style, label in (
        (True, BLUE, "-", "betas detached (default)"),
        (False, VERMILION, "--", "literal formula"),
    ):
        x, y = descend(cls, loc, detach=detach)
        lines = axis.plot(x, y, color=colour, ls=style, lw=1.4)
        lines[0].set_label(label)
    axis.plot(cls, loc, "o", color=BLACK, ms=4, label="start")
    axis.legend(fontsize=9, loc="upper right")
    axis.set_title("(b) gradient descent on (CE, L)", fontsize=10, loc="left")
    _name_axes(axis)


def _name_axes(axis: Any) -> None:
    axis.set_xlabel("class loss CE")
    axis.set_ylabel("box loss L")
    axis.set_xlim(0, _MAX_CLS)
    axis.set_ylim(0, _MAX_LOC)


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description="Draw the gradients of the harmonic loss.")
    parser.add_argument("--output", type=Path, default=Path("harmonic_gradients.png"))
    print(draw_gradients(parser.parse_args(argv).output))


if __name__ == "__main__":
    main()
