"""Everything about a file of detections: consistency, calibration, errors, classes, sizes.

Shapes: D detections, G objects, C classes.
"""

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from d2ext.data.checks.json_file import guess_form
from d2ext.evaluation.backends import Detections, PrecisionRecall
from d2ext.evaluation.confusion import confusion_matrix
from d2ext.evaluation.ground_truth import GroundTruth
from d2ext.evaluation.matching import FALSE_KINDS, Verdict, match
from d2ext.evaluation.results import class_aps, detections_of, evaluate_results, truth_of
from d2ext.evaluation.thresholds import best_thresholds, score_curves
from d2ext.ops.frequency import FREQUENCY_GROUPS, frequency_group

from .calibration import calibrate, expected_error
from .consistency import scores_and_ious, summarize
from .errors import error_costs
from .figures import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PINK,
    SKY,
    VERMILION,
    new_figure,
    plain,
    save_figure,
    title,
)

__all__ = ["SIZES", "analyze", "analyze_results", "class_rows", "draw_analysis", "size_rows"]

#: COCO's sizes by area in square pixels.
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, float("inf"))}
#: IoUs and scores of the confusion matrices; the score None is that of the best F1 overall.
CONFUSION_IOUS = (0.5, 0.75)
CONFUSION_SCORES = (None, 0.05, 0.25, 0.5, 0.75)


def analyze_results(
    results: List[Dict[str, Any]],
    data: Dict[str, Any],
    train: Optional[Dict[str, Any]] = None,
    *,
    min_score: float = 0.05,
    max_detections: Optional[int] = None,
) -> Dict[str, Any]:
    """The numbers of the report, from the content of files.

    Args:
        results: detections in COCO's results format.
        data: the COCO or LVIS data set they belong to.
        train: the data set the model was trained on, which says how frequent classes are; without
            it the frequencies are those of ``data``.
        min_score, max_detections: see :func:`analyze`.
    """
    truth = truth_of(data)
    images = class_images(truth)
    if train is not None:
        in_train = class_images(trained := truth_of(train))
        by_id = dict(zip(trained.category_ids, in_train.tolist()))
        images = np.array([by_id.get(key, 0) for key in truth.category_ids])
    return {
        **analyze(
            truth,
            detections_of(results, truth),
            images,
            style=guess_form(data),
            min_score=min_score,
            max_detections=max_detections,
        ),
        "frequency_of": "the training set" if train else "the evaluated set",
    }


def analyze(
    truth: GroundTruth,
    detections: Detections,
    images: np.ndarray,
    *,
    style: str = "coco",
    min_score: float = 0.05,
    max_detections: Optional[int] = None,
) -> Dict[str, Any]:
    """All figures of detections.

    Args:
        truth: the annotations.
        detections: of its images and categories.
        images: (C,) training images with each class.
        style: "coco" or "lvis".
        min_score: consistency and calibration leave detections below it out.
        max_detections: as many are kept: of an image and class, by default 100, or of an image in
            LVIS' form, by default 300.

    Returns:
        ``AP``, ``AP50``, ``AP75``, ``consistency``, ``calibration``, ``errors``, ``classes``,
        ``frequency_groups``, ``sizes``, ``thresholds``, ``curves`` (by score), ``pr`` (precision at
        101 recalls, IoU 0.5) and ``confusion``; what is a list by class is in the order of
        ``class_names``
    """
    ids, names = truth.category_ids, truth.category_names
    kept: Dict[str, Any] = {"style": style, "max_detections": max_detections}
    result = evaluate_results(truth, detections, **kept)
    verdicts = {iou: match(truth, detections, iou_threshold=iou, **kept) for iou in CONFUSION_IOUS}
    verdict = verdicts[0.5]
    score, iou = scores_and_ious(verdict, min_score)
    thresholds = best_thresholds(verdict, ids, names)
    curves = score_curves(verdict, ids)
    classes = class_rows(class_aps(result), truth, images)
    for row in classes:
        k = names.index(row["name"])
        mine = (verdict.category == ids[k]) & (verdict.kind != "ignored")
        mine &= verdict.score >= min_score
        right = (verdict.kind[mine] == "right").astype(float)
        row["ECE"] = expected_error(verdict.score[mine], right)["error"]
        row["threshold"] = thresholds.classes[row["name"]]
        row.update(thresholds.figures.get(row["name"], {}))
    return {
        **{key: _mean(class_aps(part)) for key, part in _at_ious(result).items()},
        "class_names": names,
        "consistency": summarize(score, iou),
        "calibration": calibrate(score, iou),
        "errors": error_costs(verdict),
        "classes": classes,
        "frequency_groups": _groups(classes),
        "sizes": size_rows(verdict, result),
        "thresholds": {"overall": thresholds.overall, **thresholds.figures.get("", {})},
        "threshold_file": {
            key: getattr(thresholds, key) for key in ("overall", "classes", "figures")
        },
        "curves": {
            key: np.round(getattr(curves, key), 4)
            for key in ("scores", "precision", "recall", "f1")
        },
        "pr": np.round(result.precision[0, :, :, 0].T, 4),
        "confusion": _confusions(verdicts, ids, thresholds.overall),
        "scatter": _histogram(score, iou),
    }


