"""What is wrong with a data set as a whole: leaks between splits, classes that a split lacks,
objects that are drawn twice or too small, images that look unlabelled.

Shapes: G objects of one image.
"""

import os
from typing import Any, Dict, List, NamedTuple, Tuple

import numpy as np

from d2ext.data.checks import Problem
from d2ext.data.checks.json_file import file_name, guess_form
from d2ext.data.sources.duplicates import MAX_COMPARED, fingerprints, near_duplicates

__all__ = ["Split", "check_sets"]

# Two boxes of one class that overlap by more are one object drawn twice.
_SAME_BOX = 0.9
# Pixels that the shorter side of an object should have: half a cell of the finest feature map.
_TINY = 4.0


class Split(NamedTuple):
    """One split in COCO's form.

    Attributes:
        name: such as "train".
        data: the content of its file.
        image_root: folder of its images; "" if that is not known.
    """

    name: str
    data: Dict[str, Any]
    image_root: str


def check_sets(splits: List[Split], longest: int) -> Tuple[List[Problem], List[str]]:
    """Check splits of one data set beside each other.

    Args:
        splits: whose entries were found good.
        longest: the longer side that images are resized to.

    Returns:
        findings, and sentences about what was not checked
    """
    found: List[Problem] = []
    for split in splits:
        found += _absent_classes(split, splits)
        found += _objects(split, longest)
    duplicates, skipped = _near_duplicates(splits)
    return found + duplicates, skipped


def _absent_classes(split: Split, splits: List[Split]) -> List[Problem]:
    if len(splits) < 2:
        return []
    there = {row["category_id"] for row in split.data["annotations"]}
    elsewhere = {a["category_id"] for other in splits for a in other.data["annotations"]}
    return [
        Problem("class absent from a split", split.name, f"no object of the class '{row['name']}'")
        for row in split.data["categories"]
        if row["id"] in elsewhere - there
    ]


def _objects(split: Split, longest: int) -> List[Problem]:
    """Boxes drawn twice, tiny ones, and images without any."""
    form = guess_form(split.data)
    by_image: Dict[Any, List[Dict[str, Any]]] = {row["id"]: [] for row in split.data["images"]}
    for row in split.data["annotations"]:
        if row["image_id"] in by_image and not row.get("iscrowd", 0):
            by_image[row["image_id"]].append(row)
    found, empty = [], []
    for image in split.data["images"]:
        rows, name = by_image[image["id"]], file_name(image, form)
        if not rows:
            empty.append(name)
            continue
        boxes = np.asarray([row["bbox"] for row in rows], dtype=np.float64)
        labels = np.asarray([row["category_id"] for row in rows])
        for a, b in _same_boxes(boxes, labels):
            detail = f"annotation ids {rows[a]['id']} and {rows[b]['id']} are one object"
            found.append(Problem("near-duplicate box", name, detail))
        scale = min(longest / max(image["width"], image["height"], 1), 1.0)
        sides = boxes[:, 2:].min(1) * scale
        for k in np.flatnonzero((sides < _TINY) & (sides > 0)):
            detail = (
                f"annotation id {rows[k]['id']}: {sides[k]:.1f} px at a longer side of {longest}"
            )
            found.append(Problem("tiny object", name, detail))
    # Sets with a purpose for empty images have many; a few among labelled ones were forgotten.
    if empty and len(empty) < 0.1 * len(split.data["images"]):
        found += [Problem("looks unlabelled", name, "no object") for name in empty]
    return found


def _same_boxes(boxes: np.ndarray, labels: np.ndarray) -> List[Tuple[int, int]]:
    low, high = boxes[:, None, :2], boxes[:, None, :2] + boxes[:, None, 2:]
    both = np.minimum(high, high.swapaxes(0, 1)) - np.maximum(low, low.swapaxes(0, 1))
    both = both.clip(min=0).prod(-1)
    area = boxes[:, 2:].prod(1)
    overlap = both / np.maximum(area[:, None] + area[None] - both, 1e-9)
    same = (overlap > _SAME_BOX) & (labels[:, None] == labels[None])
    return [(int(a), int(b)) for a, b in zip(*np.nonzero(np.triu(same, 1)))]


def _near_duplicates(splits: List[Split]) -> Tuple[List[Problem], List[str]]:
    """Images that look the same, in two splits or in one."""
    files, owners, skipped = [], [], []
    for split in splits:
        if not split.image_root:
            count = len(split.data["images"])
            skipped.append(f"{count} images of {split.name} (their folder is not known)")
            continue
        form = guess_form(split.data)
        for image in split.data["images"]:
            path = os.path.join(split.image_root, file_name(image, form))
            if os.path.isfile(path):
                files.append(path)
                owners.append(split.name)
    if len(files) > MAX_COMPARED:
        skipped.append(f"{len(files) - MAX_COMPARED} images (for near-duplicates)")
        files = files[:MAX_COMPARED]
    found = []
    for a, b in near_duplicates(*fingerprints(files)):
        across = owners[a] != owners[b]
        kind = "near-duplicate across splits" if across else "near-duplicate image"
        told = f"looks like {files[b]}" + (f" ({owners[a]}, {owners[b]})" if across else "")
        found.append(Problem(kind, files[a], told))
    return found, skipped
