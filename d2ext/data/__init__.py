"""The built-in data sets and what helps with others; the fast mapper and its batches."""

from .. import _detectron2  # noqa: F401  (first: it may be missing)
from .builtin import register_builtin_shapes
from .fast_mapper import FastMapper, why_not_fast
from .packed_batch import PackedBatch
from .presence import require_dataset
from .store import dataset_folder
from .tiny import tiny_dataset

__all__ = [
    "FastMapper",
    "PackedBatch",
    "dataset_folder",
    "register_builtin_shapes",
    "require_dataset",
    "tiny_dataset",
    "why_not_fast",
]

register_builtin_shapes()
