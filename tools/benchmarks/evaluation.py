"""Evaluation: detections of a whole data set to AP, beside pycocotools, lvis and Detectron2."""

import argparse
import contextlib
import copy
import io
import json
import tempfile
import tracemalloc
from pathlib import Path
from typing import Any, Dict, List, Tuple

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation.coco_evaluation import COCOEvaluator as UpstreamCOCOEvaluator
from detectron2.evaluation.coco_evaluation import instances_to_coco_json
from detectron2.structures import Boxes, Instances

from d2ext.evaluation import COCOEvaluator, LVISEvaluator
from d2ext.evaluation.predictions import PredictionBuffer

from .runner import Case, Ratio

SIDE = 640
# LVIS v1's validation set, and the detections an image that its rules allow.
LVIS_IMAGES, LVIS_DETECTIONS, LVIS_CLASSES = 19809, 300, 1203


class DataSet:
    """Random annotations and detections that hit half of them, registered for its lifetime."""

    def __init__(self, images: int, detections: int, classes: int, style: str):
        self.style, self.classes = style, classes
        rng = np.random.default_rng(0)
        self.truth = _annotations(rng, images, classes, style)
        self.inputs = [{"image_id": image["id"]} for image in self.truth["images"]]
        self.outputs = _detections(rng, self.truth, detections, classes)
        self.folder = tempfile.TemporaryDirectory()
        file = Path(self.folder.name) / "truth.json"
        file.write_text(json.dumps(self.truth))
        self.name = f"benchmark_{style}_{images}_{classes}"
        DatasetCatalog.register(self.name, lambda: [])
        MetadataCatalog.get(self.name).set(
            json_file=str(file),
            thing_classes=[c["name"] for c in self.truth["categories"]],
            thing_dataset_id_to_contiguous_id={i + 1: i for i in range(classes)},
        )
        self.figures: Dict[str, float] = {}

    def close(self) -> None:
        DatasetCatalog.remove(self.name)
        MetadataCatalog.remove(self.name)
        self.folder.cleanup()

    def ours(self) -> None:
        """From the model's output to the figures."""
        kind = LVISEvaluator if self.style == "lvis" else COCOEvaluator
        self._keep("d2ext", self._evaluate(kind(self.name, tasks=("bbox",), distributed=False)))

    def upstream(self) -> None:
        """The same through Detectron2's evaluator, which calls pycocotools."""
        evaluator = UpstreamCOCOEvaluator(
            self.name, tasks=("bbox",), distributed=False, use_fast_impl=False
        )
        self._keep("Detectron2", self._evaluate(evaluator))

    def _evaluate(self, evaluator) -> float:
        evaluator.reset()
        with contextlib.redirect_stdout(io.StringIO()):
            evaluator.process(self.inputs, self.outputs)
            return evaluator.evaluate()["bbox"]["AP"]

    def results(self) -> List[Dict[str, Any]]:
        """COCO's result records, which the reference packages take."""
        records = []
        for image, output in zip(self.inputs, self.outputs):
            records += instances_to_coco_json(output["instances"], image["image_id"])
        for record in records:
            record["category_id"] += 1
        return records

    def pycocotools(self, results: List[Dict[str, Any]]) -> None:
        """pycocotools alone, from records that are there already."""
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval

        with contextlib.redirect_stdout(io.StringIO()):
            truth = COCO()
            truth.dataset = self.truth
            truth.createIndex()
            evaluation = COCOeval(truth, truth.loadRes(results), "bbox")
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
        self._keep("pycocotools", 100 * evaluation.stats[0])

    def lvis(self, results: List[Dict[str, Any]]) -> None:
        """lvis-api alone."""
        import lvis

        from d2ext.evaluation.backends import lvis_eval

        truth = lvis.LVIS(str(Path(self.folder.name) / "truth.json"))
        evaluation = lvis_eval()(truth, lvis.LVISResults(truth, results), "bbox")
        evaluation.run()
        self._keep("lvis", 100 * evaluation.get_results()["AP"])

    def _keep(self, name: str, figure: float) -> None:
        """All versions must find the same AP, or the comparison is worth nothing."""
        self.figures[name] = figure
        low, high = min(self.figures.values()), max(self.figures.values())
        if high - low > 1e-8:
            raise SystemExit(f"The versions of one evaluation disagree: {self.figures}.")


