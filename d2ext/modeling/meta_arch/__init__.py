"""Detectors."""

from .atss import ATSS
from .dual_weighting import DualWeightingFCOS
from .fcos import ExtFCOS
from .retinanet import ExtRetinaNet
from .yolox import YOLOX

__all__ = ["ATSS", "YOLOX", "DualWeightingFCOS", "ExtFCOS", "ExtRetinaNet"]
