"""Predictions beside the ground truth, the worst images first, each mistake marked."""

import os
from pathlib import Path
from typing import Any, Dict, List

import numpy as np

from d2ext._files import open_image
from d2ext.data.checks.json_file import file_name, guess_form

from .errors import Verdict
from .predictions import draw_boxes

__all__ = ["draw_worst", "rank_images"]

# Okabe and Ito's palette.
_COLORS = {
    "right": "#0072B2",
    "duplicate": "#CC79A7",
    "class": "#E69F00",
    "location": "#56B4E9",
    "both": "#999999",
    "background": "#D55E00",
}
_LEGEND = {
    "right": "right",
    "duplicate": "duplicate",
    "class": "wrong class",
    "location": "badly placed",
    "both": "wrong class, badly placed",
    "background": "nothing there",
}
_FOUND, _MISSED = "#009E73", "#D55E00"


def rank_images(verdict: Verdict) -> List[Dict[str, Any]]:
    """Images by falling number of mistakes: objects not found and wrong detections.

    Returns:
        for each image with an object or a detection: ``image`` (its id), ``mistakes``, ``objects``,
        ``not_found`` and the number of detections by kind
    """
    rows: Dict[Any, Dict[str, Any]] = {}
    for key, found in zip(verdict.gt_image.tolist(), verdict.gt_found.tolist()):
        row = rows.setdefault(key, _row(key))
        row["objects"] += 1
        row["not_found"] += not found
    for key, kind in zip(verdict.image.tolist(), verdict.kind.tolist()):
        row = rows.setdefault(key, _row(key))
        if kind in _COLORS:
            row[kind] += 1
    for row in rows.values():
        row["mistakes"] = row["not_found"] + sum(row[k] for k in _COLORS if k != "right")
    return sorted(rows.values(), key=lambda row: (-row["mistakes"], str(row["image"])))


def _row(key: Any) -> Dict[str, Any]:
    return {"image": key, "mistakes": 0, "objects": 0, "not_found": 0, **dict.fromkeys(_COLORS, 0)}


def draw_worst(
    verdict: Verdict, data: Dict[str, Any], image_root: str, path: Path, count: int = 8
) -> Dict[str, Any]:
    """Draw the images with most mistakes into one PNG, ground truth left and predictions right.

    Args:
        verdict: of the detections that are to be drawn.
        data: the COCO data set.
        image_root: folder of its images.
        path: the PNG to write.
        count: how many images.

    Returns:
        ``images``, all of :func:`rank_images` with file names, and ``summary``, a sentence.
    """
    names = {c["id"]: c["name"] for c in data["categories"]}
    form = guess_form(data)
    files = {i["id"]: file_name(i, form) for i in data["images"]}
    ranked = rank_images(verdict)
    for row in ranked:
        row["file"] = files[row["image"]]
    _draw(verdict, ranked[:count], names, image_root, path)
    totals = {k: sum(row[k] for row in ranked) for k in ("objects", "not_found", *_COLORS)}
    parts = ", ".join(f"{totals[k]} {text}" for k, text in _LEGEND.items())
    summary = f"{totals['not_found']} of {totals['objects']} objects not found; detections: {parts}"
    return {"summary": summary, "totals": totals, "images": ranked}


def _draw(
    v: Verdict, rows: List[Dict[str, Any]], names: Dict[int, str], root: str, path: Path
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    columns = 2 if len(rows) > 1 else 1
    lines = max(1, -(-len(rows) // columns))
    figure = Figure(figsize=(5.6 * columns, 2.75 * lines + 0.8), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(lines, 2 * columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for i, row in enumerate(rows):
        with open_image(os.path.join(root, row["file"])) as image:
            image = np.asarray(image.convert("RGB"))
        left, right = grid[i // columns, 2 * (i % columns) : 2 * (i % columns) + 2]
        mine = np.flatnonzero(v.gt_image == row["image"])
        colors = [_FOUND if v.gt_found[k] else _MISSED for k in mine]
        labels = [names.get(int(v.gt_category[k]), "?") for k in mine]
        draw_boxes(left, image, _corners(v.gt_box[mine]), labels, colors)
        left.set_title(f"{row['file']}: {row['not_found']} not found", fontsize=7)
        mine = np.flatnonzero((v.image == row["image"]) & (v.kind != "ignored"))
        labels = [f"{names.get(int(v.category[k]), '?')} {v.score[k]:.2f}" for k in mine]
        colors = [_COLORS[k] for k in v.kind[mine].tolist()]
        draw_boxes(right, image, _corners(v.box[mine]), labels, colors)
        right.set_title(f"{row['mistakes'] - row['not_found']} wrong detections", fontsize=7)
    handles = [
        Line2D([], [], color=_FOUND, lw=2, label="object found"),
        Line2D([], [], color=_MISSED, lw=2, label="object not found"),
        *(Line2D([], [], color=_COLORS[k], lw=2, label=text) for k, text in _LEGEND.items()),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(
        "Images with most mistakes. Left: ground truth. Right: predictions, judged at IoU 0.5.",
        fontsize=9,
    )
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _corners(boxes: np.ndarray) -> np.ndarray:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
