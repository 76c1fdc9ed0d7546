"""The curves of trainings, as data for the page's charts.

Shapes: T rows of ``metrics.json``, C classes.
"""

from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np

from .run import Run, is_evaluated, is_loss

__all__ = ["balance_charts", "chart", "training_groups"]

# No screen shows more points.
_MOST_POINTS = 400
# Charts below one heading that are open from the start.
_MOST_OPEN = 12
_MAIN = ("AP", "AP50", "AP75", "APr", "APc", "APf", "mIoU", "PQ")
_UNITS = {"time": "seconds a step", "data_time": "seconds a step", "lr": "learning rate"}


def chart(
    title: str,
    x: Sequence[float],
    series: Sequence[Dict[str, Any]],
    *,
    x_label: str = "step",
    y_label: str = "",
    **more: Any,
) -> Dict[str, Any]:
    """A chart of the page: lines over common x values.

    Args:
        title: above it.
        x: ascending.
        series: ``name``, ``y`` (None where there is no value) and, if wanted, ``run`` (whose colour
            it gets), ``dash``, ``points`` and ``hidden``.
        x_label, y_label: of the axes.
        more: ``range``, [lowest, highest] of y, and ``log`` for a logarithmic x axis.
    """
    labels = {"x_label": x_label, "y_label": y_label}
    return {"title": title, "x": x, "series": series, **labels, **more}


def training_groups(runs: List[Run]) -> List[Dict[str, Any]]:
    """Headings with a note and the charts below it; what nothing was logged of is left out."""
    groups = []
    for heading, note, keep in _GROUPS:
        names = list(dict.fromkeys(k for run in runs for k in run.names() if keep(k)))
        charts = [c for c in (_course(runs, name) for name in names) if c is not None]
        if charts:
            folded = heading.startswith("Further") or len(charts) > _MOST_OPEN
            row = {"title": heading, "note": note, "charts": charts, "folded": folded}
            groups.append(row)
    return groups


def _starts(*prefixes: str) -> Callable[[str], bool]:
    return lambda name: name.startswith(prefixes)


def _is_main(name: str) -> bool:
    return is_evaluated(name) and name.rsplit("/", 1)[-1] in _MAIN


_GROUPS: Tuple[Tuple[str, str, Callable[[str], bool]], ...] = (
    ("Evaluation over time", "In percent, higher is better.", _is_main),
    ("Further figures of the evaluation", "", lambda n: is_evaluated(n) and not _is_main(n)),
    (
        "Losses",
        "Solid: as summed for the gradient. Dashed: before the adaptive weight, where there is one "
        "(the logged loss over the weight logged last). val/: on the validation set.",
        lambda name: is_loss(name) or name.startswith("val/"),
    ),
    (
        "Adaptive loss weights",
        "Factors of the class and of the box loss.",
        lambda name: name.startswith("alwa/") and name.rpartition("/")[2][:2] == "w_",
    ),
    ("Balance of classes over time", "", _starts("class_balance")),
    ("Guided class loss", "Ratio of the class loss to the others.", _starts("guided/")),
    ("Harmonic and dual weighting figures", "", _starts("harmonic/", "dw/")),
    (
        "Learning rate and speed",
        "",
        lambda name: name in ("lr", "time", "data_time", "grad_norm"),
    ),
)


def _course(runs: List[Run], name: str) -> Optional[Dict[str, Any]]:
    """One logged figure over the steps, a line a run."""
    lines = []
    for index, run in enumerate(runs):
        steps, values = run.series(name)
        if len(steps):
            lines.append((index, run.name, steps, values, False))
        raw = run.raw_loss(name) if is_loss(name) else None
        if raw is not None:
            lines.append((index, f"{run.name}, unweighted", steps, raw, True))
    if not lines:
        return None
    x, columns = _together([(steps, values) for _, _, steps, values, _ in lines])
    series = [
        {"name": title, "run": index, "dash": dashed, "y": y}
        for (index, title, _, _, dashed), y in zip(lines, columns)
    ]
    low = 0.0 if is_loss(name) and all(v.min() >= 0 for _, _, _, v, _ in lines) else None
    return chart(name, x, series, y_label=_UNITS.get(name, ""), range=[low, None])


def _together(
    lines: Sequence[Tuple[np.ndarray, np.ndarray]],
) -> Tuple[List[float], List[List[Optional[float]]]]:
    """Lines with steps of their own over the union of their steps; None where one has no value."""
    thinned = [_thin(steps, values) for steps, values in lines]
    x = np.unique(np.concatenate([steps for steps, _ in thinned]))
    columns = []
    for steps, values in thinned:
        y: List[Optional[float]] = [None] * len(x)
        for place, value in zip(np.searchsorted(x, steps).tolist(), values.tolist()):
            y[place] = float(f"{value:.5g}")
        columns.append(y)
    return x.tolist(), columns


def _thin(steps: np.ndarray, values: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """As many points as can be seen: of each stretch its lowest and its highest."""
    finite = np.isfinite(values)
    steps, values = steps[finite], values[finite]
    if len(steps) <= _MOST_POINTS:
        return steps, values
    stretch = np.arange(len(steps)) * (_MOST_POINTS // 2) // len(steps)
    order = np.lexsort((values, stretch))
    bounds = np.searchsorted(stretch[order], np.arange(_MOST_POINTS // 2 + 1))
    kept = np.unique(np.concatenate([order[bounds[:-1]], order[bounds[1:] - 1], [0]]))
    return steps[kept], values[kept]


def balance_charts(runs: List[Run]) -> List[Dict[str, Any]]:
    """EFL's g by class, and the exponent it leads to, from the last checkpoint; classes by g."""
    ratios, exponents = [], []
    for index, run in enumerate(runs):
        for key, ratio in run.state().items():
            if not key.endswith("pos_neg") or ratio.ndim != 1:
                continue
            g = np.sort(np.clip(np.nan_to_num(ratio), 0, 1))[::-1]
            line = {"name": run.name, "run": index, "points": True}
            ratios.append({**line, "y": np.round(g, 5).tolist()})
            losses = {v for k, v in run.config.items() if k.endswith("CLS_LOSS")}
            if losses & {"efl", "eqfl"}:  # EQL v2 keeps g too, and has no exponent
                base = _number(run.config.get("MODEL.EFL.GAMMA_B"), 2.0)
                scale = _number(run.config.get("MODEL.EFL.SCALE"), 8.0)
                exponents.append({**line, "y": np.round(base + scale * (1 - g), 4).tolist()})
    charts = []
    for title, series in (
        ("g, positive over negative gradient", ratios),
        ("EFL's exponent gamma", exponents),
    ):
        if series:
            most = max(len(s["y"]) for s in series)
            series = [{**s, "y": s["y"] + [None] * (most - len(s["y"]))} for s in series]
            x = list(range(1, most + 1))
            charts.append(chart(title, x, series, x_label="classes by falling g"))
    return charts


def _number(value: Any, default: float) -> float:
    return float(value) if isinstance(value, (int, float)) else default


def prior_rows(runs: List[Run]) -> List[List[Any]]:
    """Sampling-free training's prior and share of foreground, as measured: run, buffer, value."""
    return [
        [run.name, key, float(np.mean(value))]
        for run in runs
        for key, value in run.state().items()
        if key.rsplit(".", 1)[-1] in ("prior", "fg_ratio") and np.mean(value) > 0
    ]
