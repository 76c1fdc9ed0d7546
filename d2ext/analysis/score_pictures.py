"""Pictures of an analysis that go by score: precision, recall, F1 and the confusion matrix.

Shapes: C classes, S scores.
"""

from pathlib import Path
from typing import Any, Dict

import numpy as np

from .figures import BLUE, GREEN, GREY, VERMILION, color_of, new_figure, plain, save_figure, title

__all__ = ["draw_scores", "score_figure"]

# Lines of single classes, and rows of a matrix, that can be told apart.
_MOST_LINES, _MOST_ROWS = 7, 30


def draw_scores(report: Dict[str, Any], heading: str, path: Path) -> Path:
    """Draw a report of :func:`~d2ext.analysis.results_report.analyze_results` as one PNG."""
    return save_figure(score_figure(report, heading), path)


def score_figure(report: Dict[str, Any], heading: str) -> Any:
    """Matplotlib's figure of four panels."""
    figure, grid = new_figure((12.6, 8.2), 2, 2)
    _draw_precision_recall(grid[0, 0], report)
    _draw_f1(grid[0, 1], report)
    _draw_precision_and_recall(grid[1, 0], report)
    _draw_confusion(grid[1, 1], report)
    figure.suptitle(plain(heading, 100), fontsize=11)
    return figure


def _draw_precision_recall(axes: Any, report: Dict[str, Any]) -> None:
    recall = np.linspace(0, 1, 101)
    rows = [row if row[0] >= 0 else None for row in report["pr"]]
    known = [row for row in rows if row is not None]
    for k, (name, row) in enumerate(zip(report["class_names"], rows)):
        if row is not None:
            label = plain(name, 24) if len(known) <= _MOST_LINES else None
            color = color_of(k) if label else GREY
            axes.plot(recall, row, color=color, lw=1 if label else 0.5, label=label)
    if known:
        axes.plot(recall, np.mean(known, axis=0), color="black", lw=2, label="mean")
    _finish(axes, "Precision by recall, IoU 0.5", "recall", "precision")


def _draw_f1(axes: Any, report: Dict[str, Any]) -> None:
    curves, names = report["curves"], report["class_names"]
    for k, row in enumerate(curves["f1"][:-1]):
        if np.isfinite(row).any():
            label = plain(names[k], 24) if len(names) <= _MOST_LINES else None
            color = color_of(k) if label else GREY
            axes.plot(curves["scores"], row, color=color, lw=1 if label else 0.5, label=label)
    axes.plot(curves["scores"], curves["f1"][-1], color="black", lw=2, label="all classes")
    axes.axvline(report["thresholds"]["overall"], color=GREY, lw=0.8, ls=":")
    _finish(axes, "F1 by score (dotted: where it is highest)", "score", "F1")


def _draw_precision_and_recall(axes: Any, report: Dict[str, Any]) -> None:
    curves = report["curves"]
    for key, color in (("precision", BLUE), ("recall", VERMILION), ("f1", GREEN)):
        label = "F1" if key == "f1" else key
        axes.plot(curves["scores"], curves[key][-1], color=color, label=label)
    _finish(axes, "All classes by score", "score", "share")


def _draw_confusion(axes: Any, report: Dict[str, Any]) -> None:
    """The matrix at IoU 0.5 and the best score, rows normalised."""
    names, found = report["class_names"], report["confusion"][0]
    count = len(names)
    matrix = np.zeros((count + 1, count + 1))
    for true, predicted, number in found["cells"]:
        matrix[true, predicted] = number
    title(axes, f"Taken for what, in %, from score {found['score']:.2f} on")
    if count > _MOST_ROWS:
        wrong = matrix.sum(0) + matrix.sum(1) - 2 * matrix.diagonal()
        shown = np.sort(np.argsort(-wrong[:-1], kind="stable")[:_MOST_ROWS])
        title(axes, f"The {_MOST_ROWS} classes with most confusion, in %")
    else:
        shown = np.arange(count)
    shown = np.append(shown, count)
    share = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    part = share[np.ix_(shown, shown)]
    axes.imshow(part, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    if len(shown) <= 12:
        for (row, column), value in np.ndenumerate(part):
            if value >= 0.5:
                color = "white" if value > 60 else "black"
                axes.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8,
                          color=color)  # fmt: skip
    labels = [plain(names[k], 20) if k < count else "" for k in shown]
    labels[-1] = "not found"
    axes.set_xticks(range(len(shown)), labels, rotation=90, fontsize=7)
    labels[-1] = "nothing"
    axes.set_yticks(range(len(shown)), labels, fontsize=7)


def _finish(axes: Any, heading: str, x: str, y: str) -> None:
    title(axes, heading, x, y)
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1.02)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
