#!/usr/bin/env python
"""Put the studies of docs/leaderboard together: what each method adds, and how sure that is.

Usage: python tools/leaderboard.py [FOLDER]

Reads FOLDER/board_*.yaml with the results beside them; writes FOLDER/leaderboard.json,
FOLDER/leaderboard.png and the tables of FOLDER.md and README.md, between their markers. Runs
nothing; a row is run, or repeated, with tools/study.py.
"""

import argparse
import json
import math
from pathlib import Path
from typing import Any, Collection, Dict, Iterable, List, Optional, Tuple

import numpy as np
from studies import Results, Study, compare, fill_tables, load_study, marked_tables
from studies.comparison import holm, interval_with_images, seeds_needed
from studies.plot import mean_curves
from studies.table import is_number, values_of

from d2ext._files import atomic_write

ROOT = Path(__file__).resolve().parent.parent
SAME = "the same figures"
#: The effect that a row should be able to show, in AP, and how often.
EFFECT, POWER = 1.0, 0.8


def rows_of(study: Study, results: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """A row for each run but the baseline, with as much as its seeds can say."""
    figure = study.figures[0]
    by_run: Dict[str, Dict[int, Dict[str, Any]]] = {}
    for record in results:
        by_run.setdefault(record["name"], {})[record["seed"]] = record
    base = by_run.get(study.baseline, {})
    values = values_of(results, figure)
    table = compare(values, study.baseline)
    best = compare(_best_of(results, figure), study.baseline)
    correlations = compare(values_of(results, "consistency/pearson_hit"), None)
    rows = []
    for name in dict.fromkeys(run.name for run in study.runs):
        found, mine = table.get(name, {}), by_run.get(name, {})
        row = {"study": study.name, "title": study.title, "run": name, "figure": figure}
        row["planned"] = sum(run.name == name for run in study.runs)
        row["seeds"] = sorted(values.get(name, {}))
        row.update({key: found[key] for key in ("mean", "difference") if key in found})
        if "difference" in best.get(name, {}):
            row["best"] = best[name]["difference"]
        if not math.isnan(found.get("deviation", math.nan)):
            row.update(spread=found["deviation"], interval=found["interval"], p=found["p"])
            row["needed"] = seeds_needed(row["spread"], EFFECT, POWER)
            row.update(_with_images(mine, base))
        both = sorted(mine.keys() & base.keys())
        row["trained"] = (figure, *((mine[s]["config"], base[s]["config"]) for s in both))
        row["correlation"] = correlations.get(name, {}).get("mean")
        row["steps"] = _steps_to(base.values(), mine.values(), figure)
        rows.append(row)
    return rows


def _with_images(mine: Dict[int, Dict], base: Dict[int, Dict]) -> Dict[str, List[float]]:
    """The interval over seeds and test images, if all of the seeds have kept their draws."""
    pairs = [(mine[seed], base[seed]) for seed in sorted(mine.keys() & base.keys())]
    if not all("bootstrap" in record for pair in pairs for record in pair):
        return {}
    draws = np.array([np.subtract(a["bootstrap"], b["bootstrap"]) for a, b in pairs])
    return {"with_images": [round(float(end), 2) for end in interval_with_images(draws)]}


def _steps_to(base: Iterable[Dict], mine: Iterable[Dict], figure: str) -> Optional[int]:
    """Steps after which a run's mean curve reaches the baseline's last AP; None: it does not.

    By the validation split where there is one, and along straight lines between evaluations.
    """
    figure = _chosen_by(figure)
    goal = mean_curves([{**r, "name": "x"} for r in base], figure).get("x")
    curve = mean_curves([{**r, "name": "x"} for r in mine], figure).get("x")
    if not goal or not curve:
        return None
    before = (0, 0.0)
    for step, value in curve:
        if value >= goal[-1][1]:
            share = (goal[-1][1] - before[1]) / (value - before[1])
            return round(before[0] + share * (step - before[0]))
        before = (step, value)
    return None


def _chosen_by(figure: str) -> str:
    return figure.replace("_test/", "_val/")


def _best_of(results: List[Dict[str, Any]], figure: str) -> Dict[str, Dict[int, float]]:
    """As ``values_of``, from the evaluation that was best on the validation split."""
    chosen_by = _chosen_by(figure)
    values: Dict[str, Dict[int, float]] = {}
    for record in results:
        curves = record.get("curves", {})
        if chosen_by != figure and chosen_by in curves:
            best = max(curves[chosen_by], key=lambda point: point[1] or 0.0)[0]
            value = dict(curves[figure]).get(best)
            if is_number(value):
                values.setdefault(record["name"], {})[record["seed"]] = value
    return values


def adjust(rows: List[Dict[str, Any]]) -> None:
    """Holm's correction over all rows that have a p, in place, as ``holm``.

    A comparison that several studies show was trained once, and is one test.
    """
    tests = {row["trained"]: row["p"] for row in rows if "p" in row}
    corrected = dict(zip(tests, holm(list(tests.values()))))
    for row in rows:
        if "p" in row:
            row["holm"] = corrected[row["trained"]]


def verdict(row: Dict[str, Any]) -> str:
    """What a row shows; intervals of several rows at once are not enough for a yes."""
    if "holm" not in row:
        return "not run" if not row["seeds"] else "too few seeds"
    if row["difference"] == row["interval"] == 0:
        return SAME
    if row["holm"] < 0.05:
        return "helps" if row["difference"] > 0 else "costs"
    if abs(row["difference"]) + row["interval"] < EFFECT:
        return f"less than {EFFECT:g} AP either way"
    return "undecided"


def table_of(rows: List[Dict[str, Any]], baseline: Dict[str, Any]) -> str:
    """A study's rows as Markdown, the largest difference first."""
    lines = [
        "| run | seeds | AP | difference (95 %, seeds) | 95 %, seeds and images | best checkpoint "
        "| p (Holm) | seeds for 1 AP | steps to the baseline's AP | score and IoU | verdict |",
        "|---" * 11 + "|",
    ]
    order = sorted(rows, key=lambda row: -row.get("difference", -math.inf))
    for row in [baseline, *order]:
        cells = [row["run"], str(len(row["seeds"])), _number(row.get("mean"), "{:.1f}")]
        difference = _number(row.get("difference"), "{:+.1f}")
        if "interval" in row:
            difference += f" ± {row['interval']:.1f}"
        cells.append(difference)
        ends = row.get("with_images")
        cells.append(f"{ends[0]:+.1f} to {ends[1]:+.1f}" if ends else "")
        cells.append(_number(row.get("best"), "{:+.1f}"))
        chance = (
            "below 0.001" if row.get("holm", 1.0) < 0.0005 else _number(row.get("holm"), "{:.3f}")
        )
        cells += [chance, _number(row.get("needed"), "{}")]
        cells += [_number(row.get("steps"), "{}"), _number(row.get("correlation"), "{:.2f}")]
        cells.append("baseline" if row is baseline else verdict(row))
        lines.append(f"| {' | '.join(cells)} |".replace("|  |", "| |").replace("|  |", "| |"))
    return "\n".join(lines) + "\n"


def _number(value: Optional[float], form: str) -> str:
    return "" if value is None else form.format(value)


def summary_of(rows: List[Dict[str, Any]]) -> str:
    """Methods by sets: the difference and its interval, and whether it is certain."""
    titles = list(dict.fromkeys(row["title"] for row in rows if "difference" in row))
    names = list(dict.fromkeys(row["run"] for row in rows if "difference" in row))
    lines = ["| method | " + " | ".join(titles) + " |", "|---" * (len(titles) + 1) + "|"]
    for name in names:
        cells = [""] * len(titles)
        for row in rows:
            if row["run"] == name and "difference" in row:
                cell = f"{row['difference']:+.1f}"
                cell += f" ± {row['interval']:.1f}" if "interval" in row else ""
                if verdict(row) == SAME:
                    cell = SAME
                sure = verdict(row) in ("helps", "costs")
                cells[titles.index(row["title"])] = f"**{cell}**" if sure else cell
        lines.append(f"| {name} |" + "".join(f" {cell} |" if cell else " |" for cell in cells))
    return "\n".join(lines) + "\n"


def left_of(rows: List[Dict[str, Any]], seconds: Collection[float]) -> str:
    """What the studies plan and nobody has run, and the hours of the runs so far."""
    lines = []
    for row in rows:
        missing = row["planned"] - len(row["seeds"])
        if missing:
            lines.append(f"* {row['title']}, {row['run']}: {missing} of {row['planned']} seeds")
    head = f"{len(seconds)} runs, {sum(seconds) / 3600:.1f} hours of one CPU core at most.\n"
    return head + ("\nPlanned and not run:\n\n" + "\n".join(lines) + "\n" if lines else "")


def draw(rows: List[Dict[str, Any]], file: Path) -> None:
    """Each difference with its interval over seeds, and a thin one over seeds and images."""
    from matplotlib.figure import Figure

    from d2ext.analysis.figures import BLUE, GREY, ORANGE

    shown = [row for row in rows if "interval" in row][::-1]
    picture = Figure(figsize=(7, 0.32 * len(shown) + 1.2), layout="constrained")
    axis = picture.subplots()
    axis.axvline(0.0, color=GREY, linestyle="--", linewidth=0.8)
    for k, row in enumerate(shown):
        colour = ORANGE if verdict(row) in ("helps", "costs") else BLUE
        axis.plot(row.get("with_images", []), [k] * len(row.get("with_images", [])), color=colour,
                  linewidth=0.8)  # fmt: skip
        axis.errorbar(row["difference"], k, xerr=row["interval"], fmt="o", color=colour,
                      linewidth=2.5, markersize=4)  # fmt: skip
    axis.set_yticks(range(len(shown)), [f"{row['title']}: {row['run']}" for row in shown])
    axis.set_ylim(-0.5, len(shown) - 0.5)
    picture.supxlabel(  # below the labels, too, beside which the axis may be narrow
        "AP beyond the baseline\n"
        "Thick: 95 % over seeds; thin: over seeds and test images. Orange: certain (Holm).",
        fontsize=8,
    )
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    picture.savefig(file, dpi=130, metadata={"Software": None})


def collect(folder: Path) -> Tuple[List[Dict[str, Any]], Dict[str, str]]:
    """The rows of all studies of a folder, and the tables of its page by name."""
    rows, studies, seconds = [], [], {}
    for file in sorted(folder.glob("board_*.yaml")):
        study = load_study(file, ROOT)
        studies.append(study)
        results = Results(study, file.with_suffix(".jsonl")).finished()
        rows += rows_of(study, results)
        # A run that several studies share was trained once.
        seconds.update({(r["config"], r["seed"]): r["seconds"] for r in results})
    adjust(rows)
    for row in rows:
        del row["trained"]
        row["verdict"] = verdict(row) if "difference" in row else ""
        # Digits that another version of SciPy would not agree on are not figures.
        row.update({k: float(f"{v:.6g}") for k, v in row.items() if isinstance(v, float)})
    tables = {"summary": summary_of(rows), "left": left_of(rows, seconds.values())}
    for study in studies:
        own = [row for row in rows if row["study"] == study.name]
        baseline = next(row for row in own if row["run"] == study.baseline)
        tables[study.name] = table_of([row for row in own if row is not baseline], baseline)
    return rows, tables


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = ROOT / "docs" / "leaderboard"
    parser.add_argument("folder", type=Path, nargs="?", default=default, metavar="FOLDER")
    folder = parser.parse_args().folder
    rows, tables = collect(folder)
    with atomic_write(str(folder / "leaderboard.json")) as stream:
        stream.write((json.dumps(rows, indent=1) + "\n").encode())
    draw(rows, folder / "leaderboard.png")
    page = folder.with_suffix(".md")
    unmarked = sorted(set(tables) - set(marked_tables(page.read_text())))
    if unmarked:
        raise SystemExit(f"{page} has no place for {', '.join(unmarked)}; add its markers.")
    page.write_text(fill_tables(page.read_text(), tables))
    readme = ROOT / "README.md"
    if folder == default:
        readme.write_text(fill_tables(readme.read_text(), {"leaderboard": tables["summary"]}))
    print(tables["summary"])


if __name__ == "__main__":
    main()
