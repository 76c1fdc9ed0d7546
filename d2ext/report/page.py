"""One self-contained HTML page about one or several trainings.

Charts are drawn by uPlot, which is beside this file: 51 kB of plain JavaScript that draws lines
with hover, zoom and a legend that switches them, where ECharts takes a megabyte and Observable
Plot brings D3. Tables are in the HTML itself, so that they print and can be read without scripts.

Shapes: T rows of ``metrics.json``, C classes.
"""

import logging
import math
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Set, Tuple

import numpy as np

from d2ext._text import printable
from d2ext.analysis.figures import CYCLE
from d2ext.analysis.prediction_sheet import KIND_COLORS, KIND_NAMES
from d2ext.analysis.results_report import SIZES, class_images
from d2ext.evaluation.matching import FALSE_KINDS
from d2ext.run_index import describe_set, read_index

from .data_page import data_section
from .evaluation import AnnotatedSet, Evaluation, annotated_set, find_evaluations, shown_json
from .gallery import KINDS, make_gallery, small_picture
from .run import Run, differences, evaluated_figure
from .summary import advice
from .training import balance_charts, prior_rows, training_groups

__all__ = ["make_page", "numbers_of_runs"]

logger = logging.getLogger(__name__)

ASSETS = Path(__file__).parent / "assets"
_BOX_FIGURES = ("AP", "AP50", "AP75", "APr", "APc", "APf")
_FIRST_FIGURES = ("AP", "mIoU", "PQ")
# Keys that differ between runs without changing what they compute.
_IDLE_KEYS = {"OUTPUT_DIR", "VERSION", "VIS_PERIOD"}
_CONFIG_KEYS = ("MODEL.META_ARCHITECTURE", "MODEL.WEIGHTS", "DATASETS.TRAIN", "DATASETS.TEST",
                "SOLVER.OPTIMIZER", "SOLVER.BASE_LR", "SOLVER.IMS_PER_BATCH", "SOLVER.MAX_ITER",
                "SEED")  # fmt: skip
_MOST_PICTURES = 6
# Classes whose curves are in the page, those with most objects.
_MOST_CURVES = 80


def make_page(
    runs: List[Run], title: str = "Training report", *, images: int = 60, budget: int = 2_000_000
) -> str:
    """The page as HTML text, with all pictures inside and nothing fetched from elsewhere.

    Args:
        runs: one or several; they share the axes of every chart.
        title: the heading.
        images: of the gallery, at most.
        budget: bytes of the gallery's pictures.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    sets, evaluations = collect(runs)
    groups = _by_set(evaluations)
    payload: Dict[str, Any] = {
        "runs": [printable(run.name, 60) for run in runs],
        "colors": [CYCLE[k % len(CYCLE)] for k in range(len(runs))],
        "kinds": [
            {
                "key": k,
                "name": KIND_NAMES.get(k, "missed object"),
                "color": KIND_COLORS.get(k, "#D55E00"),
            }
            for k in KINDS
        ],  # fmt: skip
        "sizes": list(SIZES),
        "sets": [_set_payload(name, row) for name, row in groups],
        "galleries": [make_gallery(row, images, budget // len(groups)) for _, row in groups],
        "training": training_groups(runs),
        "balance": balance_charts(runs),
        "data": data_section(sets) if sets else None,
    }
    environment = Environment(
        loader=FileSystemLoader(ASSETS), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    environment.filters.update(shown=shown, fixed=fixed)
    return environment.get_template("page.html").render(
        title=printable(title, 120),
        runs=payload["runs"],
        colors=payload["colors"],
        overview=_overview(runs),
        advice=[advice(name, row, payload["runs"]) for name, row in groups],
        config=_config(runs),
        sets=[_set_tables(name, row) for name, row in groups],
        training=payload["training"],
        balance=payload["balance"],
        prior=[[printable(a, 60), printable(b), c] for a, b, c in prior_rows(runs)],
        logged_classes=None if groups else _logged_classes(runs),
        data=payload["data"],
        kinds=payload["kinds"],
        error_kinds=FALSE_KINDS,
        pictures=_pictures(runs),
        payload=shown_json(payload),
        css=(ASSETS / "uplot.css").read_text() + (ASSETS / "page.css").read_text(),
        scripts=[(ASSETS / name).read_text() for name in ("uplot.js", "page.js")],
    )


def collect(
    runs: Sequence[Run],
) -> Tuple[List[Tuple[str, AnnotatedSet]], List[List[Evaluation]]]:
    """The data sets of runs with their splits, and each run's evaluations."""
    known: Dict[str, AnnotatedSet] = {}
    sets = _sets_of(runs, known)
    return sets, _evaluations(runs, known, sets)


