"""Who is responsible for which object: one file an assigner.

An assigner is a callable ``assigner(priors, targets, num_classes) -> Assignment``; one that says
``needs_predictions = True`` is given the predictions, too. They do not loop over images or
objects, do not build an (objects x priors x 4) tensor, and only those that see predictions need a
host-device sync, one.
"""

from ..targets import Assignment, PackedTargets, Predictions, Priors, pack_targets
from .atss import ATSSAssigner
from .by_prediction import (
    DynamicSoftLabelAssigner,
    PredictionAssigner,
    SimOTAAssigner,
    TaskAlignedAssigner,
    YOLOTaskAlignedAssigner,
)
from .center import CenterAssigner
from .iou import IoUAssigner
from .registry import ASSIGNER_REGISTRY, Assigner, build_assigner, needs_predictions

__all__ = [
    "ASSIGNER_REGISTRY",
    "ATSSAssigner",
    "Assigner",
    "Assignment",
    "CenterAssigner",
    "DynamicSoftLabelAssigner",
    "IoUAssigner",
    "PackedTargets",
    "PredictionAssigner",
    "Predictions",
    "Priors",
    "SimOTAAssigner",
    "TaskAlignedAssigner",
    "YOLOTaskAlignedAssigner",
    "build_assigner",
    "needs_predictions",
    "pack_targets",
]
