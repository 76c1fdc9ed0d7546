"""Does a detection's score say how well its box fits? Correlation of score and IoU.

    python -m d2ext.analysis.consistency coco_instances_results.json d2ext_shapes_val

Shapes: D detections, G objects of one image and class.
"""

import argparse
import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from d2ext.evaluation.matching import Verdict
from d2ext.evaluation.results import judge

__all__ = [
    "annotation_file",
    "best_ious",
    "pearson",
    "score_iou_consistency",
    "scores_and_ious",
    "spearman",
    "summarize",
]

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
            Crowd regions are not objects; a detection that hits only a crowd is left out.
        min_score: detections below it are left out: a detector emits any number of them.
        min_iou: from which IoU on a detection hits something.

    Returns:
        ``pearson``, ``spearman``, ``gap`` (mean of ``|score - IoU|``) and ``detections`` (their
        number), and the same with the ending ``_hit``. A correlation is NaN where there are fewer
        than two detections or all scores or all IoUs are equal.
    """
    score, iou = best_ious(_load(results), _load(annotations), min_score=min_score, min_iou=min_iou)
    return summarize(score, iou, min_iou)


def summarize(score: np.ndarray, iou: np.ndarray, min_iou: float = 0.5) -> Dict[str, float]:
    """The figures of :func:`score_iou_consistency` from scores and IoUs, (D,) each."""
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
    if "categories" not in annotations:
        rows = [*results, *annotations["annotations"]]
        ids = sorted({row["category_id"] for row in rows})
        annotations = {**annotations, "categories": [{"id": i, "name": str(i)} for i in ids]}
    return scores_and_ious(
        judge(results, annotations, iou_threshold=min_iou, max_detections=len(results)), min_score
    )


def scores_and_ious(verdict: Verdict, min_score: float = 0.0) -> Tuple[np.ndarray, np.ndarray]:
    """:func:`best_ious` of detections that are judged already, at the IoU they are judged at."""
    kept = (verdict.kind != "ignored") | (verdict.best_iou >= verdict.iou_threshold)
    kept &= verdict.score >= min_score
    order = np.lexsort((verdict.category, verdict.image))
    order = order[kept[order]]
    return verdict.score[order], verdict.best_iou[order]


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
