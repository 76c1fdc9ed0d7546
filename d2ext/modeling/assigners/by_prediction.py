"""Assigners that look at the predictions: see :mod:`d2ext.ops.prediction_assignment`.

Shapes: N images, R priors, C classes.
"""

from typing import Any, Dict

import torch

from d2ext.config import arguments
from d2ext.ops.prediction_assignment import (
    PredictionAssignment,
    dynamic_soft_label_assignment,
    simota_assignment,
    task_aligned_assignment,
)

from ..targets import Assignment, PackedTargets, Predictions, Priors
from .registry import ASSIGNER_REGISTRY, Assigner

__all__ = [
    "DynamicSoftLabelAssigner",
    "PredictionAssigner",
    "SimOTAAssigner",
    "TaskAlignedAssigner",
    "YOLOTaskAlignedAssigner",
]


class PredictionAssigner(Assigner):
    """Base class: hands predictions and objects to an operation, with its options.

    Attributes:
        section: the config's section with the options.
        weighs_boxes: whether a positive's box loss weighs as much as its target.
    """

    needs_predictions = True
    section = ""
    weighs_boxes = False

    def __init__(self, **options: Any):
        """
        Args:
            options: keyword arguments of the operation.
        """
        self.options = options

    @classmethod
    def from_config(cls, cfg: Any, *, num_anchors: int) -> Dict[str, Any]:
        return arguments(cfg, cls.section)

    @torch.no_grad()
    def __call__(
        self,
        priors: Priors,
        targets: PackedTargets,
        num_classes: int,
        predictions: Predictions,
    ) -> Assignment:
        """Assign R priors in each of N images; the targets are soft."""
        objects = (targets.boxes, targets.classes, targets.image)
        labels, matched, quality, target = self.assign(priors, predictions, *objects)
        weights = target if self.weighs_boxes else None
        return Assignment(labels, matched, quality, target, weights)

    def assign(
        self, priors: Priors, predictions: Predictions, *objects: torch.Tensor
    ) -> PredictionAssignment:
        """Call the operation; ``objects`` are boxes, classes and images."""
        raise NotImplementedError(f"{type(self).__name__} must define assign.")


def _probabilities(predictions: Predictions) -> torch.Tensor:
    """(N, R, C); with an objectness, the geometric mean of both, as in YOLOX."""
    scores = predictions.logits.float().sigmoid()
    if predictions.objectness is None:
        return scores
    return (scores * predictions.objectness.float().sigmoid()[..., None]).sqrt_()


@ASSIGNER_REGISTRY.register("tal_tood")
class TaskAlignedAssigner(PredictionAssigner):
    """Task-aligned assignment (Feng et al., TOOD, ICCV 2021)."""

    section = "MODEL.TAL_TOOD"
    weighs_boxes = True

    def assign(self, priors, predictions, *objects):
        return task_aligned_assignment(
            *(_probabilities(predictions), predictions.boxes, priors.centers, *objects),
            **self.options,
        )


@ASSIGNER_REGISTRY.register("tal_yolo")
class YOLOTaskAlignedAssigner(TaskAlignedAssigner):
    """Task-aligned assignment in the form of YOLO: CIoU, and only what lies inside competes."""

    section = "MODEL.TAL_YOLO"

    def __init__(self, *, topk2: int = 0, **options: Any):
        """
        Args:
            topk2: priors that an object keeps after conflicts; 0: all.
            options: further arguments of the operation.
        """
        super().__init__(form="yolo", topk2=topk2 or None, **options)


@ASSIGNER_REGISTRY.register("simota")
class SimOTAAssigner(PredictionAssigner):
    """SimOTA (Ge et al., YOLOX, 2021)."""

    section = "MODEL.SIMOTA"

    def assign(self, priors, predictions, *objects):
        seen = (_probabilities(predictions), predictions.boxes)
        return simota_assignment(*seen, priors.centers, priors.strides, *objects, **self.options)


@ASSIGNER_REGISTRY.register("dsl")
class DynamicSoftLabelAssigner(PredictionAssigner):
    """Dynamic soft labels (Lyu et al., RTMDet, 2022)."""

    section = "MODEL.DSL"

    def assign(self, priors, predictions, *objects):
        return dynamic_soft_label_assignment(
            *(predictions.logits, predictions.boxes, priors.centers, priors.strides, *objects),
            **self.options,
        )
