"""What adaptive loss weights do over a training: simulated losses, and a plot of the weights.

    python tools/figures/alwa_dynamics.py --output docs/images/alwa_dynamics.png

The losses are random numbers with the courses that real ones have; no detector is trained. Shapes:
T iterations.
"""

import argparse
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from d2ext.analysis.figures import BLACK, ORANGE, SKY, VERMILION, new_figure, save_figure
from d2ext.ops.loss_weights import AdaptiveLossWeight

__all__ = ["SCENARIOS", "draw_dynamics", "simulate_losses", "summarize", "weights_over_time"]

#: Scenario -> what its panel says.
SCENARIOS = {
    "steady": "class loss twice as variable as the box loss",
    "transient": "the same after a collapse in the first 300 iterations",
    "quiet": "class loss half as variable after such a collapse",
    "dead": "box loss constant in iterations 1000 to 1200",
}

_RULES: Dict[str, Dict[str, Any]] = {
    "authors: weighted, replace": {},
    "weighted, minimum 0.1": {"min_weight": 0.1},
    "raw, minimum 0.1": {"stats_on": "raw", "min_weight": 0.1},
    "raw, minimum 0.1, start at 400": {"stats_on": "raw", "min_weight": 0.1, "start_iter": 400},
}

_COLOURS = (VERMILION, ORANGE, SKY, BLACK)


def simulate_losses(
    scenario: str, iterations: int = 3000, seed: int = 0
) -> Tuple[np.ndarray, np.ndarray]:
    """Classification and box losses of a made-up training.

    Args:
        scenario: a key of :data:`SCENARIOS`.
        iterations: T.
        seed: of the random numbers.

    Returns:
        Two (T,) arrays of positive numbers.
    """
    if scenario not in SCENARIOS:
        raise ValueError(f"Scenarios are {', '.join(SCENARIOS)}, not '{scenario}'.")
    rng = np.random.default_rng(seed)
    step = np.arange(iterations)
    # Gamma noise: losses are positive and skewed. Standard deviation = mean * spread.
    noise = [rng.gamma(16, 1 / 16, iterations) for _ in range(2)]
    cls_mean, box_mean = np.full(iterations, 0.4), np.full(iterations, 0.2)
    if scenario in ("transient", "quiet"):
        cls_mean = (0.4 if scenario == "transient" else 0.1) + 1.5 * np.exp(-step / 60)
    cls, box = cls_mean * noise[0], box_mean * noise[1]
    if scenario == "dead":
        box[1000:1200] = 0.2
    return cls, box


def weights_over_time(cls: Sequence[float], box: Sequence[float], **settings: Any) -> np.ndarray:
    """The classification weight used in each iteration: (T,).

    Args:
        cls: (T,) classification losses.
        box: (T,) box losses.
        settings: of :class:`~d2ext.ops.loss_weights.AdaptiveLossWeight`.
    """
    machine = AdaptiveLossWeight(**settings)
    used: List[float] = []
    for c, b in zip(cls, box):
        used.append(machine.weight)
        machine.observe(float(c), float(b))
    return np.array(used)


def summarize(
    variant: int = 2, interval: int = 100, seeds: int = 50, skip: int = 6
) -> Dict[Tuple[str, str], Tuple[float, float, float, float]]:
    """Figures of each scenario and rule, as means over seeds.

    Args:
        variant: of ALWA.
        interval: of ALWA.
        seeds: simulations of each scenario.
        skip: windows at the start that are left out.

    Returns:
        (scenario, rule) -> lowest weight, highest weight, share of windows after which the weight
        differs from the one before, last weight.
    """
    figures = {}
    for scenario in SCENARIOS:
        courses = [simulate_losses(scenario, seed=seed) for seed in range(seeds)]
        for label, rule in _RULES.items():
            rows = []
            for cls, box in courses:
                used = weights_over_time(cls, box, variant=variant, interval=interval, **rule)
                w = used[::interval][skip:]
                rows.append((w.min(), w.max(), np.mean(np.diff(w) != 0), w[-1]))
            figures[scenario, label] = tuple(float(v) for v in np.mean(rows, axis=0))
    return figures


def draw_dynamics(output: Path, variant: int = 2, interval: int = 100, seed: int = 0) -> Path:
    """Draw the weight over the iterations, a panel a scenario and a line a rule.

    Args:
        output: the PNG file.
        variant: of ALWA.
        interval: of ALWA.
        seed: of the simulated losses.
    """
    figure, grid = new_figure((11, 6.5), 2, 2, dpi=110, sharex=True, sharey=True)
    axes = grid.ravel()
    widths = (5.0, 3.2, 2.0, 0.9)  # thinner on top, so that equal lines stay visible
    for axis, (scenario, title) in zip(axes, SCENARIOS.items()):
        cls, box = simulate_losses(scenario, seed=seed)
        for (label, rule), colour, width in zip(_RULES.items(), _COLOURS, widths):
            used = weights_over_time(cls, box, variant=variant, interval=interval, **rule)
            axis.step(np.arange(len(used)), used, where="post", color=colour, lw=width, label=label)
        axis.set_title(title, fontsize=10, loc="left")
        axis.set_ylim(-0.05, 1.08)
        axis.grid(alpha=0.3)
    for axis in axes[::2]:
        axis.set_ylabel("class weight")
    for axis in axes[2:]:
        axis.set_xlabel("iteration")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=9, loc="outside lower center", ncols=len(_RULES))
    figure.suptitle(
        f"ALWA-{variant}, interval {interval}, on simulated losses (no detector is trained)",
        fontsize=11,
    )
    return save_figure(figure, output)


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description="Draw what adaptive loss weights do over time.")
    parser.add_argument("--output", type=Path, default=Path("alwa_dynamics.png"))
    parser.add_argument("--variant", type=int, choices=(1, 2), default=2)
    parser.add_argument("--interval", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--table", action="store_true", help="print figures over 50 seeds as well")
    args = parser.parse_args(argv)
    print(draw_dynamics(args.output, args.variant, args.interval, args.seed))
    if args.table:
        for (scenario, rule), row in summarize(args.variant, args.interval).items():
            low, high, changing, last = row
            print(
                f"{scenario:10} {rule:32} w {low:.2f} to {high:.2f}, changes in {changing:.0%} of "
                f"the windows, last {last:.2f}"
            )


if __name__ == "__main__":
    main()
