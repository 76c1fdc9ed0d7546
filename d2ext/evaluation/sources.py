"""Annotations and detections by the names that people give: of a file, or of a registered set."""

import numbers
import os
from typing import Any, Dict, List

from detectron2.data import DatasetCatalog, MetadataCatalog

from d2ext._files import RunError, reason_of, sentence_of
from d2ext.data import require_dataset
from d2ext.data.checks.json_file import check_json
from d2ext.data.checks.json_text import read_json
from d2ext.data.checks.kinds import settle

from .results import coco_form, strangers

__all__ = ["annotation_source", "read_results", "require_same_set"]


def annotation_source(name: str) -> Dict[str, Any]:
    """A data set in COCO's form, by its JSON file or by the name of a registered one.

    Raises:
        RunError: if there are no annotations, or entries that lack what every one has.
    """
    if not os.path.isfile(name):
        try:
            require_dataset(name)
        except (KeyError, FileNotFoundError) as error:
            raise RunError(f"'{name}' is not a file. {sentence_of(error)}") from error
        metadata = MetadataCatalog.get(name)
        if "json_file" not in metadata.as_dict():
            return coco_form(DatasetCatalog.get(name), list(metadata.get("thing_classes", ())))
        if not os.path.isfile(metadata.json_file):
            DatasetCatalog.get(name)  # the built-in sets are drawn when they are read
        name = metadata.json_file
    data = read_json(name)
    # Counting needs COCO's fields only, which LVIS' files have too.
    found = check_json(data, name, "coco", loading=False).problems
    settle([p for p in found if p.kind in ("broken entry", "malformed box")], name)
    if "annotations" not in data:
        raise RunError(f"{name} has no 'annotations', as COCO's test sets; give a file with them.")
    return data


def read_results(path: str) -> List[Dict[str, Any]]:
    """Detections in COCO's results format: a list of dictionaries, one a detection.

    Raises:
        RunError: if the file holds anything else.
    """
    wanted = "give what an evaluation writes, such as coco_instances_results.json"
    try:
        results = read_json(path)
    except OSError as error:
        raise RunError(f"{path} cannot be read ({reason_of(error)}); {wanted}.") from error
    if not isinstance(results, list):
        raise RunError(
            f"{path} holds no list of detections; {wanted} (d2ext predict numbers its images in "
            "its own way, so that its file fits no data set)."
        )
    for index, item in enumerate(results):
        if not _is_detection(item):
            raise RunError(
                f"{path}: entry {index} of the list has no usable image_id, category_id, bbox "
                f"(four numbers) and score; {wanted}."
            )
    return results


def require_same_set(
    results: List[Dict[str, Any]], data: Dict[str, Any], results_name: str, data_name: str
) -> None:
    """Refuse detections that were made for another data set.

    Raises:
        RunError: if one is of an image or of a class that the data set lacks
    """
    for what, key in zip(("image", "category"), strangers(results, data)):
        if key is not None:
            raise RunError(
                f"{results_name} has detections of the {what} {key!r}, which {data_name} lacks; "
                "give the data set that they were made for."
            )


def _is_detection(item: Any) -> bool:
    if not isinstance(item, dict) or not isinstance(item.get("image_id"), (int, str)):
        return False
    box = item.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not isinstance(item.get("category_id"), int):
        return False
    return all(isinstance(value, numbers.Real) for value in (*box, item.get("score")))
