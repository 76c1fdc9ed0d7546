"""The built-in data sets and what helps with others."""

from .builtin import register_builtin_shapes
from .presence import require_dataset
from .store import dataset_folder
from .tiny import tiny_dataset

__all__ = ["dataset_folder", "register_builtin_shapes", "require_dataset", "tiny_dataset"]

register_builtin_shapes()
