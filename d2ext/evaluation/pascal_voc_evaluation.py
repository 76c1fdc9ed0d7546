"""PASCAL VOC's average precision, matched for all images of a class at once.

Shapes: M detections and G objects of one class, K pairs of a detection and an object in its image.
"""

import dataclasses
import logging
import os
from collections import OrderedDict
from typing import Any, Dict, List, Optional

import numpy as np
from detectron2.utils.file_io import PathManager

from d2ext.safe_load import parse_xml

from .array_evaluator import ArrayEvaluator
from .boxes import paired_inclusive_iou
from .ground_truth import GroundTruth
from .metrics import log_metrics
from .predictions import Predictions
from .results import coco_form, truth_of

__all__ = ["PascalVOCDetectionEvaluator", "voc_average_precisions"]

logger = logging.getLogger(__name__)

_THRESHOLDS = tuple(range(50, 100, 5))


class PascalVOCDetectionEvaluator(ArrayEvaluator):
    """Drop-in for detectron2's class of this name, with the same figures.

    It, too, rounds scores to three and coordinates to one decimal, as in VOC's result files. A
    class without an object that counts is NaN and left out of the mean, where detectron2's gives 0
    or makes the mean NaN. The figure of each class is added as "AP-*".
    """

    results_file = "voc_instances_results.json"

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: Optional[str] = None,
        *,
        use_07_metric: Optional[bool] = None,
    ):
        """
        Args:
            dataset_name: a data set registered by detectron2's ``register_pascal_voc``.
            distributed: see :class:`ArrayEvaluator`.
            output_dir: see :class:`ArrayEvaluator`.
            use_07_metric: interpolate precision at 11 recalls, as VOC did until 2009. By default
                for data sets of the year 2007, as detectron2 does.
        """
        super().__init__(dataset_name, distributed, output_dir)
        meta = self._metadata
        self._class_names = list(meta.thing_classes)
        twice = [name for name in self._class_names if self._class_names.count(name) > 1]
        if twice:
            raise ValueError(
                f"'{dataset_name}' has the class {twice[0]!r} twice, and VOC's files know classes "
                "by name; give each class of thing_classes a name of its own."
            )
        self._annotation_dir = os.path.join(meta.dirname, "Annotations")
        self._image_set = os.path.join(meta.dirname, "ImageSets", "Main", f"{meta.split}.txt")
        if use_07_metric is None:
            use_07_metric = int(meta.get("year", 2012)) == 2007
        self._use_07_metric = use_07_metric
        if not PathManager.isfile(self._image_set):
            raise FileNotFoundError(
                f"The image list of '{dataset_name}' is expected at "
                f"'{os.path.abspath(self._image_set)}', which does not exist."
            )

    def _annotations(self) -> Optional[dict]:
        from detectron2.data import DatasetCatalog

        if self._dataset_name not in DatasetCatalog:
            return None  # evaluated from its metadata alone
        return coco_form(DatasetCatalog.get(self._dataset_name), self._class_names)

    def _load_truth(self) -> Optional[GroundTruth]:
        data = self._annotations()
        return None if data is None else truth_of(data)

    def _category_ids(self, classes: np.ndarray) -> np.ndarray:
        return classes.astype(np.int64)

    def _evaluate_predictions(self, predictions: Predictions, img_ids) -> dict:
        with PathManager.open(self._image_set) as f:
            image_ids = [line.strip() for line in f if line.strip()]
        rank = {image_id: i for i, image_id in enumerate(image_ids)}
        unknown = [i for i in predictions.image_ids if str(i) not in rank]
        if unknown:
            raise ValueError(
                f"Image {unknown[0]!r} is not in '{self._image_set}'; evaluate on the split that "
                "the predictions were made for."
            )
        wanted = set(image_ids) if img_ids is None else {str(i) for i in img_ids}
        truth = _load_annotations(
            self._annotation_dir, [(rank[i], i) for i in image_ids if i in wanted]
        )
        used = np.asarray([str(i) in wanted for i in predictions.image_ids], dtype=bool)
        ranks = np.asarray([rank[str(i)] for i in predictions.image_ids], dtype=np.int64)
        image = ranks[predictions.image_index]
        boxes, scores = _as_result_file(predictions)

        logger.info(
            f"Evaluating {self._dataset_name} by the {2007 if self._use_07_metric else 2012} "
            "metric; the official Matlab code may differ slightly."
        )
        per_class = np.full((len(self._class_names), len(_THRESHOLDS)), np.nan)
        for c, name in enumerate(self._class_names):
            chosen = np.flatnonzero((predictions.classes == c) & used[predictions.image_index])
            per_class[c] = voc_average_precisions(
                image[chosen],
                boxes[chosen],
                scores[chosen],
                truth.get(name, _Objects.empty()),
                use_07_metric=self._use_07_metric,
            )
        return {"bbox": self._results(per_class * 100)}

    def _results(self, per_class: np.ndarray) -> Dict[str, float]:
        """Average over the classes that have objects."""
        counted = ~np.isnan(per_class[:, 0])
        if not counted.all():
            absent = [name for name, ok in zip(self._class_names, counted) if not ok]
            logger.info(f"Classes without an object are left out of the mean: {absent}")
        nan = np.full(len(_THRESHOLDS), np.nan)
        mean = per_class[counted].mean(axis=0) if counted.any() else nan
        summary = OrderedDict(AP=float(mean.mean()), AP50=float(mean[0]), AP75=float(mean[5]))
        names = {n: float(row.mean()) for n, row in zip(self._class_names, per_class)}
        log_metrics("bbox", summary, names)
        summary.update({f"AP-{name}": value for name, value in names.items()})
        return summary