def _at_ious(result: PrecisionRecall) -> Dict[str, PrecisionRecall]:
    """The figures of all IoUs and of single ones."""
    single = {"AP50": 0, "AP75": 5}
    return {
        "AP": result,
        **{
            key: PrecisionRecall(result.precision[k : k + 1], result.recall[k : k + 1])
            for key, k in single.items()
        },
    }


def _mean(values: Sequence[Optional[float]]) -> float:
    known = [v for v in values if v is not None]
    return float(np.mean(known)) if known else float("nan")


def _confusions(
    verdicts: Dict[float, Verdict], ids: Sequence[int], best: float
) -> List[Dict[str, Any]]:
    """One matrix an IoU and score, as its cells that are not 0: [true, predicted, count]."""
    found = []
    for iou, verdict in verdicts.items():
        for score in CONFUSION_SCORES:
            least = best if score is None else score
            matrix = confusion_matrix(verdict, ids, least)
            cells = [[int(t), int(p), int(matrix[t, p])] for t, p in np.argwhere(matrix)]
            found.append({"iou": iou, "score": least, "best": score is None, "cells": cells})
    return found


def _histogram(score: np.ndarray, iou: np.ndarray, bins: int = 20) -> np.ndarray:
    """(bins, bins) detections by IoU, from 0.5 on, and score: the rows are IoUs."""
    hit = iou >= 0.5
    edges = (np.linspace(0.5, 1, bins + 1), np.linspace(0, 1, bins + 1))
    return np.histogram2d(iou[hit], score[hit], bins=edges)[0].astype(int)


def class_images(truth: GroundTruth) -> np.ndarray:
    """(C,) images with each category."""
    width = len(truth.category_ids)
    cells = np.unique(truth.image * width + truth.category)
    return np.bincount(cells % width, minlength=width)


def class_rows(
    ap: Sequence[Optional[float]], truth: GroundTruth, images: np.ndarray
) -> List[Dict[str, Any]]:
    """By class: ``name``, ``images`` with it, ``group``, ``objects`` and ``AP``.

    The classes come by falling number of images.

    Args:
        ap: (C,) None without objects.
        truth: the annotations.
        images: (C,) training images with each class.
    """
    objects = np.bincount(truth.category[~truth.crowd], minlength=len(truth.category_ids))
    rows = [
        {
            "name": name,
            "images": int(images[k]),
            "group": frequency_group(images[k]),
            "objects": int(objects[k]),
            "AP": ap[k],
        }
        for k, name in enumerate(truth.category_names)
    ]
    return sorted(rows, key=lambda row: -row["images"])


def _groups(rows: List[Dict[str, Any]]) -> Dict[str, Dict[str, Any]]:
    groups = {}
    for name in FREQUENCY_GROUPS:
        mine = [row for row in rows if row["group"] == name]
        ap = [row["AP"] for row in mine if row["AP"] is not None]
        groups[name] = {"classes": len(mine), "AP": float(np.mean(ap)) if ap else None}
    return groups


def size_rows(verdict: Verdict, result: PrecisionRecall) -> Dict[str, Dict[str, Any]]:
    """By size: ``objects``, ``AP``, the share ``found`` at IoU 0.5 and their mean ``iou``."""
    rows = {}
    right = verdict.kind == "right"
    area = verdict.gt_area[verdict.target[right]]
    for k, (name, (low, high)) in enumerate(SIZES.items(), start=1):
        here = (verdict.gt_area >= low) & (verdict.gt_area < high)
        iou = verdict.iou[right][(area >= low) & (area < high)]
        ap = _mean(class_aps(result, k))
        rows[name] = {
            "objects": int(here.sum()),
            "AP": None if np.isnan(ap) else ap,
            "found": float(verdict.gt_found[here].mean()) if here.any() else None,
            "iou": float(iou.mean()) if len(iou) else None,
        }
    return rows


def draw_analysis(report: Dict[str, Any], heading: str, path: Path) -> None:
    """Draw a report as one PNG of six panels.

    Args:
        report: from :func:`analyze_results`.
        heading: what the detections are of.
        path: the PNG to write.
    """
    figure, grid = new_figure((12.6, 7.4), 2, 3)
    _draw_scatter(grid[0, 0], figure, report)
    _draw_reliability(grid[0, 1], report)
    _draw_errors(grid[0, 2], report)
    _draw_frequency(grid[1, 0], report)
    _draw_class_bars(grid[1, 1], report)
    _draw_sizes(grid[1, 2], report)
    ap, ap50 = report["AP"], report["AP50"]
    figure.suptitle(f"{plain(heading, 100)}:  AP {ap:.1f},  AP50 {ap50:.1f}", fontsize=11)
    save_figure(figure, path)


