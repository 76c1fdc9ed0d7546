"""What is shown of a study: its figures, and their Markdown table."""

import math
from typing import Any, Dict, List, Optional, Sequence, Set

from d2ext.report.run import evaluated_figure, is_evaluated

from .comparison import compare

__all__ = ["default_figures", "headings", "is_number", "markdown_table", "values_of"]

# What is shown of a task, the first one that runs have.
_USUAL = {
    "bbox": ("AP", "AP50", "AP75"),
    "segm": ("AP", "AP50", "AP75"),
    "keypoints": ("AP", "AP50", "AP75"),
    "sem_seg": ("mIoU", "fwIoU", "mACC"),
    "panoptic_seg": ("PQ", "SQ", "RQ"),
}


def is_number(value: Any) -> bool:
    """Whether a figure counts. Evaluators give NaN where nothing decides one; files have null."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def values_of(results: List[Dict[str, Any]], figure: str) -> Dict[str, Dict[int, float]]:
    """A figure of each run by seed, without the runs that lack it or have no number there."""
    values: Dict[str, Dict[int, float]] = {}
    for record in results:
        value = record["figures"].get(figure)
        if is_number(value):
            values.setdefault(record["name"], {})[record["seed"]] = value
    return values


def default_figures(results: List[Dict[str, Any]]) -> List[str]:
    """AP, AP50 and AP75 and, on LVIS, AP by frequency, of boxes and of each data set.

    Those that every run has; where there are none, those that some runs have. Other tasks, and
    then any figures, are shown where boxes were not evaluated.
    """
    names = list(dict.fromkeys(name for record in results for name in record["figures"]))
    numbers = [n for n in names if any(is_number(r["figures"].get(n)) for r in results)]
    common = [n for n in numbers if all(n in record["figures"] for record in results)]
    for known in (common, numbers, names):
        for task, wanted in _USUAL.items():
            chosen = _usual_figures(known, task, wanted)
            if chosen:
                return chosen
    summaries = list(filter(is_evaluated, names))
    return (summaries or names)[:3]


def _usual_figures(known: Sequence[str], task: str, wanted: Sequence[str]) -> List[str]:
    places = dict.fromkeys((evaluated_figure(name) or ("",))[0] for name in known)
    chosen = []
    for place in places:
        words = place.split("/")
        if words[-1] != task or words[0] == "ema":
            continue
        by_frequency = f"{place}/APr" in known
        shown = [*(wanted[:1] if by_frequency else wanted), "APr", "APc", "APf"]
        chosen += [f"{place}/{word}" for word in shown if f"{place}/{word}" in known]
    return chosen


def headings(figures: Sequence[str]) -> List[str]:
    """Figures without their first word, which is their task, where that tells them apart."""
    short = [figure.split("/", 1)[-1] for figure in figures]
    return [
        name if sum(f"/{other}".endswith(f"/{name}") for other in figures) == 1 else figure
        for figure, name in zip(figures, short)
    ]


def markdown_table(
    results: List[Dict[str, Any]], figures: Sequence[str], baseline: Optional[str]
) -> str:
    """All runs and figures as a Markdown table, in the order of ``results``.

    What is not in the numbers, and why there are no differences, is said below it.
    """
    known = sorted({key for record in results for key in record["figures"]})
    unknown = [figure for figure in figures if figure not in known]
    if unknown:
        raise ValueError(
            f"No run has the figure '{unknown[0]}'; choose from {', '.join(known) or 'none'}."
        )
    names = list(dict.fromkeys(record["name"] for record in results))
    tables = {figure: compare(values_of(results, figure), baseline) for figure in figures}
    paired = any("difference" in row for table in tables.values() for row in table.values())
    heads = []
    for head in headings(figures):
        heads += [head, "difference (95 %)"] if paired else [head]
    lines = [
        "| run | seeds | " + " | ".join(heads) + " |",
        "|---" * (len(heads) + 2) + "|",
    ]
    for name in names:
        cells = []
        for figure in figures:
            # An AP is a percentage; what else is measured may be a correlation or a ratio.
            digits = 1 if evaluated_figure(figure) else 2
            cells += _cells(tables[figure].get(name), digits)[: 2 if paired else 1]
        seeds = sum(record["name"] == name for record in results)
        lines.append(f"| {name} | {seeds} | {' | '.join(cells)} |".replace("|  |", "| |"))
    notes = _notes(results, figures, baseline)
    return "\n".join(lines) + "\n" + "".join(f"\n{note}\n" for note in notes)


def _notes(
    results: List[Dict[str, Any]], figures: Sequence[str], baseline: Optional[str]
) -> List[str]:
    notes = []
    if baseline is not None and all(record["name"] != baseline for record in results):
        notes.append(f"There are no differences: the baseline {baseline} has no results.")
    lacking = []
    for figure, head in zip(figures, headings(figures)):
        for name, seeds in _without_number(results, figure).items():
            word = "seed" if len(seeds) == 1 else "seeds"
            lacking.append(f"{head} of {name} ({word} {', '.join(map(str, sorted(seeds)))})")
    if lacking:
        notes.append(
            f"Left out, because there is no number (nothing was detected, or there was nothing to "
            f"detect, or it could not be measured): {'; '.join(lacking)}."
        )
    return notes


def _without_number(results: List[Dict[str, Any]], figure: str) -> Dict[str, Set[int]]:
    """Seeds that lack a figure, of the runs that have it with some seed, if only as a null."""
    having = {record["name"] for record in results if figure in record["figures"]}
    lacking: Dict[str, Set[int]] = {}
    for record in results:
        if record["name"] in having and not is_number(record["figures"].get(figure)):
            lacking.setdefault(record["name"], set()).add(record["seed"])
    return lacking


def _cells(row: Optional[Dict[str, float]], digits: int) -> List[str]:
    if row is None:
        return ["", ""]
    value = f"{row['mean']:.{digits}f}{_plus_minus(row['std'], digits)}"
    if "difference" not in row:
        return [value, ""]
    return [value, f"{row['difference']:+.{digits}f}{_plus_minus(row['interval'], digits)}"]


def _plus_minus(width: float, digits: int) -> str:
    """Nothing where a single value has no spread."""
    return "" if math.isnan(width) else f" ± {width:.{digits}f}"
