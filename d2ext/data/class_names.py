"""The classes of data sets: what they are, and whether two mean the same by a label."""

import json
import os
from functools import lru_cache
from typing import List, Optional, Sequence, Tuple

from detectron2.data import DatasetCatalog, MetadataCatalog

from d2ext.config.rules import shown

from .checks import BadDataError

__all__ = ["classes_of", "require_same_classes"]


def classes_of(name: str) -> Optional[List[str]]:
    """The classes of a registered data set, in the order of their labels; None if unknown.

    Detectron2 learns the classes of a COCO file when it loads the images; this reads them before.
    """
    if name not in DatasetCatalog.list():
        return None
    metadata = MetadataCatalog.get(name)
    known = metadata.get("thing_classes")
    if known:
        return list(known)
    file = metadata.get("json_file")
    if not isinstance(file, str) or not os.path.isfile(file):
        return None
    return _classes_in(file, os.path.getmtime(file))


@lru_cache(maxsize=16)
def _classes_in(file: str, _changed: float) -> Optional[List[str]]:
    try:
        with open(file, encoding="utf-8") as stream:
            rows: List[Tuple[int, str]] = [
                (row["id"], row["name"]) for row in json.load(stream)["categories"]
            ]
        return [name for _, name in sorted(rows)]
    # What is wrong with a file is said when it is loaded.
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def require_same_classes(
    first: str, expected: Optional[Sequence[str]], second: str, found: Optional[Sequence[str]]
) -> None:
    """Refuse two lists of classes that differ in names or order.

    Args:
        first, second: what has them, as at the start of a sentence.
        expected, found: their classes; None: not known, which is accepted.
    """
    if not expected or not found or list(expected) == list(found):
        return
    same = sorted(map(str, expected)) == sorted(map(str, found))
    what = "the same classes in another order" if same else "different classes"
    raise BadDataError(
        f"{first} and {second} have {what} ({shown(list(expected))} and {shown(list(found))}), so "
        "that a label means different things; give both the same list of classes, in one order."
    )