def _draw_scatter(axes: Any, figure: Any, report: Dict[str, Any]) -> None:
    count = report["scatter"]
    title(
        axes, "Does the score follow the box's fit?", "score", "IoU with the object (0.5 or more)"
    )
    if count.any():
        shown = np.where(count > 0, count, np.nan)
        image = axes.imshow(
            shown, origin="lower", extent=(0, 1, 0.5, 1), aspect="auto", cmap="cividis"
        )
        figure.colorbar(image, ax=axes, label="detections")
    values = report["consistency"]
    text = f"Pearson {values['pearson_hit']:.2f}\nSpearman {values['spearman_hit']:.2f}"
    axes.text(
        0.03, 0.03, text, transform=axes.transAxes, fontsize=8,
        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none"},
    )  # fmt: skip


def _draw_reliability(axes: Any, report: Dict[str, Any]) -> None:
    styles = zip(report["calibration"].items(), (BLUE, SKY, PINK, ORANGE), "osD^")
    axes.plot((0, 1), (0, 1), color=BLACK, lw=0.8, ls=":", label="perfect")
    for (name, row), color, marker in styles:
        label = f"{name} (error {row['error']:.2f})"
        axes.plot(row["score"], row["target"], color=color, marker=marker, ms=4, lw=1.2,
                  label=label)  # fmt: skip
    title(axes, "Can the score be taken at its word?", "mean score of a bin",
          "share right, or mean IoU")  # fmt: skip
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)


def _draw_errors(axes: Any, report: Dict[str, Any]) -> None:
    cost, count = report["errors"]["cost"], report["errors"]["count"]
    kinds = list(cost)[::-1]
    axes.barh(kinds, [cost[k] for k in kinds], color=VERMILION)
    for i, kind in enumerate(kinds):
        axes.text(cost[kind], i, f" {cost[kind]:.1f}  ({count[kind]})", va="center", fontsize=8)
    axes.set_xlim(0, max(1e-3, max(cost.values()) * 1.45))
    title(
        axes, "AP50 lost to each kind of error (number)", "points of AP50 gained by correcting it"
    )


def _draw_frequency(axes: Any, report: Dict[str, Any]) -> None:
    rows = [row for row in report["classes"] if row["AP"] is not None and row["images"] > 0]
    axes.scatter([r["images"] for r in rows], [r["AP"] for r in rows], s=18, color=BLUE)
    if rows:
        axes.set_xscale("log")
    for most in list(FREQUENCY_GROUPS.values())[:-1]:
        axes.axvline(most + 0.5, color=GREY, lw=0.7, ls=":")
    for name, group in report["frequency_groups"].items():
        if group["AP"] is not None:
            axes.plot([], [], " ", label=f"{name} ({group['classes']}): AP {group['AP']:.1f}")
    axes.legend(fontsize=7, handlelength=0)
    title(axes, "AP of a class against its frequency",
          f"images with the class in {report['frequency_of']}", "AP")  # fmt: skip
    axes.grid(alpha=0.3)


def _draw_class_bars(axes: Any, report: Dict[str, Any]) -> None:
    rows = sorted((r for r in report["classes"] if r["AP"] is not None), key=lambda r: r["AP"])
    # Names beyond this cannot be read; the worst say most.
    shown = rows[:24]
    places = range(len(shown))
    axes.barh(places, [r["AP"] for r in shown], color=GREEN)
    axes.set_yticks(places, [plain(r["name"], 24) for r in shown], fontsize=6.5)
    some = f"The {len(shown)} classes" if len(shown) == len(rows) else f"The {len(shown)} worst"
    title(axes, f"{some} by AP", "AP")


def _draw_sizes(axes: Any, report: Dict[str, Any]) -> None:
    rows = report["sizes"]
    places = np.arange(len(rows))
    found = [100 * (row["found"] or 0) for row in rows.values()]
    iou = [100 * (row["iou"] or 0) for row in rows.values()]
    axes.bar(places - 0.2, found, 0.38, color=BLUE, label="objects found at IoU 0.5, %")
    axes.bar(places + 0.2, iou, 0.38, color=ORANGE, label="mean IoU of those, %")
    axes.set_xticks(places, [f"{name}\n{row['objects']} objects" for name, row in rows.items()])
    axes.set_ylim(0, 130)
    title(axes, "By size: below 32², below 96², above (px)")
    axes.legend(fontsize=7, loc="upper left")


def explain_errors() -> str:
    """One line an error kind, for a console."""
    lines = [f"  {kind:11}{text}" for kind, text in FALSE_KINDS.items()]
    return "\n".join([*lines, "  missed     no detection comes near the object"])