@dataclasses.dataclass
class _Objects:
    """Objects of one class, sorted by image: image rank (G,), boxes (G, 4), difficult (G,)."""

    image: np.ndarray
    boxes: np.ndarray
    difficult: np.ndarray

    @classmethod
    def empty(cls) -> "_Objects":
        return cls.stack([])

    @classmethod
    def stack(cls, rows: List[tuple]) -> "_Objects":
        """From rows (image rank, box, difficult), in the order of images."""
        return cls(
            image=np.asarray([row[0] for row in rows], dtype=np.int64),
            boxes=np.asarray([row[1] for row in rows], dtype=np.float64).reshape(-1, 4),
            difficult=np.asarray([row[2] for row in rows], dtype=bool),
        )


def _load_annotations(directory: str, images) -> Dict[str, _Objects]:
    """Read one XML file an image; class name -> objects.

    Args:
        directory: the folder "Annotations".
        images: pairs (rank, image id) in the order of ranks.
    """
    rows: Dict[str, list] = {}
    directory = PathManager.get_local_path(directory)
    for rank, image_id in images:
        tree = parse_xml(os.path.join(directory, f"{image_id}.xml"))
        for obj in tree.findall("object"):
            box: Any = obj.find("bndbox")
            corners = [float(box.findtext(tag)) for tag in ("xmin", "ymin", "xmax", "ymax")]
            difficult = bool(int(obj.findtext("difficult", "0")))
            rows.setdefault(str(obj.findtext("name")), []).append((rank, corners, difficult))
    return {name: _Objects.stack(objects) for name, objects in rows.items()}


def _as_result_file(predictions: Predictions):
    """Boxes (M, 4) and scores (M,) as VOC's result files hold them: 1-based and in few decimals."""
    boxes = predictions.boxes.copy()
    boxes[:, :2] += 1  # in float32, the inverse of loading the annotations
    decimal = np.asarray([float(f"{x:.1f}") for x in boxes.reshape(-1).tolist()])
    scores = np.asarray([float(f"{score:.3f}") for score in predictions.scores.tolist()])
    return decimal.reshape(-1, 4), scores


def voc_average_precisions(
    image: np.ndarray,
    boxes: np.ndarray,
    scores: np.ndarray,
    objects: _Objects,
    *,
    use_07_metric: bool,
) -> np.ndarray:
    """Average precision of one class at IoU 0.50:0.05:0.95; NaN if no object counts.

    Args:
        image: (M,) rank of each detection's image.
        boxes: (M, 4) XYXY, 1-based and inclusive.
        scores: (M,).
        objects: the annotations of the class.
        use_07_metric: see :class:`PascalVOCDetectionEvaluator`.
    """
    from detectron2.evaluation.pascal_voc_evaluation import voc_ap

    num_objects = np.count_nonzero(~objects.difficult)
    if num_objects == 0:
        return np.full(len(_THRESHOLDS), np.nan)
    # Not a stable sort: detectron2's own, so that equal scores fall in the same order.
    order = np.argsort(-scores)
    overlap, best = _best_overlaps(image[order], boxes[order], objects)
    values = []
    for threshold in _THRESHOLDS:
        matched = overlap > threshold / 100.0
        difficult = np.zeros(len(order), dtype=bool)
        difficult[matched] = objects.difficult[best[matched]]
        # The first detection to match an object is right, later ones are wrong.
        candidates = np.flatnonzero(matched & ~difficult)
        _, first = np.unique(best[candidates], return_index=True)
        right = np.zeros(len(order), dtype=bool)
        right[candidates[first]] = True
        true_positives = np.cumsum(right.astype(np.float64))
        false_positives = np.cumsum((~right & ~difficult).astype(np.float64))
        recall = true_positives / float(num_objects)
        counted = np.maximum(true_positives + false_positives, np.finfo(np.float64).eps)
        values.append(voc_ap(recall, true_positives / counted, use_07_metric))
    return np.asarray(values, dtype=np.float64)


def _best_overlaps(image, boxes, objects):
    """For each detection the largest IoU with an object of its image, and which; -inf if none.

    Works on the list of K pairs that share an image. Coordinates are inclusive: sides are one
    longer than their difference.
    """
    start = np.searchsorted(objects.image, image, side="left")
    count = np.searchsorted(objects.image, image, side="right") - start
    detection = np.repeat(np.arange(len(image)), count)
    within = np.arange(len(detection)) - np.repeat(np.cumsum(count) - count, count)
    pair = np.repeat(start, count) + within

    overlap = paired_inclusive_iou(boxes[detection], objects.boxes[pair])
    largest = np.full(len(image), -np.inf)
    np.maximum.at(largest, detection, overlap)
    best = np.full(len(image), -1, dtype=np.int64)
    top = np.flatnonzero(overlap == largest[detection])
    owner, first = np.unique(detection[top], return_index=True)
    best[owner] = pair[top[first]]
    return largest, best
