"""From precision and recall to the figures Detectron2 reports, and to tables of them.

Shapes: T IoU thresholds, R recall thresholds, C categories, A area ranges.
"""

import itertools
import logging
from typing import Dict, List, Optional

import numpy as np

from d2ext._text import printable
from d2ext.ops.frequency import FREQUENCY_GROUPS

from .backends import PrecisionRecall

__all__ = ["log_metrics", "metric_names", "per_class_metrics", "summary_metrics"]

logger = logging.getLogger(__name__)

_AREAS = {"": 0, "s": 1, "m": 2, "l": 3}
# As LVIS abbreviates them.
_FREQUENCIES = tuple(name[0] for name in FREQUENCY_GROUPS)
# Beyond this many classes the table is longer than anyone reads in a log; the dictionary has all.
_MAX_TABLE_CLASSES = 200


def metric_names(style: str, max_dets: int) -> List[str]:
    """The names, in order, that :func:`summary_metrics` gives figures to."""
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    if style == "lvis":
        names += [f"AP{letter}" for letter in _FREQUENCIES]
    return names + [f"AR{letter}@{max_dets}" for letter in _AREAS]


def summary_metrics(
    result: PrecisionRecall, style: str, max_dets: int, frequencies: List[Optional[str]]
) -> Dict[str, float]:
    """Average precision and recall over categories, in percent; NaN where none has objects.

    Args:
        result: precision (T, R, C, A) and recall (T, C, A).
        style: "coco" or "lvis"; the latter adds rare, common and frequent categories.
        max_dets: names the recall figures.
        frequencies: C of "r", "c", "f" or None.
    """
    precision, recall = result.precision, result.recall
    values = [precision[..., 0], precision[0, ..., 0], precision[5, ..., 0]]
    values += [precision[..., area] for area in (1, 2, 3)]
    if style == "lvis":
        for letter in _FREQUENCIES:
            group = [c for c, frequency in enumerate(frequencies) if frequency == letter]
            values.append(precision[:, :, group, 0])
    values += [recall[..., area] for area in _AREAS.values()]
    return dict(zip(metric_names(style, max_dets), map(_mean_percent, values)))


def per_class_metrics(result: PrecisionRecall, names: Dict[int, str]) -> Dict[str, float]:
    """Average precision of single classes, in percent.

    Args:
        result: precision (T, R, C, A) and recall (T, C, A).
        names: rank of the category -> name of the class, in the order wanted.
    """
    return {name: _mean_percent(result.precision[:, :, c, 0]) for c, name in names.items()}


def _mean_percent(values: np.ndarray) -> float:
    """Mean of the entries that exist (-1 marks the others), in percent."""
    values = values[values > -1]
    return float(np.mean(values) * 100) if values.size else float("nan")


def log_metrics(task: str, summary: Dict[str, float], per_class: Dict[str, float]) -> None:
    """Log the figures as tables: the averages in a row, the classes in three columns."""
    from detectron2.utils.logger import create_small_table

    logger.info(f"Evaluation results for {task}:\n" + create_small_table(summary))
    if not np.isfinite(list(summary.values())).all():
        logger.info("NaN marks metrics that no annotated object decides.")
    if not per_class:
        return
    if len(per_class) > _MAX_TABLE_CLASSES:
        logger.info(
            f"Per-class {task} AP of {len(per_class)} classes is in the returned results as 'AP-*'."
        )
        return
    from tabulate import tabulate

    shown = ((printable(name, 60), value) for name, value in per_class.items())
    cells = list(itertools.chain(*shown))
    num_columns = min(6, len(cells))
    rows = itertools.zip_longest(*[cells[i::num_columns] for i in range(num_columns)])
    table = tabulate(
        rows,
        tablefmt="pipe",
        floatfmt=".3f",
        headers=["category", "AP"] * (num_columns // 2),
        numalign="left",
    )
    logger.info(f"Per-class {task} AP:\n" + table)
