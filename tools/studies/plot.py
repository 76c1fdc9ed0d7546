"""A study as a picture: every seed, means, confidence intervals and learning curves."""

import math
import statistics
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

from d2ext.analysis.figures import BLUE, GREEN, GREY, ORANGE, PINK, SKY, VERMILION, plain

from .comparison import compare
from .table import headings, is_number, values_of

__all__ = ["draw_study"]

_COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PINK, SKY, GREY)
# More curves than colours begin again with another line.
_LINES = ("-", "--", ":", "-.")


def draw_study(
    results: List[Dict[str, Any]],
    figures: Sequence[str],
    baseline: Optional[str],
    file: Path,
    *,
    title: str = "",
) -> None:
    """Draw a panel for each figure and, where there are several evaluations, its learning curves.

    In a panel a dot is a seed and a line is a mean with its 95 % confidence interval. The dashed
    line is the baseline's mean. Curves are means over seeds.

    Args:
        results: records of finished runs.
        figures: names of figures, such as ``"bbox/AP"``.
        baseline: the run that others are compared with.
        file: where the picture goes; its ending says which format.
        title: above the picture.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(record["name"] for record in results))
    curves = mean_curves(results, figures[0])
    panels = len(figures) + bool(curves)
    picture = Figure(figsize=(3.2 * panels + 1.2, 0.32 * len(names) + 1.7), layout="constrained")
    axes = picture.subplots(1, panels, squeeze=False)[0]
    heads = headings(figures)
    for axis, figure, head in zip(axes, figures, heads):
        _draw_means(axis, results, names, figure, baseline)
        axis.set_xlabel(head, fontsize=8)
        axis.set_yticks(range(len(names)), names if axis is axes[0] else [""] * len(names))
    if curves:
        _draw_curves(axes[-1], curves)
        axes[-1].set_xlabel(f"iteration ({heads[0]})", fontsize=8)
    for axis in axes:
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    legend = (
        "Dots: seeds.  Bar: mean, with its 95 % confidence interval.  Dashed: the baseline's mean."
    )
    heading = f"{plain(title, 120)}\n{legend}" if title else legend
    picture.suptitle(heading, fontsize=8, ha="left", x=0.01)
    # No date inside, so that the same results give the same file.
    metadata = {"Software": None} if Path(file).suffix == ".png" else None
    picture.savefig(file, dpi=130, metadata=metadata)


def _draw_means(
    axis: Any,
    results: List[Dict[str, Any]],
    names: Sequence[str],
    figure: str,
    baseline: Optional[str],
) -> None:
    values = values_of(results, figure)
    table = compare(values, baseline)
    if baseline in table:
        axis.axvline(table[baseline]["mean"], color=GREY, linestyle="--", linewidth=0.8)
    for row, name in enumerate(names):
        if name not in table:
            continue
        colour = _COLOURS[-1] if name == baseline else _COLOURS[0]
        seeds = list(values[name].values())
        axis.plot(seeds, [row] * len(seeds), "o", color=colour, alpha=0.55, markersize=4)
        mean, spread = table[name]["mean"], table[name]["spread"]
        if not math.isnan(spread):
            axis.plot([mean - spread, mean + spread], [row, row], color=colour, linewidth=1.2)
        axis.plot([mean], [row], "|", color=colour, markersize=12, markeredgewidth=2)
    # The first run on top; the room of the intervals is the dots', not that of three wide ones.
    axis.set_ylim(len(names) - 0.5, -0.5)
    axis.set_xlim(*_limits([v for by_seed in values.values() for v in by_seed.values()]))


def _draw_curves(axis: Any, curves: Dict[str, List[Tuple[float, float]]]) -> None:
    """Each of them with a colour and a kind of line that no other has, up to 28."""
    for k, (name, points) in enumerate(curves.items()):
        line = _LINES[k // len(_COLOURS) % len(_LINES)]
        axis.plot(*zip(*points), color=_COLOURS[k % len(_COLOURS)], linestyle=line, label=name)
    axis.legend(fontsize=6, handlelength=3)


def _limits(values: Sequence[float]) -> Tuple[float, float]:
    """The range of the seeds and a third more: with three seeds an interval may be ten of it."""
    low, high = min(values, default=0.0), max(values, default=0.0)
    room = max(high - low, 1.0) / 3
    return low - room, high + room


def mean_curves(results: List[Dict[str, Any]], figure: str) -> Dict[str, List[Tuple[float, float]]]:
    """Mean over seeds of a figure at each iteration that all seeds of a run were evaluated at."""
    by_name: Dict[str, List[Dict[float, float]]] = {}
    for record in results:
        points = record.get("curves", {}).get(figure)
        if points:
            numbers = {iteration: value for iteration, value in points if is_number(value)}
            by_name.setdefault(record["name"], []).append(numbers)
    curves = {}
    for name, seeds in by_name.items():
        shared = sorted(set.intersection(*(set(seed) for seed in seeds)))
        if shared:
            curves[name] = [(i, statistics.fmean(seed[i] for seed in seeds)) for i in shared]
    return curves
