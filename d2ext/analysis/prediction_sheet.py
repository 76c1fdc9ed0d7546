"""Predictions beside the ground truth, each mistake marked."""

import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from d2ext._files import open_image
from d2ext.data.checks.json_file import file_name, guess_form
from d2ext.evaluation.boxes import corners
from d2ext.evaluation.matching import Verdict

from .drawing import show_boxes
from .figures import BLUE, GREEN, GREY, ORANGE, PINK, SKY, VERMILION, new_figure, plain, save_figure

__all__ = ["FOUND", "KIND_COLORS", "KIND_NAMES", "MISSED", "draw_sheet", "rank_images"]

#: Colours of detections by kind, and of objects that are found or not.
KIND_COLORS = {
    "right": BLUE,
    "duplicate": PINK,
    "class": ORANGE,
    "location": SKY,
    "both": GREY,
    "background": VERMILION,
}
KIND_NAMES = {
    "right": "right",
    "duplicate": "duplicate",
    "class": "wrong class",
    "location": "badly placed",
    "both": "wrong class, badly placed",
    "background": "nothing there",
}
FOUND, MISSED = GREEN, VERMILION


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
        if kind in KIND_COLORS:
            row[kind] += 1
    for row in rows.values():
        row["mistakes"] = row["not_found"] + sum(row[k] for k in KIND_COLORS if k != "right")
    return sorted(rows.values(), key=lambda row: (-row["mistakes"], str(row["image"])))


def _row(key: Any) -> Dict[str, Any]:
    counts = dict.fromkeys(KIND_COLORS, 0)
    return {"image": key, "mistakes": 0, "objects": 0, "not_found": 0, **counts}


def draw_sheet(
    verdict: Verdict,
    data: Dict[str, Any],
    image_root: str,
    path: Path,
    count: int = 8,
    images: Optional[Sequence[Any]] = None,
) -> Dict[str, Any]:
    """Draw images into one PNG, ground truth left and predictions right.

    Args:
        verdict: of the detections that are to be drawn.
        data: the COCO data set.
        image_root: folder of its images.
        path: the PNG to write.
        count: how many images, those with most mistakes.
        images: ids of the images to draw instead; the figures are of these alone.

    Returns:
        ``images``, all of :func:`rank_images` with file names, ``totals`` and ``summary``, a
        sentence
    """
    names = {c["id"]: c["name"] for c in data["categories"]}
    form = guess_form(data)
    files = {i["id"]: file_name(i, form) for i in data["images"]}
    ranked = rank_images(verdict)
    if images is not None:
        by_id = {row["image"]: row for row in ranked}
        ranked = [by_id.get(key, _row(key)) for key in images]
        count = len(ranked)
    for row in ranked:
        row["file"] = files[row["image"]]
    _draw(verdict, ranked[:count], names, image_root, path, worst=images is None)
    totals = {k: sum(row[k] for row in ranked) for k in ("objects", "not_found", *KIND_COLORS)}
    parts = ", ".join(f"{totals[k]} {text}" for k, text in KIND_NAMES.items())
    summary = f"{totals['not_found']} of {totals['objects']} objects not found; detections: {parts}"
    return {"summary": summary, "totals": totals, "images": ranked}


def _draw(
    v: Verdict,
    rows: List[Dict[str, Any]],
    names: Dict[int, str],
    root: str,
    path: Path,
    worst: bool,
) -> None:
    from matplotlib.lines import Line2D

    columns = 2 if len(rows) > 1 else 1
    lines = max(1, -(-len(rows) // columns))
    figure, grid = new_figure(
        (5.6 * columns, 2.75 * lines + 0.8), lines, 2 * columns, dpi=150, squeeze=False
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for i, row in enumerate(rows):
        with open_image(os.path.join(root, row["file"])) as picture:
            image = np.asarray(picture.convert("RGB"))
        left, right = grid[i // columns, 2 * (i % columns) : 2 * (i % columns) + 2]
        mine = np.flatnonzero(v.gt_image == row["image"])
        colors = [FOUND if v.gt_found[k] else MISSED for k in mine]
        labels = [names.get(int(v.gt_category[k]), "?") for k in mine]
        show_boxes(left, image, corners(v.gt_box[mine]), labels, colors)
        left.set_title(f"{plain(row['file'], 40)}: {row['not_found']} not found", fontsize=7)
        mine = np.flatnonzero((v.image == row["image"]) & (v.kind != "ignored"))
        labels = [f"{names.get(int(v.category[k]), '?')} {v.score[k]:.2f}" for k in mine]
        colors = [KIND_COLORS[k] for k in v.kind[mine].tolist()]
        show_boxes(right, image, corners(v.box[mine]), labels, colors)
        right.set_title(f"{row['mistakes'] - row['not_found']} wrong detections", fontsize=7)
    handles = [
        Line2D([], [], color=FOUND, lw=2, label="object found"),
        Line2D([], [], color=MISSED, lw=2, label="object not found"),
        *(Line2D([], [], color=KIND_COLORS[k], lw=2, label=text) for k, text in KIND_NAMES.items()),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    which = "Images with most mistakes. " if worst else ""
    figure.suptitle(
        f"{which}Left: ground truth. Right: predictions, judged at IoU {v.iou_threshold:g}.",
        fontsize=9,
    )
    save_figure(figure, path)
