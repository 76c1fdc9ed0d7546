"""Write drawn scenes as COCO json, LVIS v1 json or a PASCAL VOC tree."""

import json
import math
import os
import xml.etree.ElementTree as ET
from collections import Counter, defaultdict
from typing import Dict, List, Mapping, NamedTuple, Optional, Sequence, Set

import numpy as np

from d2ext.ops.frequency import frequency_group

from .classes import ShapeClass
from .scene import SceneObject

__all__ = ["DrawnImage", "image_path", "write_coco", "write_lvis", "write_voc"]


class DrawnImage(NamedTuple):
    """One image of a split: its number from 1 on, its size and its objects."""

    number: int
    height: int
    width: int
    objects: List[SceneObject]


def image_path(form: str, split: str, number: int) -> str:
    """Where an image is inside the data set's folder."""
    if form == "voc":
        return f"JPEGImages/{_voc_id(split, number)}.jpg"
    return f"{split}/{number:06d}.jpg"


def _annotations(images: Sequence[DrawnImage]) -> List[dict]:
    """Annotations that COCO and LVIS share: box and polygons of the visible part."""
    annotations: List[dict] = []
    for image in images:
        for item in image.objects:
            x0, y0, x1, y1 = item.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": image.number,
                    "category_id": item.category + 1,
                    "bbox": [x0, y0, round(x1 - x0, 2), round(y1 - y0, 2)],
                    "area": round(item.area, 2),
                    "segmentation": [p.ravel().tolist() for p in item.polygons],
                }
            )
    return annotations


def _dump(content: dict, path: str) -> None:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as f:
        json.dump(content, f, separators=(",", ":"))


def _info(description: str) -> dict:
    return {"description": description, "version": "1.0", "contributor": "d2ext"}


def write_coco(
    root: str, split: str, images: Sequence[DrawnImage], classes: Sequence[ShapeClass]
) -> None:
    """Write ``annotations/instances_{split}.json``."""
    annotations = _annotations(images)
    for annotation in annotations:
        annotation["iscrowd"] = 0
    content = {
        "info": _info("d2ext shapes"),
        "licenses": [],
        "images": [
            {
                "id": image.number,
                "file_name": f"{image.number:06d}.jpg",
                "height": image.height,
                "width": image.width,
            }
            for image in images
        ],
        "annotations": annotations,
        "categories": [
            {"id": i + 1, "name": cls.name, "supercategory": cls.color}
            for i, cls in enumerate(classes)
        ],
    }
    _dump(content, f"{root}/annotations/instances_{split}.json")


# An absent class is verified to be absent in this share of the images, as LVIS verifies some.
_NEGATIVE_SHARE = 0.3


def write_lvis(
    root: str,
    split: str,
    images: Sequence[DrawnImage],
    classes: Sequence[ShapeClass],
    rng: np.random.Generator,
    groups: Optional[Sequence[str]] = None,
) -> None:
    """Write ``annotations/lvis_v1_{split}.json``.

    Args:
        root: folder of the data set.
        split: name of the split.
        images: its images.
        classes: all classes.
        rng: the source of randomness for what is left unsaid about an image.
        groups: "r", "c" or "f" for each class; by its number of images if not given.
    """
    records, kept = [], []
    for image in images:
        counts = Counter(item.category for item in image.objects)
        # As in LVIS, many objects of one class are not always all annotated.
        partly = [c for c, count in sorted(counts.items()) if count >= 3 and rng.random() < 0.5]
        last = {item.category: i for i, item in enumerate(image.objects)}
        missing = {last[c] for c in partly}
        objects = [item for i, item in enumerate(image.objects) if i not in missing]
        kept.append(image._replace(objects=objects))
        absent = np.flatnonzero(rng.random(len(classes)) < _NEGATIVE_SHARE).tolist()
        name = image_path("lvis", split, image.number)
        records.append(
            {
                "id": image.number,
                "file_name": name,
                "coco_url": name,
                "height": image.height,
                "width": image.width,
                "neg_category_ids": [c + 1 for c in absent if c not in counts],
                "not_exhaustive_category_ids": [c + 1 for c in partly],
            }
        )
    annotations = _annotations(kept)
    content = {
        "info": _info("d2ext shapes, long-tailed"),
        "licenses": [],
        "images": records,
        "annotations": annotations,
        "categories": _lvis_categories(annotations, classes, groups),
    }
    _dump(content, f"{root}/annotations/lvis_v1_{split}.json")


