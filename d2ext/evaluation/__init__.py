"""Evaluation on COCO, LVIS and PASCAL VOC, on arrays and a fast back end."""

from .. import _detectron2  # noqa: F401  (first: it may be missing)
from .build import build_evaluator, evaluator_types
from .coco_evaluation import COCOEvaluator
from .lvis_evaluation import LVISEvaluator
from .pascal_voc_evaluation import PascalVOCDetectionEvaluator
from .predictions import Predictions

__all__ = [
    "COCOEvaluator",
    "LVISEvaluator",
    "PascalVOCDetectionEvaluator",
    "Predictions",
    "build_evaluator",
    "evaluator_types",
]
