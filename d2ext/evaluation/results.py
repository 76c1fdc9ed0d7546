"""Files of detections and annotations in COCO's or LVIS' form, as the arrays of an evaluation.

Shapes: M detections, C categories.
"""

from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from d2ext._files import RunError
from d2ext.data.checks.json_file import guess_form

from .backends import Detections, PrecisionRecall, evaluate_precision_recall, resolve_backend
from .ground_truth import GroundTruth
from .matching import MAX_DETECTIONS, Verdict, match
from .predictions import Predictions

__all__ = [
    "class_aps",
    "coco_form",
    "detections_of",
    "detections_of_predictions",
    "evaluate_results",
    "judge",
    "rank_predictions",
    "strangers",
    "truth_of",
]


def truth_of(data: Dict[str, Any]) -> GroundTruth:
    """The annotations of a data set in COCO's or LVIS' form.

    A file cut down to some of its images often keeps the annotations of the others. They are left
    out, as by pycocotools and lvis; counted, they would be objects that cannot be found.
    """
    truth = GroundTruth.from_dict(data)
    if truth is None:
        raise RunError("The annotation file has no 'annotations'; give one that has them.")
    return truth


def detections_of(results: Sequence[Dict[str, Any]], truth: GroundTruth) -> Detections:
    """Detections in COCO's results format; those of other images and categories are left out."""
    image_rank = truth.image_rank
    category_rank = {key: rank for rank, key in enumerate(truth.category_ids)}
    kept = [
        item
        for item in results
        if item["image_id"] in image_rank and item["category_id"] in category_rank
    ]
    boxes = np.array([item["bbox"] for item in kept], dtype=np.float64).reshape(-1, 4)
    return Detections(
        image=np.array([image_rank[item["image_id"]] for item in kept], dtype=np.int64),
        category=np.array([category_rank[item["category_id"]] for item in kept], dtype=np.int64),
        boxes=boxes,
        scores=np.array([item["score"] for item in kept], dtype=np.float64),
        area=boxes[:, 2] * boxes[:, 3],
    )


def judge(results: Sequence[Dict[str, Any]], data: Dict[str, Any], **how: Any) -> Verdict:
    """:func:`~d2ext.evaluation.matching.match` for the content of files.

    Args:
        results: detections in COCO's results format.
        data: a COCO or LVIS data set with ``images`` and ``annotations``. What belongs to none of
            its images is left out.
        how: arguments of :func:`~d2ext.evaluation.matching.match`.
    """
    truth = truth_of(data)
    return match(truth, detections_of(results, truth), style=guess_form(data), **how)


def evaluate_results(
    truth: GroundTruth,
    detections: Detections,
    *,
    style: str = "coco",
    max_detections: Optional[int] = None,
    backend: str = "auto",
) -> PrecisionRecall:
    """Precision and recall of boxes, by the back end of the evaluators.

    Args:
        truth: the annotations.
        detections: of its images and categories.
        style: "coco" or "lvis".
        max_detections: as many count; by default 100 of an image and class, 300 of an image in
            LVIS' form.
        backend: see :class:`~d2ext.evaluation.COCOEvaluator`.
    """
    return evaluate_precision_recall(
        truth,
        detections,
        iou_type="bbox",
        style=style,
        max_dets=MAX_DETECTIONS[style] if max_detections is None else max_detections,
        backend=resolve_backend(backend, style),
    )


def class_aps(result: PrecisionRecall, area: int = 0) -> List[Optional[float]]:
    """(C,) AP of each category in percent; None where it has no object.

    Args:
        result: of :func:`evaluate_results`.
        area: 0 for all objects, 1, 2, 3 for small, medium and large ones.
    """
    values = result.precision[..., area]
    means = [values[:, :, c][values[:, :, c] > -1] for c in range(values.shape[2])]
    return [float(v.mean() * 100) if v.size else None for v in means]


def strangers(
    results: Sequence[Dict[str, Any]], data: Dict[str, Any]
) -> Tuple[Optional[Any], Optional[Any]]:
    """The first image id and the first category id of detections that are not in a data set."""
    images = {image["id"] for image in data["images"]}
    categories = {category["id"] for category in data["categories"]}
    other_image = next((r["image_id"] for r in results if r["image_id"] not in images), None)
    other_class = next(
        (r["category_id"] for r in results if r["category_id"] not in categories), None
    )
    return other_image, other_class


def coco_form(dicts: List[Dict[str, Any]], names: List[str]) -> Dict[str, Any]:
    """Dataset dicts in COCO's form, with Detectron2's labels as ids of the categories."""
    from detectron2.structures import BoxMode

    keys = ("file_name", "width", "height")
    annotations: List[Dict[str, Any]] = []
    for item in dicts:
        for thing in item.get("annotations", ()):
            box = BoxMode.convert(list(thing["bbox"]), thing["bbox_mode"], BoxMode.XYWH_ABS)
            row = {"id": len(annotations) + 1, "image_id": item["image_id"], "bbox": box}
            row.update(category_id=thing["category_id"], iscrowd=thing.get("iscrowd", 0))
            annotations.append({**row, "area": box[2] * box[3]})
    return {
        "images": [{"id": d["image_id"], **{k: d[k] for k in keys if k in d}} for d in dicts],
        "annotations": annotations,
        "categories": [{"id": k, "name": name} for k, name in enumerate(names)],
    }


def rank_predictions(
    predictions: Predictions, truth: GroundTruth, category_ids: np.ndarray
) -> Tuple[np.ndarray, np.ndarray]:
    """(M,) ranks of images and categories of predictions; -1 for those not in the annotations.

    Args:
        predictions: the predictions.
        truth: the annotations.
        category_ids: (M,) the category id of each of them.
    """
    image_rank = truth.image_rank
    ranks = np.asarray([image_rank.get(i, -1) for i in predictions.image_ids], dtype=np.int64)
    known = np.asarray(truth.category_ids, dtype=np.int64)
    category = np.searchsorted(known, category_ids).clip(max=len(known) - 1)
    category = np.where(known[category] == category_ids, category, -1)
    return ranks[predictions.image_index], category


def detections_of_predictions(
    predictions: Predictions, truth: GroundTruth, category_ids: np.ndarray
) -> Detections:
    """The boxes of an evaluator's predictions; what belongs to no image or category is left out.

    The arguments are those of :func:`rank_predictions`.
    """
    image, category = rank_predictions(predictions, truth, category_ids)
    boxes = predictions.boxes_xywh
    area = boxes[:, 2].astype(np.float64) * boxes[:, 3]
    kept = np.flatnonzero((image >= 0) & (category >= 0))
    return Detections(image, category, boxes, predictions.scores, area).select(kept)
