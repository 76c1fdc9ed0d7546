"""Detectors."""

from .atss import ATSS
from .fcos import ExtFCOS
from .retinanet import ExtRetinaNet

__all__ = ["ATSS", "ExtFCOS", "ExtRetinaNet"]
