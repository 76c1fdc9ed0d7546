"""Bad annotations of a data set, counted by kind and named by file.

Shapes: G objects.
"""

import math
import os
from collections import defaultdict
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional

__all__ = ["KINDS", "Problem", "check_coco", "check_dicts", "summarize_problems"]

#: Kind of problem -> what it does to a training.
KINDS = {
    "missing file": "the data loader fails when it comes to this image",
    "unreadable file": "the data loader fails when it comes to this image",
    "wrong image size": "Detectron2 refuses the image, or boxes lie in the wrong place",
    "no such image": "the object is never seen",
    "unknown class": "loading fails, or a label without meaning is learnt",
    "not finite": "losses become NaN",
    "zero area": "the object is dropped silently, or gives a division by zero",
    "outside": "the box lies outside its image; nothing can be learnt from it",
    "partly outside": "the box is clipped; annotation or image size may be wrong",
    "duplicate id": "evaluation counts only one of the objects",
}
#: Kinds that leave the training alive and right.
MILD = ("partly outside",)
# Pixels by which a box may leave its image: rounding in common annotation tools.
_TOLERANCE = 1.0


class Problem(NamedTuple):
    """One finding: its kind, the image's file and what was seen."""

    kind: str
    file: str
    detail: str


def check_coco(
    data: Dict[str, Any], image_root: Optional[str] = None, *, max_opened: int = 2000
) -> List[Problem]:
    """Check a data set in the form of COCO's or LVIS' JSON files.

    Args:
        data: with ``images``, ``annotations`` and ``categories``.
        image_root: folder of the images; None leaves the files unchecked.
        max_opened: image files whose size is compared with what the data set says, evenly chosen.
    """
    images = {image["id"]: image for image in data["images"]}
    names = {key: _file_name(image) for key, image in images.items()}
    known = {category["id"] for category in data["categories"]}
    found: List[Problem] = []
    seen = set()
    for item in data["annotations"]:
        image = images.get(item["image_id"])
        where = names.get(item["image_id"], f"image id {item['image_id']}")
        if item.get("id") is not None and item["id"] in seen:
            found.append(Problem("duplicate id", where, f"annotation id {item['id']}"))
        seen.add(item.get("id"))
        if image is None:
            found.append(Problem("no such image", where, f"annotation id {item.get('id')}"))
            continue
        if item["category_id"] not in known:
            found.append(Problem("unknown class", where, f"category id {item['category_id']}"))
        x, y, w, h = item["bbox"]
        size = (image.get("width"), image.get("height"))
        found += _check_box((x, y, x + w, y + h), size, where)
    if image_root is not None:
        sizes = {
            os.path.join(image_root, names[k]): (i.get("width"), i.get("height"))
            for k, i in images.items()
        }
        found += _check_files(sizes, max_opened)
    return found


def check_dicts(
    dicts: Iterable[Dict[str, Any]], num_classes: int, *, max_opened: int = 2000
) -> List[Problem]:
    """Check Detectron2's dataset dicts, whatever they were read from.

    Args:
        dicts: dataset dicts.
        num_classes: labels from it on are unknown.
        max_opened: as in :func:`check_coco`.
    """
    from detectron2.structures import BoxMode

    found: List[Problem] = []
    sizes = {}
    for item in dicts:
        size = (item.get("width"), item.get("height"))
        sizes[item["file_name"]] = size
        for thing in item.get("annotations", ()):
            box = BoxMode.convert(list(thing["bbox"]), thing["bbox_mode"], BoxMode.XYXY_ABS)
            if not 0 <= thing["category_id"] < num_classes:
                label = f"label {thing['category_id']} of {num_classes} classes"
                found.append(Problem("unknown class", item["file_name"], label))
            found += _check_box(box, size, item["file_name"])
    return found + _check_files(sizes, max_opened)


def _file_name(image: Dict[str, Any]) -> str:
    """COCO's ``file_name``; LVIS has the end of a URL instead."""
    if "file_name" in image:
        return image["file_name"]
    return "/".join(image.get("coco_url", f"image id {image['id']}").split("/")[-2:])


def _check_box(box: Any, size: Any, where: str) -> List[Problem]:
    shown = "box " + ", ".join(f"{float(v):g}" for v in box)
    if not all(math.isfinite(float(v)) for v in box):
        return [Problem("not finite", where, shown)]
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        return [Problem("zero area", where, shown)]
    width, height = size
    if not width or not height:
        return []
    shown += f" in {width} x {height}"
    if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
        return [Problem("outside", where, shown)]
    if min(x1, y1) < -_TOLERANCE or x2 > width + _TOLERANCE or y2 > height + _TOLERANCE:
        return [Problem("partly outside", where, shown)]
    return []


def _check_files(sizes: Dict[str, Any], max_opened: int) -> List[Problem]:
    from PIL import Image

    found: List[Problem] = []
    step = max(1, math.ceil(len(sizes) / max(max_opened, 1)))
    for index, (path, size) in enumerate(sizes.items()):
        if not os.path.isfile(path):
            found.append(Problem("missing file", path, "no such file"))
        elif max_opened > 0 and index % step == 0:
            try:
                with Image.open(path) as image:  # reads the header only
                    actual = image.size
            except OSError as error:
                found.append(Problem("unreadable file", path, str(error)))
                continue
            if all(size) and tuple(size) != actual:
                detail = f"{actual[0]} x {actual[1]}, annotated as {size[0]} x {size[1]}"
                found.append(Problem("wrong image size", path, detail))
    return found


def summarize_problems(problems: Iterable[Problem], examples: int = 5) -> Dict[str, Dict]:
    """By kind: ``count``, ``files`` (how many), and the first ``examples`` with their files."""
    by_kind: Dict[str, List[Problem]] = defaultdict(list)
    for problem in problems:
        by_kind[problem.kind].append(problem)
    order: Callable[[str], int] = list(KINDS).index
    return {
        kind: {
            "count": len(by_kind[kind]),
            "files": len({p.file for p in by_kind[kind]}),
            "examples": [f"{p.file}: {p.detail}" for p in by_kind[kind][:examples]],
        }
        for kind in sorted(by_kind, key=order)
    }
