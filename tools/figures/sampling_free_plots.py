"""Initial class loss and gradient of a sigmoid classifier over its first score, as a picture.

    python tools/figures/sampling_free_plots.py --output docs/images/sampling_free_initial_loss.png

Symbols of the paper: N samples, N_f of them foreground, C classes, pi the score of every class at
the start. No detector is trained: these are the formulas.
"""

import argparse
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import numpy as np

from d2ext.analysis.figures import BLACK, BLUE, GREEN, VERMILION, new_figure, save_figure
from d2ext.ops.sampling_free import (
    initial_gradient_mass,
    initial_loss,
    optimal_prior,
    prior_to_bias,
)

__all__ = ["draw_initial_loss", "initial_table"]

#: First scores that the picture marks: no prior, focal loss' prior.
COMMON_PRIORS = (0.5, 0.01)


def initial_table(
    priors: Sequence[float], samples_per_foreground: float = 1000.0, num_classes: int = 80
) -> List[Dict[str, float]]:
    """What a classifier starts with, per foreground sample, for several first scores.

    Args:
        priors: values of pi.
        samples_per_foreground: N / N_f.
        num_classes: C.

    Returns:
        A dict for each: ``prior``, ``bias``, ``foreground_loss``, ``background_loss``, ``loss``,
        ``gradient``, the sum of the logits' gradients, and ``gradient_mass``, that of their sizes.
    """
    rows = []
    for prior in priors:
        loss = initial_loss(prior, 1, samples_per_foreground, num_classes)
        total, mass = initial_gradient_mass(prior, 1, samples_per_foreground, num_classes)
        foreground = float(-np.log(prior))
        rows.append(
            {
                "prior": prior,
                "bias": prior_to_bias(prior),
                "foreground_loss": foreground,
                "background_loss": loss - foreground,
                "loss": loss,
                "gradient": total,
                "gradient_mass": mass,
            }
        )
    return rows


def draw_initial_loss(
    output: Path, samples_per_foreground: float = 1000.0, num_classes: int = 80
) -> Path:
    """Draw loss and gradient over pi, two panels with logarithmic axes.

    Args:
        output: the PNG file.
        samples_per_foreground: N / N_f.
        num_classes: C.
    """
    rows = initial_table(np.logspace(-10, np.log10(0.5), 400), samples_per_foreground, num_classes)
    table = {key: np.array([row[key] for row in rows]) for key in rows[0]}
    best = optimal_prior(1, samples_per_foreground, num_classes)

    figure, (left, right) = new_figure((11, 4.6), 1, 2, dpi=110, sharex=True)
    pi = table["prior"]
    left.loglog(pi, table["loss"], color=BLACK, lw=2.2, label="together")
    left.loglog(pi, table["foreground_loss"], color=VERMILION, ls="--", label="foreground")
    left.loglog(pi, table["background_loss"], color=BLUE, ls=":", lw=2, label="background")
    left.set_ylim(0.1, 2e5)
    left.set_ylabel("class loss per foreground sample")
    background = (table["gradient_mass"] + table["gradient"]) / 2
    right.loglog(pi, table["gradient_mass"], color=BLACK, lw=2.2, label="together")
    right.loglog(pi, 1 - pi, color=VERMILION, ls="--", label="foreground")
    right.loglog(pi, background, color=BLUE, ls=":", lw=2, label="background")
    right.set_ylim(0.1, 2e5)
    right.set_ylabel("sum of |d loss / d logit| per foreground sample")
    for axis, column in ((left, "loss"), (right, "gradient_mass")):
        _mark(axis, [*COMMON_PRIORS, best], column, samples_per_foreground, num_classes)
        axis.set_xlabel("first score of every class, pi")
        axis.grid(alpha=0.3)
        axis.legend(fontsize=9, loc="upper left")
    figure.suptitle(
        f"A classifier's first step: {samples_per_foreground:g} samples a foreground one, "
        f"{num_classes} classes (the formulas; no detector is trained)",
        fontsize=11,
    )
    return save_figure(figure, output)


def _mark(axis, priors: Sequence[float], column: str, ratio: float, num_classes: int) -> None:
    """A dot and a number at each of a few first scores; the last one is the optimum."""
    for row in initial_table(priors, ratio, num_classes):
        is_best = row["prior"] == priors[-1]
        axis.plot(row["prior"], row[column], "o", color=GREEN if is_best else BLACK, ms=6)
        name = f"pi* = {row['prior']:.3g}" if is_best else f"pi = {row['prior']:g}"
        value = row[column]
        axis.annotate(
            f"{name}\n{value:,.0f}" if value >= 100 else f"{name}\n{value:.4g}",
            (row["prior"], value),
            xytext=(-8, 10) if is_best else (-10, -2),
            textcoords="offset points",
            ha="right",
            va="bottom" if is_best else "center",
            fontsize=9,
        )
    axis.axvline(priors[-1], color=GREEN, lw=0.8)


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description="Draw the initial class loss over the prior.")
    parser.add_argument("--output", type=Path, default=Path("sampling_free_initial_loss.png"))
    parser.add_argument("--samples-per-foreground", type=float, default=1000.0)
    parser.add_argument("--num-classes", type=int, default=80)
    args = parser.parse_args(argv)
    print(draw_initial_loss(args.output, args.samples_per_foreground, args.num_classes))


if __name__ == "__main__":
    main()
