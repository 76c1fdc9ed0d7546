"""What COCO, LVIS and VOC evaluation share: collecting, gathering and writing detections."""

import codecs
import json
import logging
import os
from collections import OrderedDict
from typing import Optional

import detectron2.utils.comm as comm
import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils.file_io import PathManager

from d2ext._files import atomic_write, writing
from d2ext.run_index import describe_set

from .ground_truth import GroundTruth
from .matching import match
from .predictions import PredictionBuffer, Predictions
from .results import detections_of_predictions
from .thresholds import FILE_NAME, best_thresholds

__all__ = ["ArrayEvaluator"]

logger = logging.getLogger(__name__)


class ArrayEvaluator(DatasetEvaluator):
    """Keeps detections as arrays, gathers them on the main process and hands them to a subclass.

    Subclasses implement :meth:`_evaluate_predictions`, :meth:`_category_ids`, :meth:`_load_truth`
    and, for data sets without a JSON file, :meth:`_annotations`.
    """

    _style = "coco"

    #: Name of the file with the detections in COCO's result format.
    results_file = "coco_instances_results.json"

    def __init__(
        self,
        dataset_name: str,
        distributed: bool = True,
        output_dir: Optional[str] = None,
    ):
        """
        Args:
            dataset_name: a registered data set.
            distributed: gather the detections of all ranks and evaluate on the main process;
                otherwise evaluate what this process has seen.
            output_dir: where to write the detections, as ``instances_predictions.npz`` (read by
                :meth:`Predictions.load`) and in COCO's result format, the scores with the highest
                F1, ``thresholds.json``, and what a report has to know, ``evaluation.json``. None
                writes nothing.
        """
        self._dataset_name = dataset_name
        self._metadata = MetadataCatalog.get(dataset_name)
        self._distributed = distributed
        self._output_dir = output_dir
        self._buffer = PredictionBuffer()

    def reset(self):
        """Forget all detections."""
        self._buffer = PredictionBuffer()

    def process(self, inputs, outputs):
        """Keep the detections of a batch.

        Args:
            inputs: a list of dicts with "image_id".
            outputs: a list of dicts with "instances".
        """
        for image, output in zip(inputs, outputs):
            if "instances" not in output:
                raise ValueError(
                    f"{type(self).__name__} evaluates 'instances', but the model returned "
                    f"{sorted(output)}; use detectron2's COCOEvaluator for other outputs."
                )
            self._buffer.add(image["image_id"], output["instances"])

    def evaluate(self, img_ids=None):
        """Evaluate what was processed since :meth:`reset`.

        Args:
            img_ids: ids of the images to evaluate on. All of the data set by default.

        Returns:
            OrderedDict: task -> {metric: percentage}; empty on all but the main process.
        """
        predictions = self._buffer.merged()
        if self._distributed:
            comm.synchronize()
            parts = comm.gather(predictions, dst=0)
            if not comm.is_main_process():
                return {}
            predictions = Predictions.merge(parts)
        if not predictions.image_ids:
            logger.warning(f"{type(self).__name__} did not receive any predictions.")
            return {}
        predictions = self._finite(predictions)
        if len(predictions) == 0:
            logger.warning(
                f"The model detected nothing in {len(predictions.image_ids)} images of "
                f"'{self._dataset_name}'."
            )
        if self._output_dir:
            self._write(predictions)
        return OrderedDict(self._evaluate_predictions(predictions, img_ids))

    def _evaluate_predictions(self, predictions: Predictions, img_ids) -> dict:
        """Return task -> {metric: percentage}."""
        raise NotImplementedError

    def _category_ids(self, classes: np.ndarray) -> np.ndarray:
        """The data set's category ids of contiguous class indices, (M,) -> (M,)."""
        raise NotImplementedError

    def _load_truth(self) -> Optional[GroundTruth]:
        """The annotations in the form of COCO; None if there are none."""
        raise NotImplementedError

    def _annotations(self) -> Optional[dict]:
        """The content of an annotation file for a data set that has none, or None."""
        return None

    def _finite(self, predictions: Predictions) -> Predictions:
        """Drop detections with NaN or infinity, which sorting and matching give no meaning to."""
        finite = np.isfinite(predictions.boxes).all(axis=1) & np.isfinite(predictions.scores)
        if finite.all():
            return predictions
        logger.warning(f"{(~finite).sum()} detections with NaN or infinity are left out.")
        return predictions.select(np.flatnonzero(finite))

    def _write(self, predictions: Predictions) -> None:
        """Write the two files described at ``output_dir``."""
        category_ids = self._category_ids(predictions.classes)
        folder = self._output_dir or ""
        results_path = os.path.join(folder, self.results_file)
        arrays_path = os.path.join(folder, "instances_predictions.npz")
        with writing(folder):
            PathManager.mkdirs(folder)
        with writing(arrays_path), _whole_file(arrays_path) as f:
            predictions.save(f)
        with writing(results_path), _whole_file(results_path) as f:
            predictions.write_json(codecs.getwriter("utf-8")(f), category_ids)
        logger.info(f"Saved detections to {results_path}.")
        truth = self._load_truth()
        if truth is not None:
            self._write_figures(predictions, truth)

    def _write_figures(self, predictions: Predictions, truth: GroundTruth) -> None:
        """Write the thresholds, and what a report needs in order to need no registered data."""
        about = describe_set(self._dataset_name)
        count = max(len(about["classes"]), int(predictions.classes.max(initial=-1)) + 1)
        ids = self._category_ids(np.arange(count)).tolist()
        annotations = self._annotations()
        if annotations is not None:
            self._write_json("annotations.json", annotations)
            about["json_file"] = "annotations.json"
        self._write_json("evaluation.json", {**about, "style": self._style, "category_ids": ids})
        category = self._category_ids(predictions.classes)
        detections = detections_of_predictions(predictions, truth, category)
        verdict = match(truth, detections, style=self._style)
        thresholds = best_thresholds(
            verdict, truth.category_ids, truth.category_names, self._dataset_name
        )
        path = os.path.join(self._output_dir or "", FILE_NAME)
        with writing(path), _whole_file(path) as f:
            f.write(thresholds.to_json())

    def _write_json(self, name: str, content: dict) -> None:
        path = os.path.join(self._output_dir or "", name)
        with writing(path), _whole_file(path) as f:
            f.write(json.dumps(content).encode())


def _whole_file(path: str):
    """A binary stream to a file that stands there complete or not at all. A remote file, which
    only Detectron2's file handlers know, is written as they do it."""
    if os.path.isdir(os.path.dirname(path)):
        return atomic_write(path)
    return PathManager.open(path, "wb")