def numbers_of_runs(runs: List[Run]) -> List[Dict[str, Any]]:
    """What the page's table says, as plain values."""
    rows = []
    for run in runs:
        steps = run.series("total_loss")[0]
        images: Any = run.config.get("SOLVER.IMS_PER_BATCH")
        seconds = run.seconds()
        known = isinstance(images, (int, float)) and seconds > 0
        rows.append(
            {
                "run": run.name,
                "steps": int(steps[-1]) + 1 if len(steps) else 0,
                "seconds_per_step": seconds,
                "images_per_second": images / seconds if known else None,
                "total_loss": run.last("total_loss"),
                "evaluation": {k: run.last(k) for k in run.evaluated()},
                "class_AP": run.class_ap(),
            }
        )
    return rows


def fixed(value: Any, decimals: int) -> str:
    """A number in a column of numbers with as many decimals."""
    return "–" if value is None or not math.isfinite(value) else f"{value:.{decimals}f}"


def shown(value: Any, digits: int = 4) -> str:
    """A value in a table."""
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.{digits}g}" if math.isfinite(value) else "–"
    if isinstance(value, (list, tuple)):
        return printable(", ".join(map(str, value)))
    return printable(value)


# ------------------------------------------------------------------ runs and their config


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


def _overview(runs: List[Run]) -> Dict[str, Any]:
    numbers = numbers_of_runs(runs)
    figures = _for_overview(name for row in numbers for name in row["evaluation"])
    return {
        "head": ["run", "steps", "s a step", "images a s", "last total loss", *figures],
        "rows": [
            [r["run"], r["steps"], r["seconds_per_step"], r["images_per_second"], r["total_loss"]]
            + [r["evaluation"].get(k) for k in figures]
            for r in numbers
        ],
    }


def _config(runs: List[Run]) -> Dict[str, Any]:
    """The keys in which runs differ, those that nothing reads apart; of one run the main ones."""
    if len(runs) == 1:
        rows = [[key, runs[0].config[key]] for key in _CONFIG_KEYS if key in runs[0].config]
        return {"head": ["key", "value"], "rows": rows, "unread": []}
    table = {k: v for k, v in differences(runs).items() if k not in _IDLE_KEYS}
    of_models = any(key.startswith("MODEL.") for key in table)
    read = [_keys_read(run) for run in runs] if of_models else [None] * len(runs)
    rows, unread = [], []
    for key, values in table.items():
        idle = [key.startswith("MODEL.") and keys is not None and key not in keys for keys in read]
        shown_here = ["(not read)" if i else v for i, v in zip(idle, values)]
        if all(idle):
            unread.append([key, *values])
        else:
            rows.append([key, *shown_here])
    return {"head": ["key", *(run.name for run in runs)], "rows": rows, "unread": unread}


def _keys_read(run: Run) -> Optional[Set[str]]:
    """The keys that the model of a run reads; None where it cannot be built.

    It is built without memory for its weights, on PyTorch's meta device.
    """
    import torch

    from d2ext.analysis.doctor import build_recorded
    from d2ext.analysis.key_reads import flatten
    from d2ext.config import get_cfg

    cfg = get_cfg()
    known = flatten(cfg)
    level = logger.manager.disable
    try:
        for key, value in run.config.items():
            if key in known and key.startswith(("MODEL.", "SOLVER.")):
                cfg.merge_from_list([key, value])
        cfg.MODEL.DEVICE = "meta"
        logging.disable(logging.WARNING)
        with torch.device("meta"):
            seen = build_recorded(cfg)["seen"]
    except Exception as error:  # a config of another program, or of a part that is not registered
        logger.info(f"Which keys {printable(run.name)} reads is not known: {printable(error)}")
        return None
    finally:
        logging.disable(level)
    return {*seen, "MODEL.WEIGHTS", "MODEL.DEVICE"}


# ------------------------------------------------------------------ evaluations


def _sets_of(runs: Sequence[Run], known: Dict[str, AnnotatedSet]) -> List[Tuple[str, AnnotatedSet]]:
    """The data sets of all runs, each split and set once."""
    found: Dict[Tuple[str, str], AnnotatedSet] = {}
    for run in runs:
        entries = [e for e in read_index(run.folder) if e["kind"] == "data"]
        for split in ("train", "test"):
            if not any(e.get("split") == split for e in entries):
                names = run.config.get(f"DATASETS.{split.upper()}") or ()
                names = [names] if isinstance(names, str) else names
                entries += [{"split": split, **describe_set(n)} for n in names if _is_registered(n)]
        for entry in entries:
            data = annotated_set(entry, run.folder, known)
            if data is not None:
                found.setdefault((str(entry.get("split")), data.name), data)
    return [(split, data) for (split, _), data in found.items()]


def _is_registered(name: Any) -> bool:
    from detectron2.data import DatasetCatalog, MetadataCatalog

    import d2ext  # noqa: F401  (registers the data sets)

    if name not in DatasetCatalog.list():
        return False
    file = MetadataCatalog.get(name).get("json_file")
    return file is None or Path(file).is_file()


