"""Which objects and detections of a data set in COCO's or LVIS' form an evaluation counts."""

from collections import defaultdict
from typing import Any, Dict, Iterable, List, Optional, Sequence, Set

__all__ = ["MAX_DETECTIONS", "annotations_of", "area_of", "best_detections", "judged_classes"]

#: How many detections count: of an image and class in COCO's form, of an image in LVIS'.
MAX_DETECTIONS = {"coco": 100, "lvis": 300}


def annotations_of(data: Dict[str, Any]) -> List[Dict[str, Any]]:
    """The annotations of images (and of categories, where they are listed) that are there.

    A file cut down to some of its images often keeps the annotations of the others. pycocotools and
    lvis leave them out; counted, they would be objects that nobody can find.
    """
    images = {image["id"] for image in data["images"]}
    found = [item for item in data["annotations"] if item["image_id"] in images]
    if "categories" in data:
        classes = {category["id"] for category in data["categories"]}
        found = [item for item in found if item["category_id"] in classes]
    return found


def area_of(annotation: Dict[str, Any]) -> float:
    """An object's area, that of its box where none is given."""
    return annotation.get("area", annotation["bbox"][2] * annotation["bbox"][3])


def judged_classes(image: Dict[str, Any], present: Iterable[int]) -> Optional[Set[int]]:
    """The classes of which a wrong detection counts in an image; None: of all, as in COCO.

    LVIS annotates an image for some classes only: those that it has and those that are known to be
    absent. Of some of the first it does not annotate every object.

    Args:
        image: an entry of ``images``.
        present: classes of the image's objects.
    """
    if "neg_category_ids" not in image:
        return None
    known = set(image["neg_category_ids"]).union(present)
    return known.difference(image.get("not_exhaustive_category_ids", ()))


def best_detections(
    items: Sequence[Dict[str, Any]], form: str, limit: Optional[int] = None
) -> List[Dict[str, Any]]:
    """The detections of an image that count, by falling score.

    Args:
        items: all detections of the image.
        form: "coco" or "lvis".
        limit: as many are kept of each class, or of all together in LVIS' form; by default as many
            as pycocotools and lvis keep.
    """
    limit = MAX_DETECTIONS[form] if limit is None else limit
    # A stable sort, as COCO's.
    items = sorted(items, key=lambda item: -item["score"])
    if form == "lvis":
        # In lvis' order: what has no area takes a place before it is left out.
        return [item for item in items[:limit] if item["bbox"][2] * item["bbox"][3] > 0]
    if len(items) <= limit:
        return items
    kept: List[Dict[str, Any]] = []
    counts: Dict[int, int] = defaultdict(int)
    for item in items:
        counts[item["category_id"]] += 1
        if counts[item["category_id"]] <= limit:
            kept.append(item)
    return kept
