"""Everything about a file of detections: consistency, calibration, errors, classes, sizes.

Shapes: D detections, G objects.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from .calibration import calibrate
from .coco_data import annotations_of
from .consistency import best_ious, score_iou_consistency
from .errors import FALSE_KINDS, Verdict, error_costs, judge, mean_ap

__all__ = ["FREQUENCY_GROUPS", "SIZES", "analyze_results", "class_rows", "draw_analysis"]

#: COCO's sizes by area in square pixels.
SIZES = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, float("inf"))}
#: LVIS' groups by number of training images.
FREQUENCY_GROUPS = {"rare": (0, 10), "common": (11, 100), "frequent": (101, float("inf"))}

_BLUE, _ORANGE, _GREEN, _VERMILION, _PINK, _SKY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9"
)  # fmt: skip


def analyze_results(
    results: List[Dict[str, Any]],
    data: Dict[str, Any],
    train: Optional[Dict[str, Any]] = None,
    *,
    min_score: float = 0.05,
    max_detections: Optional[int] = None,
) -> Dict[str, Any]:
    """The numbers of the report.

    Args:
        results: detections in COCO's results format.
        data: the COCO or LVIS data set they belong to.
        train: the data set the model was trained on, which says how frequent classes are; without
            it the frequencies are those of ``data``.
        min_score: consistency and calibration leave detections below it out.
        max_detections: as many are kept; see :func:`~d2ext.analysis.errors.judge`.

    Returns:
        ``AP``, ``consistency``, ``calibration``, ``errors``, ``classes``, ``frequency_groups`` and
        ``sizes``
    """
    score, iou = best_ious(results, data, min_score=min_score)
    verdict = judge(results, data, max_detections=max_detections)
    classes = class_rows(mean_ap(results, data, max_detections=max_detections), data, train)
    ap = [row["AP"] for row in classes if row["AP"] is not None]
    return {
        "AP": float(np.mean(ap)) if ap else float("nan"),
        "consistency": score_iou_consistency(results, data, min_score=min_score),
        "calibration": calibrate(score, iou),
        "errors": error_costs(verdict),
        "classes": classes,
        "frequency_groups": _groups(classes),
        "frequency_of": "the training set" if train else "the evaluated set",
        "sizes": size_rows(verdict),
    }


def class_rows(
    ap: Dict[int, float], data: Dict[str, Any], train: Optional[Dict[str, Any]] = None
) -> List[Dict[str, Any]]:
    """By class: ``name``, ``images`` with it, ``objects`` and ``AP`` (None without objects).

    The classes come by falling number of images; images are those of ``train`` if it is given.
    """
    images: Dict[int, set] = defaultdict(set)
    for item in annotations_of(train or data):
        images[item["category_id"]].add(item["image_id"])
    objects: Dict[int, int] = defaultdict(int)
    for item in annotations_of(data):
        objects[item["category_id"]] += not item.get("iscrowd")
    rows = [
        {
            "name": category["name"],
            "images": len(images[category["id"]]),
            "objects": objects[category["id"]],
            "AP": ap.get(category["id"]),
        }
        for category in data["categories"]
    ]
    return sorted(rows, key=lambda row: -row["images"])


def _groups(rows: List[Dict[str, Any]]) -> Dict[str, Dict[str, Any]]:
    groups = {}
    for name, (low, high) in FREQUENCY_GROUPS.items():
        mine = [row for row in rows if low <= row["images"] <= high]
        ap = [row["AP"] for row in mine if row["AP"] is not None]
        groups[name] = {"classes": len(mine), "AP": float(np.mean(ap)) if ap else None}
    return groups


def size_rows(verdict: Verdict) -> Dict[str, Dict[str, Any]]:
    """By size: ``objects``, the share that is ``found`` at IoU 0.5 and their mean ``iou``."""
    rows = {}
    right = verdict.kind == "right"
    area = verdict.gt_area[verdict.target[right]]
    for name, (low, high) in SIZES.items():
        here = (verdict.gt_area >= low) & (verdict.gt_area < high)
        iou = verdict.iou[right][(area >= low) & (area < high)]
        rows[name] = {
            "objects": int(here.sum()),
            "found": float(verdict.gt_found[here].mean()) if here.any() else None,
            "iou": float(iou.mean()) if len(iou) else None,
        }
    return rows


def draw_analysis(
    report: Dict[str, Any], scores: Tuple[np.ndarray, np.ndarray], title: str, path: Path
) -> None:
    """Draw a report as one PNG of six panels.

    Args:
        report: from :func:`analyze_results`.
        scores: scores and IoUs, (D,) each.
        title: what the detections are of.
        path: the PNG to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12.6, 7.4), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(2, 3)
    _draw_scatter(grid[0, 0], figure, report, *scores)
    _draw_reliability(grid[0, 1], report)
    _draw_errors(grid[0, 2], report)
    _draw_frequency(grid[1, 0], report)
    _draw_class_bars(grid[1, 1], report)
    _draw_sizes(grid[1, 2], report)
    ap, ap50 = report["AP"], report["errors"]["AP50"]
    figure.suptitle(f"{title}:  AP {ap:.1f},  AP50 {ap50:.1f}", fontsize=11)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _draw_scatter(axes: Any, figure: Any, report: Dict, score: np.ndarray, iou: np.ndarray) -> None:
    hit = iou >= 0.5
    axes.set_title("Does the score follow the box's fit?", fontsize=9, loc="left")
    if hit.any():
        image = axes.hist2d(
            score[hit], iou[hit], bins=(40, 40), range=((0, 1), (0.5, 1)), cmap="cividis", cmin=1
        )[3]
        figure.colorbar(image, ax=axes, label="detections")
    axes.set_xlabel("score")
    axes.set_ylabel("IoU with the object (0.5 or more)")
    values = report["consistency"]
    text = f"Pearson {values['pearson_hit']:.2f}\nSpearman {values['spearman_hit']:.2f}"
    axes.text(
        0.03, 0.03, text, transform=axes.transAxes, fontsize=8,
        bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none"},
    )  # fmt: skip


