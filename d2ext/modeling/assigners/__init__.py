"""Who is responsible for which object: one file an assigner.

An assigner is a callable ``assigner(priors, targets, num_classes) -> Assignment``. None of them
loops over images or objects, none builds an (objects x priors x 4) tensor, and none makes the host
wait.
"""

from ..targets import Assignment, PackedTargets, Priors, pack_targets
from .atss import ATSSAssigner
from .center import CenterAssigner
from .iou import IoUAssigner
from .registry import ASSIGNER_REGISTRY

__all__ = [
    "ASSIGNER_REGISTRY",
    "ATSSAssigner",
    "Assignment",
    "CenterAssigner",
    "IoUAssigner",
    "PackedTargets",
    "Priors",
    "pack_targets",
]