def _lvis_categories(annotations, classes, groups) -> List[dict]:
    images_of: Dict[int, Set[int]] = defaultdict(set)
    instances_of: Dict[int, int] = Counter()
    for annotation in annotations:
        images_of[annotation["category_id"]].add(annotation["image_id"])
        instances_of[annotation["category_id"]] += 1
    categories = []
    for index, cls in enumerate(classes):
        image_count = len(images_of[index + 1])
        categories.append(
            {
                "id": index + 1,
                "name": cls.name,
                "synonyms": [cls.name],
                "synset": f"{cls.name}.n.01",
                "def": f"a {cls.fill} {cls.outline} in {cls.color}",
                "frequency": groups[index] if groups else frequency_group(image_count)[0],
                "image_count": image_count,
                "instance_count": instances_of[index + 1],
            }
        )
    return categories


def _voc_id(split: str, number: int) -> str:
    return f"{split}_{number:06d}"


# Objects that a PASCAL annotator would call difficult: mostly hidden, or tiny.
_DIFFICULT_VISIBLE, _DIFFICULT_SIDE = 0.5, 14.0


def write_voc(
    root: str, split: str, images: Sequence[DrawnImage], classes: Sequence[ShapeClass]
) -> None:
    """Write ``Annotations/*.xml`` and ``ImageSets/Main/{split}.txt``."""
    os.makedirs(f"{root}/Annotations", exist_ok=True)
    os.makedirs(f"{root}/ImageSets/Main", exist_ok=True)
    for image in images:
        tree = ET.Element("annotation")
        _add(tree, "folder", "JPEGImages")
        _add(tree, "filename", f"{_voc_id(split, image.number)}.jpg")
        _add_fields(tree, "size", {"width": image.width, "height": image.height, "depth": 3})
        _add(tree, "segmented", 0)
        for item in image.objects:
            _add_object(tree, item, classes[item.category].name)
        ET.ElementTree(tree).write(f"{root}/Annotations/{_voc_id(split, image.number)}.xml")
    with open(f"{root}/ImageSets/Main/{split}.txt", "w") as f:
        f.writelines(f"{_voc_id(split, image.number)}\n" for image in images)


def _add(parent: ET.Element, tag: str, text: object) -> None:
    ET.SubElement(parent, tag).text = str(text)


def _add_fields(parent: ET.Element, tag: str, fields: Mapping[str, object]) -> None:
    element = ET.SubElement(parent, tag)
    for key, value in fields.items():
        _add(element, key, value)


def _add_object(tree: ET.Element, item: SceneObject, name: str) -> None:
    x0, y0, x1, y1 = item.box
    tiny = max(x1 - x0, y1 - y0) < _DIFFICULT_SIDE
    element = ET.SubElement(tree, "object")
    _add(element, "name", name)
    _add(element, "pose", "Unspecified")
    _add(element, "truncated", int(item.truncated or item.occluded))
    _add(element, "difficult", int(item.visible < _DIFFICULT_VISIBLE or tiny))
    # Whole pixels, counted from 1, both ends inside: the first and last pixel of the object.
    box = {"xmin": int(x0) + 1, "ymin": int(y0) + 1, "xmax": math.ceil(x1), "ymax": math.ceil(y1)}
    _add_fields(element, "bndbox", box)
