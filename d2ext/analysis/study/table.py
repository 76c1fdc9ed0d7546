"""Means, spreads and paired differences of a study, as numbers and as a Markdown table."""

import math
import statistics
from typing import Any, Dict, List, Optional, Sequence

__all__ = ["compare", "default_figures", "half_width", "markdown_table", "values_of"]

# Two-sided 95 % points of Student's t by degrees of freedom; beyond the table the normal one.
_T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)


def values_of(results: List[Dict[str, Any]], figure: str) -> Dict[str, Dict[int, float]]:
    """A figure of each run by seed, without the runs that lack it."""
    values: Dict[str, Dict[int, float]] = {}
    for record in results:
        if figure in record["figures"]:
            values.setdefault(record["name"], {})[record["seed"]] = record["figures"][figure]
    return values


def default_figures(results: List[Dict[str, Any]]) -> List[str]:
    """AP, AP50 and AP75 and, on LVIS, AP by frequency: those that every run has."""
    wanted = ("AP", "AP50", "AP75") if not _everywhere(results, "bbox/APr") else ("AP",)
    wanted += ("APr", "APc", "APf")
    return [f"bbox/{word}" for word in wanted if _everywhere(results, f"bbox/{word}")]


def _everywhere(results: List[Dict[str, Any]], figure: str) -> bool:
    return bool(results) and all(figure in record["figures"] for record in results)


def compare(
    results: List[Dict[str, Any]], figure: str, baseline: Optional[str]
) -> Dict[str, Dict[str, float]]:
    """Mean and standard deviation of a figure, and its difference to the baseline seed by seed.

    Returns:
        For each run: ``mean``, ``std``, ``seeds``, the half-width ``spread`` of the mean's 95 %
        confidence interval and, unless it is the baseline, ``difference`` with the half-width
        ``interval`` of its 95 % confidence interval (Student's t over seeds).
    """
    values = values_of(results, figure)
    table = {}
    for name, by_seed in values.items():
        row = {"seeds": len(by_seed), "mean": statistics.fmean(by_seed.values())}
        row["std"] = statistics.stdev(by_seed.values()) if len(by_seed) > 1 else math.nan
        row["spread"] = half_width(list(by_seed.values()))
        shared = sorted(by_seed.keys() & values.get(baseline, {}).keys())
        if name != baseline and shared:
            differences = [by_seed[s] - values[baseline][s] for s in shared]
            row["difference"] = statistics.fmean(differences)
            row["interval"] = half_width(differences)
        table[name] = row
    return table


def half_width(values: Sequence[float]) -> float:
    """Half the width of the 95 % confidence interval of a mean; nan for a single value."""
    if len(values) < 2:
        return math.nan
    t = _T95[len(values) - 2] if len(values) - 2 < len(_T95) else 1.96
    return t * statistics.stdev(values) / math.sqrt(len(values))


def markdown_table(
    results: List[Dict[str, Any]], figures: Sequence[str], baseline: Optional[str]
) -> str:
    """All runs and figures as a Markdown table, in the order of ``results``."""
    names = list(dict.fromkeys(record["name"] for record in results))
    tables = {figure: compare(results, figure, baseline) for figure in figures}
    for figure in figures:
        if not tables[figure]:
            known = sorted({key for record in results for key in record["figures"]})
            raise ValueError(
                f"No run has the figure '{figure}'; choose from {', '.join(known) or 'none'}."
            )
    heads = []
    for figure in figures:
        heads += [figure.split("/", 1)[-1], "difference (95 %)"]
    lines = [
        "| run | seeds | " + " | ".join(heads) + " |",
        "|---" * (len(heads) + 2) + "|",
    ]
    for name in names:
        cells = []
        for figure in figures:
            # An AP is a percentage; what else is measured may be a correlation or a ratio.
            digits = 1 if figure.startswith(("bbox/", "segm/", "ema/")) else 2
            cells += _cells(tables[figure].get(name), digits)
        seeds = sum(record["name"] == name for record in results)
        lines.append(f"| {name} | {seeds} | {' | '.join(cells)} |".replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


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