def _evaluations(
    runs: Sequence[Run], known: Dict[str, AnnotatedSet], sets: Sequence[Tuple[str, AnnotatedSet]]
) -> List[List[Evaluation]]:
    counts: Dict[str, int] = {}
    for split, data in sets:
        if split == "train":
            images = class_images(data.truth).tolist()
            for name, count in zip(data.truth.category_names, images):
                counts[name] = counts.get(name, 0) + count
    return [find_evaluations(run.folder, known, counts or None) for run in runs]


def _by_set(
    evaluations: Sequence[Sequence[Evaluation]],
) -> List[Tuple[str, List[Optional[Evaluation]]]]:
    """Data set -> each run's evaluation on it, the last one found."""
    names = dict.fromkeys(e.data.name for row in evaluations for e in row)
    return [
        (name, [next((e for e in reversed(row) if e.data.name == name), None)
                for row in evaluations])
        for name in names
    ]  # fmt: skip


def _set_payload(name: str, row: Sequence[Optional[Evaluation]]) -> Dict[str, Any]:
    """What the charts of a data set draw."""
    own = [e for e in row if e is not None]
    truth = own[0].data.truth
    objects = np.bincount(truth.category, minlength=len(truth.category_ids))
    drawn = {*np.argsort(-objects, kind="stable")[:_MOST_CURVES].tolist(), len(objects)}
    return {
        "name": printable(name, 60),
        "classes": [printable(n, 60) for n in truth.category_names],
        "runs": [None if e is None else _run_payload(e.figures, drawn) for e in row],
    }


def _run_payload(figures: Dict[str, Any], drawn: Set[int]) -> Dict[str, Any]:
    """One run's part of it, with curves of some classes."""

    def some(rows: np.ndarray) -> List[Optional[np.ndarray]]:
        return [row if k in drawn else None for k, row in enumerate(rows)]

    curves = figures["curves"]
    return {
        "curves": {k: some(v) if k != "scores" else v for k, v in curves.items()},
        "pr": some(figures["pr"]),
        **{key: figures[key] for key in ("confusion", "calibration", "scatter")},
    }


def _set_tables(name: str, row: Sequence[Optional[Evaluation]]) -> Dict[str, Any]:
    """The tables of a data set: classes, errors, sizes, frequencies, consistency."""
    own = [(k, e) for k, e in enumerate(row) if e is not None]
    figures = {k: e.figures for k, e in own}
    by_class = {k: {r["name"]: r for r in f["classes"]} for k, f in figures.items()}
    first = own[0][0]
    classes = [
        {
            "name": printable(r["name"], 60),
            "images": r["images"],
            "objects": r["objects"],
            "group": r["group"],
            "runs": [by_class[k].get(r["name"], {}) if k in by_class else {}
                     for k in range(len(row))],
        }
        for r in figures[first]["classes"]
    ]  # fmt: skip
    costs = {k: f["errors"] for k, f in figures.items()}
    most = max([0.1, *(c for f in costs.values() for c in f["cost"].values())])
    return {
        "name": printable(name, 60),
        "classes": classes,
        "errors": costs,
        "most_cost": most,
        "sizes": {k: f["sizes"] for k, f in figures.items()},
        "groups": {k: f["frequency_groups"] for k, f in figures.items()},
        "consistency": {k: f["consistency"] for k, f in figures.items()},
        "calibration": {k: f["calibration"] for k, f in figures.items()},
        "thresholds": {k: f["thresholds"] for k, f in figures.items()},
        "AP": {k: {key: f[key] for key in ("AP", "AP50", "AP75")} for k, f in figures.items()},
    }


def _logged_classes(runs: Sequence[Run]) -> Optional[Dict[str, Any]]:
    """AP of each class as logged, where the detections no longer exist."""
    tables = [run.class_ap() for run in runs]
    names = list(dict.fromkeys(name for table in tables for name in table))
    if not names:
        return None
    rows = [[name, *(table.get(name) for table in tables)] for name in names]
    return {"head": ["class", *(run.name for run in runs)], "rows": rows}


def _pictures(runs: Sequence[Run]) -> List[Dict[str, Any]]:
    """Pictures that were drawn of the runs: in their folders, and where their index says."""
    found = []
    for run in runs:
        places = [run.folder / "pictures"]
        kinds = ("pictures", "analysis")
        places += [run.folder / e["path"] for e in read_index(run.folder) if e["kind"] in kinds]
        files = dict.fromkeys(f for place in places for f in sorted(place.glob("*.png")))
        shown_here = [(f, small_picture(f)) for f in list(files)[:_MOST_PICTURES]]
        pictures = [{"name": printable(f.stem, 80), "src": src} for f, src in shown_here if src]
        if pictures:
            found.append({"run": printable(run.name, 60), "pictures": pictures})
    return found
