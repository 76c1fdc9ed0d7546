"""Data sets in COCO's or LVIS' JSON form: dataset dicts from a file's content.

Detectron2's own loaders read the file themselves and drop or overwrite entries as they go: what
was in it could not be checked.
"""

import inspect
import logging
import os
from collections import defaultdict
from functools import partial
from operator import itemgetter
from typing import Any, Callable, Dict, List, NamedTuple, Optional

import pycocotools.mask as mask_util
from detectron2.data import MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json, register_coco_instances
from detectron2.data.datasets.lvis import (
    get_lvis_instances_meta,
    load_lvis_json,
    register_lvis_instances,
)
from detectron2.structures import BoxMode

from .masks import is_short

__all__ = ["JsonSet"]

logger = logging.getLogger(__name__)

_LOADERS = {"coco": load_coco_json, "lvis": load_lvis_json}
_REGISTERED = {"coco": register_coco_instances, "lvis": register_lvis_instances}
_COCO_KEYS = ("iscrowd", "bbox", "keypoints", "category_id")


class JsonSet(NamedTuple):
    """What Detectron2's JSON loaders are called with; called itself, it is such a call.

    Attributes:
        json_file: the annotation file.
        image_root: the folder of its images.
        form: "coco" or "lvis".
        name: the data set whose metadata get the file's classes; None to leave them alone.
        prepare: called before the file is read.
    """

    json_file: str
    image_root: str
    form: str
    name: Optional[str] = None
    prepare: Optional[Callable[[], Any]] = None

    @classmethod
    def of(cls, function: Callable) -> Optional["JsonSet"]:
        """What a registered function loads; None if it is not known to load just a JSON file.

        Known are a :class:`JsonSet`, what ``register_coco_instances`` and
        ``register_lvis_instances`` register, and a ``functools.partial`` of ``load_coco_json``
        or ``load_lvis_json``.
        """
        if isinstance(function, cls):
            return function
        for form, load in _LOADERS.items():
            if isinstance(function, partial) and function.func is load:
                bound = inspect.signature(load).bind(*function.args, **function.keywords).arguments
                if not bound.get("extra_annotation_keys"):
                    return cls(
                        bound["json_file"], bound["image_root"], form, bound.get("dataset_name")
                    )
            register = _REGISTERED[form]
            inner = f"{register.__qualname__}.<locals>.<lambda>"
            where = getattr(function, "__module__", ""), getattr(function, "__qualname__", "")
            if where == (register.__module__, inner):
                given = inspect.getclosurevars(function).nonlocals
                return cls(given["json_file"], given["image_root"], form, given["name"])
        return None

    def __call__(self) -> List[Dict[str, Any]]:
        if self.prepare is not None:
            self.prepare()
        return _LOADERS[self.form](self.json_file, self.image_root, self.name)

    def dicts(self, data: Dict[str, Any]) -> List[Dict[str, Any]]:
        """The dataset dicts that Detectron2's loader gives.

        Args:
            data: the file's content, without a problem of the level "refuse".
        """
        things = defaultdict(list)
        for thing in data.get("annotations", ()):
            things[thing["image_id"]].append(thing)
        read = _coco_dicts if self.form == "coco" else _lvis_dicts
        images = sorted(data["images"], key=itemgetter("id"))
        found = read(self, images, things, data["categories"])
        form = self.form.upper()
        logger.info(f"Loaded {len(found)} images in {form} format from {self.json_file}")
        return found


def _coco_dicts(
    source: JsonSet, images: List[Dict], things: Dict[Any, List[Dict]], categories: List[Dict]
) -> List[Dict[str, Any]]:
    labels = None
    if source.name is not None:
        rows = sorted(categories, key=itemgetter("id"))
        labels = {row["id"]: label for label, row in enumerate(rows)}
        metadata = MetadataCatalog.get(source.name)
        metadata.thing_classes = [row["name"] for row in rows]
        metadata.thing_dataset_id_to_contiguous_id = labels
        if list(labels) != list(range(1, len(rows) + 1)) and "coco" not in source.name:
            logger.warning(
                "Category ids in annotations are not in [1, #categories]! "
                "We'll apply a mapping for you."
            )
    return [
        {
            "file_name": os.path.join(source.image_root, image["file_name"]),
            "height": image["height"],
            "width": image["width"],
            "image_id": image["id"],
            "annotations": [
                _coco_object(thing, labels) for thing in things[image["id"]] if _is_usable(thing)
            ],
        }
        for image in images
    ]


def _is_usable(thing: Dict[str, Any]) -> bool:
    """Whether an object has no polygons, or one of three points or more."""
    mask = thing.get("segmentation")
    return not mask or isinstance(mask, dict) or not all(map(is_short, mask))


def _coco_object(thing: Dict[str, Any], labels: Optional[Dict[int, int]]) -> Dict[str, Any]:
    found = {key: thing[key] for key in _COCO_KEYS if key in thing}
    mask = thing.get("segmentation")
    if isinstance(mask, list) and mask:
        found["segmentation"] = [polygon for polygon in mask if not is_short(polygon)]
    elif mask:
        runs = isinstance(mask["counts"], list)
        found["segmentation"] = mask_util.frPyObjects(mask, *mask["size"]) if runs else mask
    points = thing.get("keypoints")
    if points:
        # Indices of pixels become coordinates; every third number is a visibility.
        found["keypoints"] = [v if k % 3 == 2 else v + 0.5 for k, v in enumerate(points)]
    found["bbox_mode"] = BoxMode.XYWH_ABS
    if labels is not None:
        found["category_id"] = labels[thing["category_id"]]
    return found


def _lvis_dicts(
    source: JsonSet, images: List[Dict], things: Dict[Any, List[Dict]], categories: List[Dict]
) -> List[Dict[str, Any]]:
    labels = {row["id"]: row["id"] - 1 for row in categories}
    if source.name is not None:  # the classes are Detectron2's list, and not the file's
        known = get_lvis_instances_meta(source.name)
        MetadataCatalog.get(source.name).set(**known)
        labels = known.get("thing_dataset_id_to_contiguous_id", labels)
    return [
        {
            "file_name": os.path.join(
                source.image_root + image["coco_url"].split("/")[-2],
                image["coco_url"].split("/")[-1],
            ),
            "height": image["height"],
            "width": image["width"],
            "not_exhaustive_category_ids": image["not_exhaustive_category_ids"],
            "neg_category_ids": image["neg_category_ids"],
            "image_id": image["id"],
            "annotations": [
                {
                    "bbox": thing["bbox"],
                    "bbox_mode": BoxMode.XYWH_ABS,
                    "category_id": labels[thing["category_id"]],
                    "segmentation": thing["segmentation"],
                }
                for thing in things[image["id"]]
            ],
        }
        for image in images
    ]