def _annotations(rng, images: int, classes: int, style: str) -> Dict[str, Any]:
    annotations = []
    for image in range(images):
        for box in _boxes(rng, 7).tolist():
            width, height = box[2] - box[0], box[3] - box[1]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image + 1,
                    "category_id": int(rng.integers(classes)) + 1,
                    "bbox": [box[0], box[1], width, height],
                    "area": width * height,
                    "iscrowd": 0,
                    "segmentation": [[box[0], box[1], box[2], box[1], box[2], box[3]]],
                }
            )
    return {
        "info": {},
        "images": [
            {
                "id": k + 1,
                "height": SIDE,
                "width": SIDE,
                "file_name": f"{k}.jpg",
                "neg_category_ids": rng.integers(1, classes + 1, 10).tolist(),
                "not_exhaustive_category_ids": [],
            }
            for k in range(images)
        ],
        "annotations": annotations,
        "categories": [
            {"id": c + 1, "name": f"class {c}", "frequency": "rcf"[c % 3], "image_count": 1}
            for c in range(classes)
        ],
    }


def _boxes(rng, count: int) -> np.ndarray:
    size = np.exp(rng.uniform(np.log(8), np.log(400), (count, 2)))
    corner = rng.uniform(0, 1, (count, 2)) * (SIDE - size)
    return np.concatenate([corner, corner + size], axis=1).round(2)


def _detections(rng, truth, per_image: int, classes: int) -> List[Dict[str, Instances]]:
    objects: Dict[int, List[Tuple[list, int]]] = {}
    for obj in truth["annotations"]:
        objects.setdefault(obj["image_id"], []).append((obj["bbox"], obj["category_id"] - 1))
    outputs = []
    for image in truth["images"]:
        boxes = _boxes(rng, per_image).astype(np.float32)
        labels = rng.integers(0, classes, per_image)
        for k, ((x, y, w, h), label) in enumerate(objects.get(image["id"], [])[:per_image]):
            boxes[k] = np.asarray([x, y, x + w, y + h]) + rng.normal(0, 0.08, 4) * [w, h, w, h]
            labels[k] = label
        instances = Instances((SIDE, SIDE))
        instances.pred_boxes = Boxes(torch.as_tensor(boxes))
        instances.scores = torch.as_tensor(rng.random(per_image, dtype=np.float32))
        instances.pred_classes = torch.as_tensor(labels)
        outputs.append({"instances": instances})
    return outputs


def cases(args: argparse.Namespace) -> List[Case]:
    small = args.quick
    coco = DataSet(20 if small else 1000, 100, 8 if small else 80, "coco")
    many = DataSet(10 if small else 1000, 100, 5 if small else LVIS_CLASSES, "coco")
    lvis = DataSet(10 if small else 500, 300, 5 if small else LVIS_CLASSES, "lvis")
    rounds = 1 if small else 3
    found = [_coco_case(data, f"COCO, {data.classes} classes", rounds) for data in (coco, many)]
    records = lvis.results()
    found.append(
        Case(
            f"LVIS, {lvis.classes} classes",
            {"d2ext": lvis.ours, "lvis": lambda: lvis.lvis(copy.deepcopy(records))},
            [Ratio("d2ext", "lvis", 0.2)],
            note=f"{len(lvis.inputs)} images x 300 detections",
            rounds=rounds,
            close=lvis.close,
        )
    )
    return found + [_memory_case(small)]


def _coco_case(data: DataSet, name: str, rounds: int) -> Case:
    records = data.results()
    return Case(
        name,
        {
            "d2ext": data.ours,
            "pycocotools": lambda: data.pycocotools(copy.copy(records)),
            "Detectron2": data.upstream,
        },
        [Ratio("d2ext", "pycocotools", 0.2), Ratio("d2ext", "Detectron2", 0.2)],
        note=f"{len(data.inputs)} images x 100 detections",
        rounds=rounds,
        close=data.close,
    )


def _memory_case(small: bool) -> Case:
    """What all detections on LVIS' validation set take in memory."""
    images = 20 if small else LVIS_IMAGES
    # Dictionaries of so many detections would not fit beside the rest; they grow by the image.
    sample = min(images, 500)
    rng = np.random.default_rng(0)
    truth = {"images": [{"id": k} for k in range(sample)], "annotations": []}
    outputs = _detections(rng, truth, LVIS_DETECTIONS, LVIS_CLASSES)

    def arrays() -> float:
        buffer = PredictionBuffer()

        def fill():
            for k in range(images):
                buffer.add(k, outputs[k % sample]["instances"])
            return buffer.merged()

        return _megabytes(fill)

    def dictionaries() -> float:
        def fill():
            return [instances_to_coco_json(o["instances"], k) for k, o in enumerate(outputs)]

        return _megabytes(fill) * images / sample

    return Case(
        "memory of LVIS' detections",
        {"d2ext": arrays, "Detectron2": dictionaries},
        [Ratio("d2ext", "Detectron2")],
        note=f"{images} images x 300; dictionaries measured on {sample} images and scaled",
        unit="MB",
    )


def _megabytes(make) -> float:
    """Peak memory while something is made and kept."""
    tracemalloc.start()
    kept = make()
    peak = tracemalloc.get_traced_memory()[1] / 1e6
    tracemalloc.stop()
    del kept
    return peak
