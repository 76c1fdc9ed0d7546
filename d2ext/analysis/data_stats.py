"""How many images, objects and classes a data set has, and how large the objects are.

Shapes: G objects.
"""

from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, Set

import numpy as np

from .coco_data import annotations_of, area_of
from .results_report import FREQUENCY_GROUPS, SIZES

__all__ = ["data_stats", "draw_stats"]


def data_stats(data: Dict[str, Any]) -> Dict[str, Any]:
    """Counts of a COCO or LVIS data set.

    Args:
        data: with ``images``, ``annotations`` and ``categories``. Annotations of other images are
            not counted.

    Returns:
        ``images``, ``images_without_objects``, ``objects``, ``crowds``, ``objects_per_image``
        (median and largest), ``classes`` (by falling number of images, with ``images`` and
        ``objects``), ``frequency_groups`` and ``sizes`` (number of classes and of objects)
    """
    annotations = annotations_of(data)
    objects = [a for a in annotations if not a.get("iscrowd")]
    per_image: Dict[Any, int] = defaultdict(int)
    images_of: Dict[int, Set] = defaultdict(set)
    count_of: Dict[int, int] = defaultdict(int)
    for item in objects:
        per_image[item["image_id"]] += 1
        images_of[item["category_id"]].add(item["image_id"])
        count_of[item["category_id"]] += 1
    counts = [per_image.get(image["id"], 0) for image in data["images"]]
    classes = [
        {"name": c["name"], "images": len(images_of[c["id"]]), "objects": count_of[c["id"]]}
        for c in data["categories"]
    ]
    areas = np.array([area_of(a) for a in objects], dtype=float)
    return {
        "images": len(data["images"]),
        "images_without_objects": sum(c == 0 for c in counts),
        "objects": len(objects),
        "crowds": len(annotations) - len(objects),
        "objects_per_image": {
            "median": float(np.median(counts)) if counts else 0.0,
            "largest": max(counts, default=0),
        },
        "classes": sorted(classes, key=lambda row: -row["images"]),
        "frequency_groups": {
            name: sum(low <= row["images"] <= high for row in classes)
            for name, (low, high) in FREQUENCY_GROUPS.items()
        },
        "sizes": {
            name: int(((areas >= low) & (areas < high)).sum())
            for name, (low, high) in SIZES.items()
        },
    }


def draw_stats(stats: Dict[str, Any], data: Dict[str, Any], title: str, path: Path) -> None:
    """Draw class frequencies, objects an image and object sizes into one PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 4.2), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    rows = stats["classes"]
    left.bar(range(len(rows)), [row["images"] for row in rows], color="#0072B2", width=0.9)
    if len(rows) <= 60:
        left.set_xticks(range(len(rows)), [r["name"] for r in rows], rotation=90, fontsize=7)
    if rows and rows[0]["images"] > 20 * max(rows[-1]["images"], 1):
        left.set_yscale("log")
    left.set_ylabel("images")
    left.set_title(f"Images with each of {len(rows)} classes", fontsize=9, loc="left")
    objects = [a for a in annotations_of(data) if not a.get("iscrowd")]
    per_image: Dict[Any, int] = defaultdict(int)
    for item in objects:
        per_image[item["image_id"]] += 1
    counts = [per_image.get(image["id"], 0) for image in data["images"]]
    most = max(counts, default=0)
    middle.hist(counts, bins=np.arange(-0.5, most + 1) if most <= 60 else 40, color="#009E73")
    middle.set_xlabel("objects")
    middle.set_ylabel("images")
    middle.set_title("Objects in an image", fontsize=9, loc="left")
    sides = [np.sqrt(max(a["bbox"][2] * a["bbox"][3], 0)) for a in objects]
    right.hist(sides, bins=40, color="#E69F00")
    for limit in (32, 96):
        right.axvline(limit, color="black", lw=0.8, ls=":")
    right.set_xlabel("root of the box's area (px)")
    right.set_ylabel("objects")
    right.set_title("Size of the objects (dotted: 32, 96)", fontsize=9, loc="left")
    figure.suptitle(f"{title}: {stats['images']} images, {stats['objects']} objects", fontsize=11)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
