"""Figures as text: a line a case for the terminal, Markdown tables for the page."""

from typing import Any, Dict, List

from studies import fill_tables, marked_tables

__all__ = ["describe", "fill"]


def describe(result: Dict[str, Any]) -> str:
    """One case for the terminal."""
    lines = [f"{result['case']} ({result['note']}, {result['rounds']} rounds)"]
    for name, value in result["versions"].items():
        phases = result["phases"].get(name, {})
        parts = ", ".join(f"{phase} {_quantity(v, 's')}" for phase, v in phases.items())
        lines.append(f"  {name:16} {_quantity(value, result['unit'])}  {parts}")
    for ratio in result["ratios"]:
        low, high = ratio["quartiles"]
        goal = f", goal {ratio['goal']:g}" if ratio["goal"] else ""
        versions = f"{ratio['version']} / {ratio['peer']}"
        lines.append(f"  {versions}: {ratio['ratio']:.3f} ({low:.3f} to {high:.3f}){goal}")
    return "\n".join(lines)


def fill(text: str, figures: Dict[str, Any]) -> str:
    """Write the tables into a page.

    A table stands between ``<!-- begin NAME -->`` and ``<!-- end NAME -->``; NAME is a component.
    """

    tables = dict.fromkeys(marked_tables(text), "Not measured yet.\n")
    tables.update({name: _section(part) for name, part in figures.items()})
    return fill_tables(text, tables)


def _section(figures: Dict[str, Any]) -> str:
    machine = figures["machine"]
    where = machine["device"] if machine["device"] != "CPU" else machine["processor"]
    lines = [
        f"Measured {machine['date']} on {where}, {_counted(machine['threads'], 'thread')}, "
        f"torch {machine['torch']}, Python {machine['python']}.",
        "",
        "| case | version | median | ratio | quartiles | goal |",
        "|---|---|---|---|---|---|",
    ]
    for result in figures["cases"]:
        lines += _rows(result)
    phases = [result for result in figures["cases"] if result["phases"]]
    for result in phases:
        lines += ["", f"Phases of {result['case']}:", "", *_phase_table(result)]
    return "\n".join(lines) + "\n"


def _rows(result: Dict[str, Any]) -> List[str]:
    rows = []
    notes = [result["note"], "by the clock on the wall" if result["wall"] else ""]
    note = "; ".join(word for word in notes if word)
    case = f"{result['case']} ({note})" if note else result["case"]
    for name, value in result["versions"].items():
        cells = [case, name, _quantity(value, result["unit"])]
        ratios = [ratio for ratio in result["ratios"] if ratio["version"] == name]
        for k, ratio in enumerate(ratios or [None]):
            if k:
                cells = ["", "", ""]
            if ratio is None:
                rows.append("| " + " | ".join([*cells, "", "", ""]) + " |")
                continue
            low, high = ratio["quartiles"]
            goal = "" if ratio["goal"] is None else f"{ratio['goal']:g}"
            if ratio["goal"] is not None and ratio["ratio"] > ratio["goal"]:
                goal += " (missed)"
            spread = f"{low:.3f} to {high:.3f}" if result["rounds"] > 1 else ""
            ratio_text = f"{ratio['ratio']:.3f} of {ratio['peer']}"
            rows.append("| " + " | ".join([*cells, ratio_text, spread, goal]) + " |")
        case = ""
    return rows


def _phase_table(result: Dict[str, Any]) -> List[str]:
    names = list(dict.fromkeys(p for parts in result["phases"].values() for p in parts))
    lines = ["| version | " + " | ".join(names) + " |", "|---" * (len(names) + 1) + "|"]
    for version, parts in result["phases"].items():
        cells = [_quantity(parts[p], "s") if p in parts else "" for p in names]
        lines.append(f"| {version} | " + " | ".join(cells) + " |")
    return lines


def _quantity(value: float, unit: str) -> str:
    if unit != "s":
        return f"{value:.4g} {unit}"
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
