"""Detectors."""

from .atss import ATSS
from .dual_weighting import DualWeightingFCOS
from .fcos import ExtFCOS
from .retinanet import ExtRetinaNet

__all__ = ["ATSS", "DualWeightingFCOS", "ExtFCOS", "ExtRetinaNet"]
