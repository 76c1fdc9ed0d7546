"""Precision and recall by faster-coco-eval, pycocotools or lvis, all fed the same numbers.

These packages take one dictionary an object and build a table over all images and categories,
24 million cells for LVIS. But the precision of a category depends on no other category. So they are
called for one category after the other, with only the images that have an object or a detection of
it: the result is the same, it takes less time, and dictionaries exist for one category at a time.

Shapes: N images, C categories, M detections, T IoU thresholds, R recall thresholds, A area ranges.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import io
import logging
from typing import Any, List, Optional, Set, Tuple

import numpy as np

from .ground_truth import GroundTruth

__all__ = ["Detections", "PrecisionRecall", "evaluate_precision_recall", "resolve_backend"]

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class Detections:
    """Detections whose images and categories are ranks in a :class:`GroundTruth`.

    Attributes:
        image, category: (M,) int64 ranks.
        boxes: (M, 4) float32 XYWH.
        scores: (M,) float32.
        area: (M,) float64; of the box or of the mask, depending on the task.
        rles: M run lengths for masks, None for boxes.
    """

    image: np.ndarray
    category: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    area: np.ndarray
    rles: Optional[List[dict]] = None

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, index: np.ndarray) -> "Detections":
        """The detections at ``index`` (positions, not a mask), in that order."""
        rles = None if self.rles is None else [self.rles[i] for i in index.tolist()]
        columns = (self.image, self.category, self.boxes, self.scores, self.area)
        image, category, boxes, scores, area = (column[index] for column in columns)
        return Detections(image, category, boxes, scores, area, rles)


@dataclasses.dataclass
class PrecisionRecall:
    """What all metrics derive from; -1 where a category has no objects.

    Attributes:
        precision: (T, R, C, A), the IoU thresholds being 0.50:0.05:0.95 and the area ranges
            all, small, medium, large.
        recall: (T, C, A).
    """

    precision: np.ndarray
    recall: np.ndarray


def resolve_backend(backend: str, style: str) -> str:
    """Choose the package to compute with, and log it once.

    Args:
        backend: "faster", "reference", or "auto" for faster-coco-eval where it is installed.
        style: "coco" or "lvis".

    Returns:
        "faster" or "reference".
    """
    if backend not in ("auto", "faster", "reference"):
        raise ValueError(
            f"Evaluation backend '{backend}' is unknown; use 'auto', 'faster' or 'reference'."
        )
    reference = "pycocotools" if style == "coco" else "lvis"
    version = None
    if backend != "reference":
        try:
            import faster_coco_eval

            version = faster_coco_eval.__version__
        except ImportError as error:
            if backend == "faster":
                raise ImportError(
                    "Evaluation with backend='faster' needs faster-coco-eval; run "
                    "'pip install faster-coco-eval' or use backend='auto'."
                ) from error
    name = reference if version is None else f"faster-coco-eval {version}"
    _log_once(f"{style.upper()} metrics are computed by {name}.")
    return "reference" if version is None else "faster"


def evaluate_precision_recall(
    truth: GroundTruth,
    detections: Detections,
    *,
    iou_type: str,
    style: str,
    max_dets: int,
    backend: str,
) -> PrecisionRecall:
    """Match detections to objects and accumulate precision and recall.

    Args:
        truth: the annotations.
        detections: the detections, of any images and categories of ``truth``.
        iou_type: "bbox" or "segm".
        style: "coco" counts at most ``max_dets`` detections per image and category; "lvis" applies
            LVIS' federated rules and counts at most ``max_dets`` per image over all categories.
        max_dets: see ``style``.
        backend: "faster" or "reference", from :func:`resolve_backend`.
    """
    objects = np.arange(len(truth))
    if style == "lvis":
        objects, detections = _apply_lvis_rules(truth, detections, max_dets)
        if backend == "faster" and truth.ignore.any():
            # faster-coco-eval replaces "ignore" by "iscrowd", which lvis-api does not know.
            backend = "reference"
            _log_once("Annotations with 'ignore' set: LVIS metrics are computed by lvis.")
    run = {
        ("coco", "faster"): _run_faster,
        ("lvis", "faster"): _run_faster,
        ("coco", "reference"): _run_pycocotools,
        ("lvis", "reference"): _run_lvis,
    }[style, backend]
    num_categories = len(truth.category_ids)
    precision = np.full((10, 101, num_categories, 4), -1.0)
    recall = np.full((10, num_categories, 4), -1.0)
    own_objects = _by_category(objects, truth.category[objects], num_categories)
    own_detections = _by_category(np.arange(len(detections)), detections.category, num_categories)
    for c, (own, chosen) in enumerate(zip(own_objects, own_detections)):
        if len(own):
            part = detections.select(chosen)
            result = run(_Category(truth, c, own, part, iou_type, style, max_dets))
            precision[:, :, c], recall[:, c] = result.precision[:, :, 0], result.recall[:, 0]
    return PrecisionRecall(precision, recall)


def _by_category(positions, category, num_categories) -> List[np.ndarray]:
    """Split positions by category, in their order, which decides between equal scores."""
    order = np.argsort(category, kind="stable")
    bounds = np.searchsorted(category[order], np.arange(1, num_categories))
    return np.split(positions[order], bounds)


def _apply_lvis_rules(truth, detections, max_dets) -> Tuple[np.ndarray, Detections]:
    """LVIS' selection of objects and detections, on columns before any dictionary exists.

    In lvis-api's order: the best ``max_dets`` of each image; nothing of zero area (its look-up of
    annotations drops those, silently); only categories that the image was annotated for.
    """
    # Rank within the image by score; ties keep their order, as in a stable sort.
    order = np.lexsort((-detections.scores, detections.image))
    image = detections.image[order]
    position = np.arange(len(order)) - np.searchsorted(image, image, side="left")
    kept = np.sort(order[position < max_dets])
    kept = kept[detections.area[kept] > 0]

    objects = np.flatnonzero(truth.area > 0)
    num_categories = len(truth.category_ids)
    judged = [truth.image[objects] * num_categories + truth.category[objects]]
    judged += [
        np.asarray(sorted(absent), dtype=np.int64) + rank * num_categories
        for rank, absent in enumerate(truth.negative)
        if absent
    ]
    cell = detections.image[kept] * num_categories + detections.category[kept]
    return objects, detections.select(kept[np.isin(cell, np.concatenate(judged))])


@dataclasses.dataclass
class _Category:
    """One category as the packages expect it: fresh dictionaries, ids from 1."""

    truth: GroundTruth
    category: int
    objects: np.ndarray
    detections: Detections
    iou_type: str
    style: str
    max_dets: int

    def datasets(self) -> Tuple[dict, dict]:
        """The annotations and the results, each as the content of a COCO file."""
        images = np.union1d(self.truth.image[self.objects], self.detections.image)
        # Rare, common and frequent are averaged by us; the packages only need a value.
        category = {"id": self.category, "name": str(self.category), "frequency": "f"}
        shared = {
            "images": [self._image(rank) for rank in images.tolist()],
            "categories": [category],
        }
        return (
            {**shared, "annotations": self._truth_annotations()},
            {**shared, "annotations": self._result_annotations()},
        )

    def _image(self, rank: int) -> dict:
        height, width = self.truth.image_sizes[rank]
        image = {"id": rank, "height": height, "width": width}
        if self.style == "lvis":
            image["neg_category_ids"] = self.truth.negative[rank]
            image["not_exhaustive_category_ids"] = self.truth.not_exhaustive[rank]
        return image

    def _truth_annotations(self) -> List[dict]:
        truth = self.truth
        annotations = []
        for number, k in enumerate(self.objects.tolist(), start=1):
            annotation = {
                "id": number,
                "image_id": int(truth.image[k]),
                "category_id": self.category,
                "bbox": truth.boxes[k],
                "area": float(truth.area[k]),
                # lvis-api knows no crowds.
                "iscrowd": int(truth.crowd[k]) if self.style == "coco" else 0,
            }
            if self.style == "lvis":
                annotation["ignore"] = int(truth.ignore[k])
            if self.iou_type == "segm":
                annotation["segmentation"] = truth.segmentations[k]
            annotations.append(annotation)
        return annotations

    def _result_annotations(self) -> List[dict]:
        part = self.detections
        columns = (part.image, part.boxes, part.scores, part.area)
        annotations = [
            {
                "id": number,
                "image_id": image,
                "category_id": self.category,
                "bbox": box,
                "score": score,
                "area": area,
                "iscrowd": 0,
            }
            for number, (image, box, score, area) in enumerate(
                zip(*(column.tolist() for column in columns)), start=1
            )
        ]
        if part.rles is not None:
            for annotation, rle in zip(annotations, part.rles):
                annotation["segmentation"] = rle
        return annotations


def _run_faster(task: _Category) -> PrecisionRecall:
    """COCO or LVIS style by faster-coco-eval."""
    from faster_coco_eval import COCO, COCOeval_faster

    truth, results = (COCO(dataset) for dataset in task.datasets())
    evaluation = COCOeval_faster(
        truth,
        results,
        iouType=task.iou_type,
        # Its progress lines would come once a category, and setup_logger shows debug messages.
        print_function=lambda *_: None,
        lvis_style=task.style == "lvis",
    )
    evaluation.params.maxDets = [task.max_dets]
    evaluation.evaluate()
    evaluation.accumulate()
    return PrecisionRecall(
        precision=np.asarray(evaluation.eval["precision"])[..., -1],
        recall=np.asarray(evaluation.eval["recall"])[..., -1],
    )


def _run_pycocotools(task: _Category) -> PrecisionRecall:
    """COCO style by pycocotools."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth, results = COCO(), COCO()
        truth.dataset, results.dataset = task.datasets()
        truth.createIndex()
        results.createIndex()
        evaluation = COCOeval(truth, results, iouType=task.iou_type)
        evaluation.params.maxDets = [task.max_dets]
        evaluation.evaluate()
        evaluation.accumulate()
    return PrecisionRecall(
        precision=evaluation.eval["precision"][..., -1],
        recall=evaluation.eval["recall"][..., -1],
    )


