"""LabelMe: a JSON file of shapes for each image."""

import math
import os
from collections import Counter
from typing import Any, Dict, List, Optional

from ..checks.json_text import read_json
from ..checks.kinds import BadDataError
from .records import Photo, Source, Thing
from .tree import Tree

__all__ = ["find_labelme", "read_labelme"]

_CIRCLE_POINTS = 32


def find_labelme(tree: Tree) -> List[str]:
    """JSON files with shapes; the first of a folder stands for the others."""
    files = tree.having(".json")
    for file in files[:3]:
        try:
            data = read_json(tree.path(file))
        except BadDataError:
            continue
        if isinstance(data, dict) and isinstance(data.get("shapes"), list):
            return files
    return []


def read_labelme(tree: Tree, files: List[str]) -> Source:
    """Read rectangles, polygons and circles; other shapes have no extent and are counted."""
    source = Source("LabelMe", [])
    unread: Counter = Counter()
    other, lost = 0, []
    for file in files:
        path = tree.path(file)
        data = read_json(path)
        if not isinstance(data, dict) or not isinstance(data.get("shapes"), list):
            other += 1
            continue
        stem = os.path.splitext(os.path.basename(file))[0]
        image = tree.image(file, str(data.get("imagePath") or stem), stem)
        if image is None:
            lost.append(file)
            continue
        width, height = data.get("imageWidth"), data.get("imageHeight")
        photo = Photo(tree.path(image), path, [], tree.split_of(image, file))
        if isinstance(width, int) and isinstance(height, int) and min(width, height) > 0:
            photo.size = (width, height)
        for number, shape in enumerate(data["shapes"], 1):
            kind = shape.get("shape_type", "polygon") if isinstance(shape, dict) else "broken"
            thing = _thing(shape, kind, f"{path}: shape {number}")
            if thing is None:
                unread[kind] += 1
            else:
                photo.things.append(thing)
        source.photos.append(photo)
    for kind, count in sorted(unread.items()):
        source.notes.append(f"{count} shapes of the kind '{kind}' have no box and are left out")
    if other:
        source.notes.append(f"{other} JSON files have no shapes and are left out")
    if lost:
        source.notes.append(f"{len(lost)} JSON files have no image, the first is {lost[0]}")
    return source


def _thing(shape: Dict[str, Any], kind: str, where: str) -> Optional[Thing]:
    if kind not in ("rectangle", "polygon", "circle"):
        return None
    name = shape.get("label")
    points: Any = shape.get("points")
    needed = 3 if kind == "polygon" else 2
    try:
        flat = [float(value) for x, y in points for value in (x, y)]
    except (TypeError, ValueError):
        raise BadDataError(f"{where}: 'points' are not pairs of numbers; write x and y.") from None
    if not isinstance(name, str) or not name:
        raise BadDataError(f"{where} has no 'label'; name its class.")
    if len(flat) < 2 * needed:
        raise BadDataError(
            f"{where} is a {kind} of {len(flat) // 2} points; {needed} are needed at least."
        )
    if kind == "circle":  # the centre and a point on it
        radius = math.hypot(flat[2] - flat[0], flat[3] - flat[1])
        turns = [2 * math.pi * k / _CIRCLE_POINTS for k in range(_CIRCLE_POINTS)]
        flat = [
            value
            for turn in turns
            for value in (flat[0] + radius * math.cos(turn), flat[1] + radius * math.sin(turn))
        ]
    xs, ys = flat[::2], flat[1::2]
    polygons: List[List[float]] = [] if kind == "rectangle" else [flat]
    return Thing(name, (min(xs), min(ys), max(xs), max(ys)), polygons)
