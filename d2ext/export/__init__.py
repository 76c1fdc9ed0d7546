"""Detectors for places without d2ext: TorchScript, ONNX and ``torch.export``."""

from .. import _detectron2  # noqa: F401  (first: it may be missing)
from .check import CHECK_SIZES, Difference, compare, load_exported
from .detector import EXPORTABLE, InferenceDetector
from .formats import export_onnx, export_program, export_torchscript, trace_two_stage

__all__ = [
    "CHECK_SIZES",
    "EXPORTABLE",
    "Difference",
    "InferenceDetector",
    "compare",
    "export_onnx",
    "export_program",
    "export_torchscript",
    "load_exported",
    "trace_two_stage",
]
