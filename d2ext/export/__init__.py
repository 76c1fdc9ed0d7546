"""Detectors for places without d2ext: ONNX, OpenVINO, TorchScript and ``torch.export``."""

from .. import _detectron2  # noqa: F401  (first: it may be missing)
from .check import CHECK_SIZES, Difference, ExactDetector, compare
from .folder import write_folder
from .formats import PRECISIONS, SUFFIXES, export, format_of
from .graphs import EXPORTABLE, InferenceGraph, graph_of
from .runtime import ExportedModel, as_input, is_exported, load_exported

__all__ = [
    "CHECK_SIZES",
    "EXPORTABLE",
    "PRECISIONS",
    "SUFFIXES",
    "Difference",
    "ExactDetector",
    "ExportedModel",
    "InferenceGraph",
    "as_input",
    "compare",
    "export",
    "format_of",
    "graph_of",
    "is_exported",
    "load_exported",
    "write_folder",
]
