"""COCO's average precision for boxes and masks, on arrays and a fast back end.

Shapes: N images, C categories, M detections.
"""

import logging
import os
from typing import Dict, Optional, Sequence, Tuple

import numpy as np
from detectron2.utils.file_io import PathManager

from .array_evaluator import ArrayEvaluator
from .backends import Detections, evaluate_precision_recall, resolve_backend
from .ground_truth import GroundTruth, unique_names
from .metrics import log_metrics, metric_names, per_class_metrics, summary_metrics
from .predictions import Predictions
from .results import rank_predictions

__all__ = ["COCOEvaluator"]

logger = logging.getLogger(__name__)


class COCOEvaluator(ArrayEvaluator):
    """Drop-in for detectron2's ``COCOEvaluator`` for boxes and masks.

    The metrics are named and scaled as detectron2's; average recall is added as "AR@100". The data
    set needs a ``json_file`` in COCO's format, or must be in detectron2's standard format, which is
    converted in memory. Annotations are read on the main process, when first evaluated.
    """

    _default_max_dets = 100

    def __init__(
        self,
        dataset_name: str,
        tasks: Optional[Sequence[str]] = None,
        distributed: bool = True,
        output_dir: Optional[str] = None,
        *,
        max_dets_per_image: Optional[int] = None,
        backend: str = "auto",
    ):
        """
        Args:
            dataset_name: a registered data set.
            tasks: "bbox", "segm" or both. By default boxes, and masks if the model predicts them.
            distributed: see :class:`ArrayEvaluator`.
            output_dir: see :class:`ArrayEvaluator`.
            max_dets_per_image: how many detections count: 100 an image and category for COCO, 300
                an image for LVIS by default.
            backend: "auto" (faster-coco-eval if installed), "faster" or "reference" (pycocotools,
                lvis).
        """
        super().__init__(dataset_name, distributed, output_dir)
        unknown = sorted(set(tasks or ()) - {"bbox", "segm"})
        if unknown:
            raise ValueError(
                f"{type(self).__name__} evaluates 'bbox' and 'segm', not {unknown}; use "
                "detectron2's evaluator for other tasks."
            )
        self._tasks = None if tasks is None else tuple(tasks)
        self._max_dets = max_dets_per_image or self._default_max_dets
        self._backend = backend
        self._truth: Optional[GroundTruth] = None
        self._truth_loaded = False
        self._converted: Optional[dict] = None
        json_file = getattr(self._metadata, "json_file", None)
        if json_file is not None and not PathManager.isfile(json_file):
            raise FileNotFoundError(
                f"The annotations of '{dataset_name}' are expected at "
                f"'{os.path.abspath(json_file)}', which does not exist."
            )

    def _load_truth(self) -> Optional[GroundTruth]:
        if not self._truth_loaded:
            json_file = getattr(self._metadata, "json_file", None)
            if json_file is not None:
                path = PathManager.get_local_path(json_file)
                self._truth = GroundTruth.from_json(path, self._style)
            else:
                from detectron2.data.datasets.coco import convert_to_coco_dict

                # In memory: a cached file goes stale unnoticed when the data set changes.
                self._converted = convert_to_coco_dict(self._dataset_name)
                self._truth = GroundTruth.from_dict(self._converted)
            self._truth_loaded = True
        return self._truth

    def _annotations(self) -> Optional[dict]:
        self._load_truth()
        return self._converted

    def _id_of_class(self) -> Optional[Dict[int, int]]:
        """Class index -> category id, or None for the order of the ids in the annotations."""
        mapping = getattr(self._metadata, "thing_dataset_id_to_contiguous_id", None)
        if mapping is not None:
            return {index: category_id for category_id, index in mapping.items()}
        truth = self._load_truth()
        return None if truth is None else dict(enumerate(truth.category_ids))

    def _category_ids(self, classes: np.ndarray) -> np.ndarray:
        id_of_class = self._id_of_class()
        if id_of_class is None:
            return classes.astype(np.int64)
        present, inverse = np.unique(classes, return_inverse=True)
        outside = [c for c in present.tolist() if c not in id_of_class]
        if outside:
            raise ValueError(
                f"The model predicts class {outside[0]}, but '{self._dataset_name}' has "
                f"{len(id_of_class)} classes; set the model's NUM_CLASSES to that."
            )
        ids = np.asarray([id_of_class[c] for c in present.tolist()], dtype=np.int64)
        return ids[inverse.reshape(-1)]

    def _class_names(self, truth: GroundTruth) -> Dict[int, str]:
        """Rank of the category -> name, in the order of the model's classes."""
        rank = {category_id: r for r, category_id in enumerate(truth.category_ids)}
        things = self._metadata.get("thing_classes")
        known = [
            (index, category_id)
            for index, category_id in sorted((self._id_of_class() or {}).items())
            if category_id in rank
        ]
        names = [
            things[index]
            if things is not None and index < len(things)
            else truth.category_names[rank[category_id]]
            for index, category_id in known
        ]
        ids = [category_id for _, category_id in known]
        return {rank[key]: name for key, name in zip(ids, unique_names(names, ids))}

    def _evaluate_predictions(self, predictions: Predictions, img_ids) -> dict:
        truth = self._load_truth()
        if truth is None:
            logger.info(f"'{self._dataset_name}' has no annotations to evaluate on.")
            return {}
        asked = self._tasks or (("bbox", "segm") if predictions.has_masks else ("bbox",))
        tasks = [task for task in sorted(asked) if self._can_evaluate(task, truth, predictions)]
        if len(predictions) == 0:
            nan = {name: float("nan") for name in metric_names(self._style, self._max_dets)}
            return {task: dict(nan) for task in tasks}
        backend = resolve_backend(self._backend, self._style)
        truth, image, category = self._ranks(truth, predictions, img_ids)
        kept = np.flatnonzero((image >= 0) & (category >= 0))
        results = {}
        for task in tasks:
            detections = _as_detections(predictions, image, category, task).select(kept)
            results[task] = self._evaluate_task(task, truth, detections, backend)
        return results

    def _evaluate_task(self, task, truth, detections, backend) -> Dict[str, float]:
        result = evaluate_precision_recall(
            truth,
            detections,
            iou_type=task,
            style=self._style,
            max_dets=self._max_dets,
            backend=backend,
        )
        summary = summary_metrics(result, self._style, self._max_dets, truth.category_frequencies)
        names = self._class_names(truth)
        # A single class would repeat the average, under a second name.
        per_class = per_class_metrics(result, names) if len(names) > 1 else {}
        log_metrics(task, summary, per_class)
        return {**summary, **{f"AP-{name}": value for name, value in per_class.items()}}

    def _can_evaluate(self, task: str, truth: GroundTruth, predictions: Predictions) -> bool:
        """Masks need masks on both sides; without, the boxes are still worth a result."""
        if task == "bbox":
            return True
        if not predictions.has_masks:
            logger.warning("Masks are not evaluated: the model did not predict any.")
            return False
        missing = truth.num_without_segmentation
        if missing:
            logger.warning(
                f"Masks are not evaluated: {missing} of {len(truth)} annotations of "
                f"'{self._dataset_name}' have no segmentation."
            )
            return False
        truth.require_masks_in_reach(f"'{self._dataset_name}'")
        return True

    def _ranks(self, truth, predictions, img_ids) -> Tuple[GroundTruth, np.ndarray, np.ndarray]:
        """Ranks of each detection's image and category, -1 for those not to be evaluated."""
        image_rank = truth.image_rank
        unknown = [i for i in predictions.image_ids if i not in image_rank]
        if unknown:
            raise ValueError(
                f"Image {unknown[0]!r} is not among the images of '{self._dataset_name}'; evaluate "
                "on the data set that the predictions were made for."
            )
        if img_ids is not None:
            truth = truth.restricted_to(img_ids)
        wanted = self._category_ids(predictions.classes)
        return (truth, *rank_predictions(predictions, truth, wanted))


def _as_detections(predictions, image, category, task) -> Detections:
    """The columns one task needs; the area is the box's or the mask's, as in detectron2."""
    rles, boxes = None, predictions.boxes_xywh
    if task == "segm":
        import pycocotools.mask as mask_util

        rles = [predictions.rle(i) for i in range(len(predictions))]
        # One by one: pycocotools 2.0.11 fails on a list of more than 255 masks with NumPy 2.
        area = np.asarray([mask_util.area(rle) for rle in rles], dtype=np.float64)
    else:
        area = boxes[:, 2].astype(np.float64) * boxes[:, 3]
    return Detections(image, category, boxes, predictions.scores, area, rles)
