"""What a data set holds, as tables and charts of the page.

Shapes: N images, G objects, C classes.
"""

from typing import Any, Dict, List, Sequence, Tuple

import numpy as np

from d2ext._text import printable
from d2ext.analysis.annotation_check import KINDS, check_coco, summarize_problems
from d2ext.analysis.data_stats import objects_per_image, sides_of, stats_of

from .evaluation import AnnotatedSet
from .gallery import small_picture
from .training import chart

__all__ = ["data_section"]

# Rows and columns of the table of classes in one image.
_MOST_CLASSES = 30


def data_section(sets: Sequence[Tuple[str, AnnotatedSet]], pictures: int = 6) -> Dict[str, Any]:
    """Counts of each split, what classes share images, and what the checks found.

    Args:
        sets: "train" or "test", and the data set.
        pictures: images of findings that are shown.
    """
    stats = [(split, data, stats_of(data.truth)) for split, data in sets]
    return {
        "splits": [
            {
                "split": split,
                "name": data.name,
                **{k: row[k] for k in ("images", "images_without_objects", "objects", "crowds")},
                "per_image": row["objects_per_image"],
                "sizes": row["sizes"],
                "groups": row["frequency_groups"],
            }
            for split, data, row in stats
        ],
        "classes": _class_table(stats),
        "charts": [_histogram_of(stats, what) for what in ("per image", "size", "aspect")],
        "together": _co_occurrence(sets[0][1]) if sets else None,
        "findings": _findings(sets, pictures),
    }


def _class_table(stats: Sequence[Tuple[str, AnnotatedSet, Dict[str, Any]]]) -> List[List[Any]]:
    """Class name, then images and objects in each split."""
    counts = [{row["name"]: row for row in s["classes"]} for _, _, s in stats]
    names = dict.fromkeys(name for table in counts for name in table)
    nothing = {"images": 0, "objects": 0}
    return [
        [name, *(table.get(name, nothing)[k] for table in counts for k in ("images", "objects"))]
        for name in names
    ]


def _histogram_of(
    stats: Sequence[Tuple[str, AnnotatedSet, Dict[str, Any]]], what: str
) -> Dict[str, Any]:
    """Shares of objects or images by bins, a line a split."""
    values = [_values(data, what) for _, data, _ in stats]
    everything = np.concatenate([v for v in values if len(v)] or [np.zeros(1)])
    if what == "aspect":
        edges = np.geomspace(1 / 8, 8, 25)
        labels = ("Shape of the boxes", "width over height", "share of objects, %")
    elif what == "size":
        edges = np.geomspace(4, max(float(everything.max()), 8) * 1.01, 25)
        labels = ("Size of the boxes", "root of the area, px", "share of objects, %")
    else:
        most = int(everything.max())
        edges = np.arange(-0.5, most + 1) if most <= 40 else np.linspace(-0.5, most + 0.5, 30)
        labels = ("Objects in an image", "objects", "share of images, %")
    linear = what == "per image"
    x = (edges[1:] + edges[:-1]) / 2 if linear else np.sqrt(edges[1:] * edges[:-1])
    series = []
    for k, ((split, data, _), value) in enumerate(zip(stats, values)):
        inside = np.clip(value, edges[0] + 1e-9, edges[-1] - 1e-9)
        count = np.histogram(inside, bins=edges)[0]
        share = 100 * count / max(count.sum(), 1)
        series.append({"name": f"{split}: {data.name}", "run": k, "y": np.round(share, 3).tolist()})
    title, x_label, y_label = labels
    return chart(title, np.round(x, 4).tolist(), series, x_label=x_label, y_label=y_label,
                 range=[0, None], log=not linear)  # fmt: skip


def _values(data: AnnotatedSet, what: str) -> np.ndarray:
    objects = data.truth.select(~data.truth.crowd)
    if what == "per image":
        return objects_per_image(objects).astype(float)
    sides = np.maximum(sides_of(objects), 1e-6)
    return sides[:, 0] / sides[:, 1] if what == "aspect" else np.sqrt(sides.prod(axis=1))


def _co_occurrence(data: AnnotatedSet) -> Dict[str, Any]:
    """How many images have both of two classes; the diagonal has one class alone."""
    truth = data.truth
    there = np.zeros((len(truth.image_ids), len(truth.category_ids)), dtype=np.float32)
    there[truth.image, truth.category] = 1
    order = np.argsort(-there.sum(axis=0), kind="stable")[:_MOST_CLASSES]
    there = there[:, order]
    return {
        "set": data.name,
        "names": [truth.category_names[k] for k in order],
        "count": (there.T @ there).astype(int).tolist(),
    }


def _findings(sets: Sequence[Tuple[str, AnnotatedSet]], pictures: int) -> List[Dict[str, Any]]:
    """What ``d2ext data check`` finds, with images of the first ones."""
    rows = []
    for _, data in sets:
        problems = check_coco(data.data, str(data.image_root), path=data.name, max_opened=200)
        files = {str(path): path for path in data.files().values()}
        for kind, found in summarize_problems(problems).items():
            shown = []
            for file in dict.fromkeys(p.file for p in problems if p.kind == kind):
                path = files.get(file) or files.get(str(data.image_root / file))
                picture = small_picture(path, 320) if path and pictures > 0 else None
                if picture is not None:
                    shown.append({"name": printable(file), "src": picture})
                    pictures -= 1
                if len(shown) == 2:
                    break
            rows.append(
                {
                    "set": data.name,
                    "kind": kind,
                    "harm": KINDS[kind],
                    **{k: found[k] for k in ("count", "files")},
                    "examples": [printable(text) for text in found["examples"]],
                    "pictures": shown,
                }
            )
    return rows