def _draw_reliability(axes: Any, report: Dict) -> None:
    styles = zip(report["calibration"].items(), (_BLUE, _SKY, _PINK, _ORANGE), "osD^")
    axes.plot((0, 1), (0, 1), color="black", lw=0.8, ls=":", label="perfect")
    for (name, row), color, marker in styles:
        label = f"{name} (error {row['error']:.2f})"
        axes.plot(row["score"], row["target"], color=color, marker=marker, ms=4, lw=1.2,
                  label=label)  # fmt: skip
    axes.set_title("Can the score be taken at its word?", fontsize=9, loc="left")
    axes.set_xlabel("mean score of a bin")
    axes.set_ylabel("share right, or mean IoU")
    axes.legend(fontsize=7)
    axes.grid(alpha=0.3)


def _draw_errors(axes: Any, report: Dict) -> None:
    cost, count = report["errors"]["cost"], report["errors"]["count"]
    kinds = list(cost)[::-1]
    axes.barh(kinds, [cost[k] for k in kinds], color=_VERMILION)
    for i, kind in enumerate(kinds):
        axes.text(cost[kind], i, f" {cost[kind]:.1f}  ({count[kind]})", va="center", fontsize=8)
    axes.set_xlim(0, max(1e-3, max(cost.values()) * 1.45))
    axes.set_title("AP50 lost to each kind of error (number)", fontsize=9, loc="left")
    axes.set_xlabel("points of AP50 gained by correcting it")


def _draw_frequency(axes: Any, report: Dict) -> None:
    rows = [row for row in report["classes"] if row["AP"] is not None and row["images"] > 0]
    axes.scatter([r["images"] for r in rows], [r["AP"] for r in rows], s=18, color=_BLUE)
    if rows:
        axes.set_xscale("log")
    for low, _ in list(FREQUENCY_GROUPS.values())[1:]:
        axes.axvline(low, color="grey", lw=0.7, ls=":")
    for name, group in report["frequency_groups"].items():
        if group["AP"] is not None:
            axes.plot([], [], " ", label=f"{name} ({group['classes']}): AP {group['AP']:.1f}")
    axes.legend(fontsize=7, handlelength=0)
    axes.set_title("AP of a class against its frequency", fontsize=9, loc="left")
    axes.set_xlabel(f"images with the class in {report['frequency_of']}")
    axes.set_ylabel("AP")
    axes.grid(alpha=0.3)


def _draw_class_bars(axes: Any, report: Dict) -> None:
    rows = sorted((r for r in report["classes"] if r["AP"] is not None), key=lambda r: r["AP"])
    # Names beyond this cannot be read; the worst say most.
    shown = rows[:24]
    axes.barh([r["name"] for r in shown], [r["AP"] for r in shown], color=_GREEN)
    axes.tick_params(axis="y", labelsize=6.5)
    some = f"The {len(shown)} classes" if len(shown) == len(rows) else f"The {len(shown)} worst"
    axes.set_title(f"{some} by AP", fontsize=9, loc="left")
    axes.set_xlabel("AP")


def _draw_sizes(axes: Any, report: Dict) -> None:
    rows = report["sizes"]
    places = np.arange(len(rows))
    found = [100 * (row["found"] or 0) for row in rows.values()]
    iou = [100 * (row["iou"] or 0) for row in rows.values()]
    axes.bar(places - 0.2, found, 0.38, color=_BLUE, label="objects found at IoU 0.5, %")
    axes.bar(places + 0.2, iou, 0.38, color=_ORANGE, label="mean IoU of those, %")
    axes.set_xticks(places, [f"{name}\n{row['objects']} objects" for name, row in rows.items()])
    axes.set_ylim(0, 130)
    axes.set_title("By size: below 32², below 96², above (px)", fontsize=9, loc="left")
    axes.legend(fontsize=7, loc="upper left")


def explain_errors() -> str:
    """One line an error kind, for a console."""
    lines = [f"  {kind:11}{text}" for kind, text in FALSE_KINDS.items()]
    return "\n".join([*lines, "  missed     no detection comes near the object"])
