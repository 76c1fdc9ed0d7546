"""One self-contained HTML page about one or several trainings.

Shapes: T rows of ``metrics.json``, C classes.
"""

import base64
import html
import io
import math
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np

from d2ext._files import open_image

from .run_data import Run, differences, evaluated_figure, is_evaluated, is_loss

__all__ = ["make_page", "numbers_of_runs"]

# Okabe and Ito's palette, one colour a run.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")

_BOX_FIGURES = ("AP", "AP50", "AP75", "APr", "APc", "APf")
_FIRST_FIGURES = ("AP", "mIoU", "PQ")
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1120px; margin: 2em auto; padding: 0 1em;
       color: #222; background: #fff; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; border-bottom: 1px solid #ccc; }
table { border-collapse: collapse; font-size: 13px; } td, th { padding: 3px 10px; text-align: right;
       border-bottom: 1px solid #e4e4e4; } th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; } p.note { color: #555; font-size: 13px; } .wide { overflow-x: auto; }
.swatch { display: inline-block; width: .8em; height: .8em; margin-right: .4em; }
"""


def make_page(runs: List[Run], title: str = "Training report") -> str:
    """The page as HTML text, with all pictures inside and nothing fetched from elsewhere.

    Args:
        runs: one or several; they share the axes of every picture.
        title: the heading.
    """
    parts = [_summary(runs), _config(runs)]
    for heading, note, draw in _SECTIONS:
        picture = draw(runs)
        if picture:
            parts.append(_section(heading, note, picture))
    parts += [_pictures(run) for run in runs]
    body = "\n".join(part for part in parts if part)
    name = html.escape(title)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>\n'
        f"<style>{_STYLE}</style></head>\n<body><h1>{name}</h1>\n{body}\n</body></html>\n"
    )


def numbers_of_runs(runs: List[Run]) -> List[Dict[str, Any]]:
    """What the page's table says, as plain values."""
    rows = []
    for run in runs:
        steps = run.series("total_loss")[0]
        images = run.config.get("SOLVER.IMS_PER_BATCH")
        seconds = run.seconds()
        rows.append(
            {
                "run": run.name,
                "steps": int(steps[-1]) + 1 if len(steps) else 0,
                "seconds_per_step": seconds,
                "images_per_second": images / seconds if images and seconds > 0 else None,
                "total_loss": run.last("total_loss"),
                "evaluation": {k: run.last(k) for k in run.evaluated()},
                "class_AP": run.class_ap(),
            }
        )
    return rows


def _section(heading: str, note: str, picture: str) -> str:
    alt = html.escape(heading)
    explained = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return f'<h2>{alt}</h2>{explained}\n<img alt="{alt}" src="{picture}">'


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    cells = "".join(f"<th>{html.escape(str(h))}</th>" for h in head)
    lines = [f"<tr>{cells}</tr>"]
    for row in rows:
        first, *rest = (html.escape(_shown(v)) for v in row)
        lines.append(f"<tr><td>{first}</td>" + "".join(f"<td>{v}</td>" for v in rest) + "</tr>")
    return f'<div class="wide"><table>{"".join(lines)}</table></div>'


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}" if math.isfinite(value) else "–"
    return str(value)


def _for_overview(names: Iterable[str]) -> List[str]:
    """Of boxes the usual figures, of other tasks and of the average the first one alone."""
    chosen = []
    for name in dict.fromkeys(names):
        task, figure = evaluated_figure(name) or ("", "")
        boxes = task.split("/")[-1] == "bbox" and not task.startswith("ema/")
        usual = _BOX_FIGURES if boxes else _FIRST_FIGURES
        if figure in usual:
            chosen.append((task.startswith("ema/"), task, usual.index(figure), name))
    return [name for *_, name in sorted(chosen)]


def _summary(runs: List[Run]) -> str:
    numbers = numbers_of_runs(runs)
    figures = _for_overview(name for row in numbers for name in row["evaluation"])
    head = ["run", "steps", "s a step", "images a s", "last total loss", *figures]
    rows = [
        [r["run"], r["steps"], r["seconds_per_step"], r["images_per_second"], r["total_loss"]]
        + [r["evaluation"].get(k) for k in figures]
        for r in numbers
    ]
    swatches = " ".join(
        f'<span class="swatch" style="background:{_color(i)}"></span>{html.escape(run.name)}'
        for i, run in enumerate(runs)
    )
    return f"<h2>Overview</h2><p>{swatches}</p>{_table(head, rows)}"


def _config(runs: List[Run]) -> str:
    if len(runs) > 1:
        rows = [[key, *values] for key, values in differences(runs).items()]
        if not rows:
            return ""
        heading = "Config keys in which the runs differ"
        table = _table(["key", *(run.name for run in runs)], rows)
        if len(rows) > 40:  # runs of different programs differ in hundreds of keys
            table = f"<details><summary>{len(rows)} keys</summary>{table}</details>"
        return f"<h2>{heading}</h2>{table}"
    keys = ("MODEL.META_ARCHITECTURE", "MODEL.WEIGHTS", "DATASETS.TRAIN", "DATASETS.TEST",
            "SOLVER.OPTIMIZER", "SOLVER.BASE_LR", "SOLVER.IMS_PER_BATCH", "SOLVER.MAX_ITER",
            "SEED")  # fmt: skip
    rows = [[key, runs[0].config[key]] for key in keys if key in runs[0].config]
    return f"<h2>Config</h2>{_table(['key', 'value'], rows)}" if rows else ""


