"""How many images, objects and classes a data set has, and how large the objects are.

Shapes: N images, G objects.
"""

from pathlib import Path
from typing import Any, Dict

import numpy as np

from d2ext.evaluation.ground_truth import GroundTruth
from d2ext.evaluation.results import truth_of
from d2ext.ops.frequency import frequency_groups

from .figures import BLACK, BLUE, GREEN, ORANGE, new_figure, plain, save_figure, title
from .results_report import SIZES, class_images

__all__ = ["data_stats", "draw_stats", "objects_per_image", "sides_of"]


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
    return stats_of(truth_of(data))


def stats_of(truth: GroundTruth) -> Dict[str, Any]:
    """:func:`data_stats` of annotations that are read already."""
    objects = truth.select(~truth.crowd)
    counts = objects_per_image(objects)
    images, number = (
        class_images(objects),
        np.bincount(objects.category, minlength=len(truth.category_ids)),
    )
    classes = [
        {"name": name, "images": int(images[k]), "objects": int(number[k])}
        for k, name in enumerate(truth.category_names)
    ]
    groups = frequency_groups(images.tolist())
    return {
        "images": len(truth.image_ids),
        "images_without_objects": int((counts == 0).sum()),
        "objects": len(objects),
        "crowds": int(truth.crowd.sum()),
        "objects_per_image": {
            "median": float(np.median(counts)) if len(counts) else 0.0,
            "largest": int(counts.max(initial=0)),
        },
        "classes": sorted(classes, key=lambda row: -row["images"]),
        "frequency_groups": {name: len(members) for name, members in groups.items()},
        "sizes": {
            name: int(((objects.area >= low) & (objects.area < high)).sum())
            for name, (low, high) in SIZES.items()
        },
    }


def objects_per_image(objects: GroundTruth) -> np.ndarray:
    """(N,) objects of each image."""
    return np.bincount(objects.image, minlength=len(objects.image_ids))


def sides_of(objects: GroundTruth) -> np.ndarray:
    """(G, 2) width and height of the boxes."""
    return np.array([box[2:] for box in objects.boxes], dtype=np.float64).reshape(-1, 2)


def draw_stats(stats: Dict[str, Any], data: Dict[str, Any], name: str, path: Path) -> None:
    """Draw class frequencies, objects an image and object sizes into one PNG."""
    figure, (left, middle, right) = new_figure((13, 4.2), 1, 3, width_ratios=(2, 1, 1))
    rows = stats["classes"]
    left.bar(range(len(rows)), [row["images"] for row in rows], color=BLUE, width=0.9)
    if len(rows) <= 60:
        left.set_xticks(range(len(rows)), [plain(r["name"], 24) for r in rows], rotation=90,
                        fontsize=7)  # fmt: skip
    if rows and rows[0]["images"] > 20 * max(rows[-1]["images"], 1):
        left.set_yscale("log")
    title(left, f"Images with each of {len(rows)} classes", y="images")
    truth = truth_of(data)
    objects = truth.select(~truth.crowd)
    counts = objects_per_image(objects)
    most = stats["objects_per_image"]["largest"]
    middle.hist(counts, bins=np.arange(-0.5, most + 1) if most <= 60 else 40, color=GREEN)
    title(middle, "Objects in an image", "objects", "images")
    right.hist(np.sqrt(np.maximum(sides_of(objects).prod(axis=1), 0)), bins=40, color=ORANGE)
    for limit in (32, 96):
        right.axvline(limit, color=BLACK, lw=0.8, ls=":")
    title(right, "Size of the objects (dotted: 32, 96)", "root of the box's area (px)", "objects")
    figure.suptitle(
        f"{plain(name, 80)}: {stats['images']} images, {stats['objects']} objects", fontsize=11
    )
    save_figure(figure, path)