def _run_lvis(task: _Category) -> PrecisionRecall:
    """LVIS style by lvis-api."""
    from lvis import LVIS, LVISResults

    # The constructors only read files, and copy the data set once more for the results.
    truth, results = LVIS.__new__(LVIS), LVISResults.__new__(LVISResults)
    for api, dataset in zip((truth, results), task.datasets()):
        api.logger = logging.getLogger("lvis")
        api.dataset = dataset
        api._create_index()
    evaluation = lvis_eval()(truth, results, iou_type=task.iou_type)
    evaluation.params.max_dets = task.max_dets
    evaluation.evaluate()
    evaluation.accumulate()
    return PrecisionRecall(evaluation.eval["precision"], evaluation.eval["recall"])


class _NumpyWithFloat:
    """NumPy with the alias ``np.float`` that NumPy 1.24 removed."""

    float = float

    def __getattr__(self, name):
        return getattr(np, name)


@functools.lru_cache(maxsize=1)
def lvis_eval() -> type:
    """``LVISEval`` of lvis 0.5.3, the newest release, which needs the name ``np.float``.

    It comes from a second copy of the module ``lvis.eval``, which only this file knows: the
    module that others import is unchanged.
    """
    spec: Any = importlib.util.find_spec("lvis.eval")
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.np = _NumpyWithFloat()
    return module.LVISEval


def _log_once(message: str) -> None:
    """Log once in this process."""
    if message not in _LOGGED:
        _LOGGED.add(message)
        logger.info(message)


_LOGGED: Set[str] = set()