def _pictures(run: Run) -> str:
    images = []
    for path in run.pictures():
        name = html.escape(path.stem)
        images.append(f'<p>{name}</p><img alt="{name}" src="{_small_picture(path)}">')
    if not images:
        return ""
    return f"<h2>Pictures of {html.escape(run.name)}</h2>" + "\n".join(images)


def _small_picture(path: Path, side: int = 1600) -> str:
    """A picture file as an inline JPEG of at most ``side`` pixels in width."""
    with open_image(path) as image:
        small = image.convert("RGB")
        small.thumbnail((side, 8 * side))
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


# ------------------------------------------------------------------ pictures


def _color(index: int) -> str:
    return COLORS[index % len(COLORS)]


def _grid(count: int, height: float = 2.5, width: float = 3.6) -> Tuple[Any, List[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, count)
    lines = -(-count // columns)
    figure = Figure(figsize=(width * columns + 0.4, height * lines), dpi=95, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for spare in axes[count:]:
        spare.set_visible(False)
    return figure, list(axes[:count])


def _inline(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _plain(name: str) -> str:
    """A name as matplotlib is to print it: not as mathematics, and not too long."""
    return name.replace("$", r"\$")[:48]


def _label(axes: Any, title: str, y: str = "") -> None:
    axes.set_title(_plain(title), fontsize=9, loc="left")
    axes.set_xlabel("step", fontsize=8)
    axes.set_ylabel(y, fontsize=8)
    axes.tick_params(labelsize=7)
    axes.grid(alpha=0.3)


def _curves(
    runs: List[Run], names: Sequence[str], units: Optional[Dict[str, str]] = None
) -> Optional[str]:
    """One panel a figure, one line a run; None if nothing was logged."""
    names = [n for n in names if any(len(run.series(n)[0]) for run in runs)]
    if not names:
        return None
    figure, panels = _grid(len(names))
    for axes, name in zip(panels, names):
        for i, run in enumerate(runs):
            steps, values = run.series(name)
            marker = "o" if len(steps) < 3 else None
            axes.plot(steps, values, color=_color(i), lw=1.2, marker=marker, ms=4)
        _label(axes, name, (units or {}).get(name, ""))
    return _inline(figure)


def _all_names(runs: List[Run], keep: Callable[[str], bool]) -> List[str]:
    return [n for n in dict.fromkeys(k for run in runs for k in run.names()) if keep(n)]


def _draw_losses(runs: List[Run]) -> Optional[str]:
    names = _all_names(runs, lambda n: is_loss(n) or n.startswith("val/"))
    if not names:
        return None
    figure, panels = _grid(len(names))
    for axes, name in zip(panels, names):
        for i, run in enumerate(runs):
            steps, values = run.series(name)
            axes.plot(steps, values, color=_color(i), lw=1.2)
            raw = run.raw_loss(name)
            if raw is not None:
                axes.plot(steps, raw, color=_color(i), lw=0.9, ls=":")
        _label(axes, name)
        axes.set_ylim(bottom=0)
    return _inline(figure)


def _draw_by_prefix(*prefixes: str) -> Callable[[List[Run]], Optional[str]]:
    return lambda runs: _curves(runs, _all_names(runs, lambda n: n.startswith(prefixes)))


def _draw_alwa(runs: List[Run]) -> Optional[str]:
    return _curves(
        runs, _all_names(runs, lambda n: n.startswith("alwa/") and n.rpartition("/")[2][:2] == "w_")
    )


def _draw_speed(runs: List[Run]) -> Optional[str]:
    units = {"time": "seconds a step", "data_time": "seconds a step", "lr": "learning rate"}
    return _curves(runs, ("lr", "time", "data_time", "grad_norm"), units)


def _draw_evaluation(runs: List[Run]) -> Optional[str]:
    names = _all_names(runs, is_evaluated)
    if all(len(run.series(n)[0]) < 2 for run in runs for n in names):
        return None  # the table says it all
    return _curves(runs, names[:12])


def _training_sets(run: Run) -> List[str]:
    names = run.config.get("DATASETS.TRAIN") or ()
    return [names] if isinstance(names, str) else list(names)


def _frequencies(run: Run, count: int) -> Optional[List[int]]:
    """Training images of each of ``count`` classes, where the metadata says it."""
    from d2ext.engine.hooks.class_balance import training_image_counts

    return training_image_counts(_training_sets(run), count)


def _frequencies_by_name(run: Run, names: Sequence[str]) -> Optional[List[int]]:
    """The same for classes by name: ``metrics.json`` has them in another order than the ids."""
    from detectron2.data import MetadataCatalog

    sets = _training_sets(run)
    classes = MetadataCatalog.get(sets[0]).get("thing_classes", ()) if sets else ()
    counts = _frequencies(run, len(classes)) if classes else None
    table = dict(zip(classes, counts or ()))
    return [table[n] for n in names] if counts and set(names) <= set(table) else None


def _draw_balance(runs: List[Run]) -> Optional[str]:
    """EFL's g, and the exponent it leads to, by class."""
    found = []
    for i, run in enumerate(runs):
        for key, ratio in run.state().items():
            if key.endswith("pos_neg") and ratio.ndim == 1:
                found.append((i, run, np.clip(ratio, 0, 1)))
    if not found:
        return None
    figure, panels = _grid(2, 3.0, 5.4)
    ranked = "classes by falling g"
    for i, run, ratio in found:
        images = _frequencies(run, len(ratio))
        x = np.array(images, dtype=float) if images else np.arange(len(ratio))
        if images:
            ranked = "training images with the class"
        else:
            ratio = np.sort(ratio)[::-1]
        panels[0].scatter(x, ratio, s=12, color=_color(i))
        losses = {v for k, v in run.config.items() if k.endswith("CLS_LOSS")}
        if losses & {"efl", "eqfl"}:  # EQL v2 keeps g too, and has no exponent
            base = run.config.get("MODEL.EFL.GAMMA_B", 2.0)
            scale = run.config.get("MODEL.EFL.SCALE", 8.0)
            panels[1].scatter(x, base + scale * (1 - ratio), s=12, color=_color(i))
    for axes, title in zip(panels, ("g, positive over negative gradient", "EFL's exponent gamma")):
        _label(axes, title)
        axes.set_xlabel(ranked, fontsize=8)
        if ranked.startswith("training"):
            axes.set_xscale("log")
    return _inline(figure)


def _draw_prior(runs: List[Run]) -> Optional[str]:
    """Sampling-free training's prior and share of foreground, as measured."""
    found = [
        (i, key, float(np.mean(value)))
        for i, run in enumerate(runs)
        for key, value in run.state().items()
        if key.rsplit(".", 1)[-1] in ("prior", "fg_ratio") and np.mean(value) > 0
    ]
    if not found:
        return None
    figure, (axes,) = _grid(1, 0.5 * len(found) + 1.2, 8.0)
    places = np.arange(len(found))
    axes.barh(places, [v for _, _, v in found], color=[_color(i) for i, _, _ in found])
    for place, (_, _, value) in zip(places, found):
        axes.text(value, place, f" {value:.2e}", va="center", fontsize=8)
    axes.set_yticks(places, [_plain(k) for _, k, _ in found], fontsize=7)
    axes.margins(x=0.25)
    _label(axes, "prior of a class and share of foreground")
    axes.set_xlabel("probability", fontsize=8)
    return _inline(figure)


def _draw_classes(runs: List[Run]) -> Optional[str]:
    tables = [run.class_ap() for run in runs]
    names = [n for n in tables[0] if tables[0][n] is not None] if tables else []
    if not names:
        return None
    counts = _frequencies_by_name(runs[0], names)
    figure, panels = _grid(2 if counts else 1, 3.0, 5.4)
    order = sorted(names, key=lambda n: -(tables[0][n] or 0))
    for i, table in enumerate(tables):
        values = [table.get(n) if table.get(n) is not None else math.nan for n in order]
        panels[0].plot(values, "o", ms=4 if len(order) < 80 else 1.5, color=_color(i))
        if counts:
            panels[1].scatter(counts, [table.get(n) for n in names], s=12, color=_color(i))
            panels[1].set_xscale("log")
    _label(panels[0], "AP of each class, best first", "AP")
    panels[0].set_xlabel("class", fontsize=8)
    if len(order) <= 40:
        shown = [_plain(n) for n in order]
        panels[0].set_xticks(range(len(order)), shown, rotation=90, fontsize=6)
    if counts:
        _label(panels[1], "AP against frequency", "AP")
        panels[1].set_xlabel("training images with the class", fontsize=8)
    return _inline(figure)


_SECTIONS = (
    ("Evaluation over time", "In percent, higher is better.", _draw_evaluation),
    ("AP by class", "Of the last evaluation.", _draw_classes),
    (
        "Losses",
        "Solid: as summed for the gradient. Dotted: before the adaptive weight, where there is one "
        "(the logged loss over the weight logged last). val/: on the validation set.",
        _draw_losses,
    ),
    ("Adaptive loss weights", "Factors of the class and of the box loss.", _draw_alwa),
    (
        "Balance of classes",
        "g is 0 for a class that collects negative gradient alone and 1 for a balanced one; a low "
        "g makes the equalized focal loss focus more.",
        _draw_balance,
    ),
    ("Balance of classes over time", "", _draw_by_prefix("class_balance")),
    ("Training without sampling", "Measured before the first step.", _draw_prior),
    ("Guided class loss", "Ratio of the class loss to the others.", _draw_by_prefix("guided/")),
    ("Harmonic and dual weighting figures", "", _draw_by_prefix("harmonic/", "dw/")),
    ("Learning rate and speed", "", _draw_speed),
)
