"""Does a detection's score say how well its box fits? Correlation of score and IoU.

    python -m d2ext.analysis.consistency coco_instances_results.json d2ext_shapes_val

Shapes: D detections, G objects of one image and class.
"""

import argparse
import json
from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple, Union

import numpy as np

from .coco_data import annotations_of, judged_classes

__all__ = ["annotation_file", "best_ious", "pearson", "score_iou_consistency", "spearman"]

Source = Union[str, Path, List[Dict[str, Any]], Dict[str, Any]]


def score_iou_consistency(
    results: Source,
    annotations: Source,
    *,
    min_score: float = 0.05,
    min_iou: float = 0.5,
) -> Dict[str, float]:
    """How far the scores of detections follow the IoU with the nearest object of their class.

    The numbers are given twice: for all detections, where a detection of nothing has IoU 0, and for
    those that hit something. The first also rewards telling objects from background; the second
    is about localisation alone.

    Args:
        results: detections in COCO's results format, or the JSON file that holds them.
        annotations: a COCO or LVIS data set with ``images`` and ``annotations``, or its JSON file.
            Crowd regions are no objects; a detection that hits none but lies in one is left out.
        min_score: detections below it are left out: a detector emits any number of them.
        min_iou: from which IoU on a detection hits something.

    Returns:
        ``pearson``, ``spearman``, ``gap`` (mean of ``|score - IoU|``) and ``detections`` (their
        number), and the same with the ending ``_hit``. A correlation is NaN where there are fewer
        than two detections or all scores or all IoUs are equal.
    """
    score, iou = best_ious(_load(results), _load(annotations), min_score=min_score, min_iou=min_iou)
    hit = iou >= min_iou
    summary: Dict[str, float] = {}
    for ending, keep in (("", slice(None)), ("_hit", hit)):
        s, u = score[keep], iou[keep]
        summary[f"pearson{ending}"] = pearson(s, u)
        summary[f"spearman{ending}"] = spearman(s, u)
        summary[f"gap{ending}"] = float(np.abs(s - u).mean()) if len(s) else float("nan")
        summary[f"detections{ending}"] = len(s)
    return summary


def best_ious(
    results: List[Dict[str, Any]],
    annotations: Dict[str, Any],
    *,
    min_score: float = 0.0,
    min_iou: float = 0.5,
) -> Tuple[np.ndarray, np.ndarray]:
    """Score of each detection and its highest IoU with an object of its class in its image.

    Args:
        results, annotations: as COCO's JSON files hold them, boxes as (x, y, width, height).
        min_score: detections below it are left out.
        min_iou: a detection that overlaps all objects by less, but lies by as much inside a crowd
            region or is of a class that the image is not annotated for (LVIS), is left out.

    Returns:
        Scores and IoUs, both (D,), by image and class; 0 where the image has no such object.
        Detections of images that are not in ``annotations`` are left out.
    """
    objects, crowds = defaultdict(list), defaultdict(list)
    for item in annotations_of(annotations):
        where = crowds if item.get("iscrowd") else objects
        where[item["image_id"], item["category_id"]].append(item["bbox"])
    found = defaultdict(list)
    for item in results:
        if item["score"] >= min_score:
            found[item["image_id"], item["category_id"]].append((*item["bbox"], item["score"]))
    judged = _judged_pairs(annotations["images"], objects, found)
    scores, ious = [np.zeros(0)], [np.zeros(0)]
    for key in sorted(judged):
        rows = np.asarray(found[key], dtype=np.float64)
        iou = _overlap(rows[:, :4], objects[key])
        in_crowd = _overlap(rows[:, :4], crowds[key], crowd=True) >= min_iou
        keep = (iou >= min_iou) | (judged[key] & ~in_crowd)
        scores.append(rows[keep, 4])
        ious.append(iou[keep])
    return np.concatenate(scores), np.concatenate(ious)


def _judged_pairs(
    images: Sequence[Dict[str, Any]], objects: Iterable[Tuple], found: Iterable[Tuple]
) -> Dict[Tuple, bool]:
    """Pairs of image and class in ``found`` -> whether a detection that hits nothing is wrong."""
    present = defaultdict(set)
    for image, category in objects:
        present[image].add(category)
    known = {image["id"]: judged_classes(image, present[image["id"]]) for image in images}
    return {
        (image, category): known[image] is None or category in known[image]
        for image, category in found
        if image in known
    }


def _overlap(boxes: np.ndarray, others: List[Sequence[float]], crowd: bool = False) -> np.ndarray:
    """(D,) highest IoU of each box with one of ``others``; its covered share with a crowd."""
    if not others:
        return np.zeros(len(boxes))
    others = np.asarray(others, dtype=np.float64)
    left_top = np.maximum(boxes[:, None, :2], others[None, :, :2])
    ends, other_ends = boxes[:, :2] + boxes[:, 2:], others[:, :2] + others[:, 2:]
    right_bottom = np.minimum(ends[:, None], other_ends[None])
    both = np.clip(right_bottom - left_top, 0, None).prod(axis=2)
    area = boxes[:, 2:].prod(axis=1)[:, None]
    whole = area if crowd else area + others[:, 2:].prod(axis=1)[None] - both
    return (both / np.maximum(whole, 1e-12)).max(axis=1)


def pearson(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation of two (D,) arrays; NaN where one of them does not vary."""
    if len(a) < 2:
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    size = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum() / size) if size > 0 else float("nan")


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's correlation of two (D,) arrays: Pearson's of their ranks."""
    return pearson(_ranks(a), _ranks(b))


def _ranks(values: np.ndarray) -> np.ndarray:
    """(D,) ranks from 0 on; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return ((last - counts + last - 1) / 2)[inverse.reshape(-1)]


def _load(source: Source) -> Any:
    if isinstance(source, (str, Path)):
        with open(source) as file:
            return json.load(file)
    return source


def annotation_file(name: str) -> str:
    """The file called ``name``, or that of the registered data set of this name."""
    if Path(name).is_file():
        return name
    from detectron2.data import DatasetCatalog, MetadataCatalog

    from .. import data  # noqa: F401  (registers the data sets)

    if name not in DatasetCatalog or "json_file" not in MetadataCatalog.get(name).as_dict():
        raise FileNotFoundError(
            f"'{name}' is neither a file nor a data set with a COCO JSON file; give one of them."
        )
    return MetadataCatalog.get(name).json_file


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(
        description="Correlation of the scores and IoUs of detections."
    )
    parser.add_argument("results", help="detections, e.g. coco_instances_results.json")
    parser.add_argument("annotations", help="name of the data set, or its COCO JSON file")
    parser.add_argument("--min-score", type=float, default=0.05)
    parser.add_argument("--min-iou", type=float, default=0.5)
    args = parser.parse_args(argv)
    summary = score_iou_consistency(
        args.results,
        annotation_file(args.annotations),
        min_score=args.min_score,
        min_iou=args.min_iou,
    )
    for name, value in summary.items():
        print(f"{name:16} {value:.4f}" if isinstance(value, float) else f"{name:16} {value}")


if __name__ == "__main__":
    main()
