"""Precomputed proposals, from files that are only read for their arrays."""

from typing import Any, Dict, List

from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from d2ext.safe_load import load_arrays

__all__ = ["add_proposals"]

# What files of the first Detectron call them.
_OLD_NAMES = {"indexes": "ids", "scores": "objectness_logits"}


def add_proposals(dicts: List[Dict[str, Any]], path: str) -> None:
    """Give each dataset dict its proposals, in place, as Detectron2 does.

    Detectron2 reads the file, a pickle, with everything in it.

    Args:
        dicts: in Detectron2's format, with "image_id".
        path: a pickled dict with "ids", "boxes" and "objectness_logits", one entry an image.
    """
    with PathManager.open(path, "rb") as stream:
        content = load_arrays(stream, path)
    content = {_OLD_NAMES.get(key, key): value for key, value in content.items()}
    place = {str(name): k for k, name in enumerate(content["ids"])}
    mode = BoxMode(content.get("bbox_mode", BoxMode.XYXY_ABS))
    for item in dicts:
        if str(item["image_id"]) not in place:
            raise ValueError(
                f"{path} has no proposals for image {item['image_id']}; compute them for every "
                "image of the data set."
            )
        k = place[str(item["image_id"])]
        order = content["objectness_logits"][k].argsort()[::-1]
        item["proposal_boxes"] = content["boxes"][k][order]
        item["proposal_objectness_logits"] = content["objectness_logits"][k][order]
        item["proposal_bbox_mode"] = mode
