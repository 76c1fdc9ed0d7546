"""Say where a data set that is missing on disk is expected."""

import difflib
import os
from typing import List

from detectron2.data import DatasetCatalog, MetadataCatalog

from .builtin import BUILTIN_SHAPES

__all__ = ["require_dataset"]


def require_dataset(*names: str) -> None:
    """Check that data sets can be loaded before anything expensive is built.

    Args:
        names: names in Detectron2's catalogs, e.g. those of ``cfg.DATASETS.TRAIN``.

    Raises:
        KeyError: if a name is not registered.
        FileNotFoundError: if a data set's files are missing.
    """
    for name in names:
        if name not in DatasetCatalog.list():
            near = difflib.get_close_matches(name, DatasetCatalog.list(), n=3)
            hint = f"did you mean {' or '.join(near)}?" if near else "register it first."
            raise KeyError(f"The data set '{name}' is not registered; {hint}")
        if name in _generated_names():
            continue
        missing = [path for path in _expected_paths(name) if not os.path.exists(path)]
        if missing:
            root = os.environ.get("DETECTRON2_DATASETS")
            setting = f"now {root}" if root else "unset, which means ./datasets"
            raise FileNotFoundError(
                f"The data set '{name}' is missing: expected {' and '.join(missing)}; put it "
                f"there or set the environment variable DETECTRON2_DATASETS ({setting}), or use "
                "d2ext_shapes_train and d2ext_shapes_val, which need no files."
            )


def _generated_names() -> List[str]:
    return [f"{s.folder}_{split}" for s in BUILTIN_SHAPES.values() for split, _ in s.splits]


def _expected_paths(name: str) -> List[str]:
    """What must exist, as far as the data set's metadata tells."""
    metadata = MetadataCatalog.get(name)
    if metadata.get("dirname") and metadata.get("split"):
        image_set = os.path.join(metadata.dirname, "ImageSets", "Main", f"{metadata.split}.txt")
        paths = [image_set, os.path.join(metadata.dirname, "JPEGImages")]
    else:
        paths = [metadata.get("json_file"), metadata.get("image_root")]
    return [os.path.abspath(path) for path in paths if path]
