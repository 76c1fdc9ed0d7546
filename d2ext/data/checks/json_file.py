"""Rules for COCO's and LVIS' JSON files, column by column, as most files are good.

Shapes: N images, C categories, G annotations.
"""

import contextlib
import numbers
from operator import itemgetter
from typing import Any, Dict, List, NamedTuple, Sequence, Tuple

import numpy as np

from d2ext._text import printable

from .boxes import box_faults, is_area
from .columns import Columns
from .kinds import KINDS, BadDataError, Problem, settle
from .masks import is_short, polygon_fault, reach, rle_fault

__all__ = [
    "Findings",
    "check_json",
    "check_shape",
    "file_name",
    "guess_form",
    "leave_out",
]

_LISTS = {"image": "images", "annotation": "annotations", "category": "categories"}


class Findings(NamedTuple):
    """What was found in a JSON file.

    Attributes:
        problems: all of it.
        drop: (G,) bool, the annotations that belong to a problem of the level "skip".
        cut: indices of annotations of which only some polygons are to be dropped.
    """

    problems: List[Problem]
    drop: np.ndarray
    cut: List[int]


def guess_form(data: Any) -> str:
    """ "lvis" if a file has something that only LVIS' files have, else "coco"."""
    try:
        if any("neg_category_ids" in image for image in data["images"]):
            return "lvis"
        return "lvis" if any("frequency" in row for row in data["categories"]) else "coco"
    except (KeyError, TypeError):
        return "coco"


def check_json(
    data: Any, path: str, form: str = "coco", *, deep: bool = False, loading: bool = True
) -> Findings:
    """Check the content of an annotation file; the images are not looked at.

    Args:
        data: the content.
        path: the file, for messages.
        form: "coco" or "lvis".
        deep: read run-length strings to their end as well, which takes some time.
        loading: whether each entry must also have what Detectron2's loader needs: file
            names, sizes, LVIS' masks. Evaluation does without.

    Raises:
        BadDataError: if it is not an annotation file at all.
    """
    check_shape(data, path, form)
    images, categories = data["images"], data["categories"]
    things = data.get("annotations", [])
    nothing = np.zeros(len(things), dtype=bool)
    problems = _broken_images(images, form, loading) + _broken_categories(categories, form)
    problems += _broken_annotations(things, form, loading)
    if problems:  # the rest relies on fields that are there
        return Findings(problems, nothing, [])
    names = [file_name(image, form) for image in images]
    problems += _repeated_images(images, names)
    problems += _repeated(categories, "category", "duplicate class id")
    problems += _repeated_names(categories)
    table = _Table(images, names, categories, things)
    if len(set(table.ids)) != len(table.ids):
        problems += _repeated(things, "annotation", "duplicate id")
    problems += table.find_unknown()
    problems += table.find_boxes()
    problems += table.find_areas()
    problems += table.find_polygons(deep)
    # Lists of runs are encoded when the file is loaded, strings when masks are used.
    problems += table.find_runs(
        lambda mask: rle_fault(mask) if deep or not isinstance(mask.get("counts"), str) else ""
    )
    return Findings(problems, table.drop, table.cut)


def leave_out(data: Dict[str, Any], findings: Findings, path: str) -> None:
    """Take what was found out of ``data``, in place.

    A file of which more than half is bad is refused: dropping would hide a mistake of its author.
    """
    things = data.get("annotations", [])
    skipped = [p for p in findings.problems if KINDS[p.kind].level == "skip"]
    strange = [p for p in skipped if p.kind != "no such image"]
    # Files cut down to some of the images often keep the other images' annotations.
    limit = len(things) // 2 if strange else len(things) - 1
    if things and findings.drop.sum() > limit:
        settle(strange or skipped, f"{path} (most annotations are bad)", bad_annotations="refuse")
    for index in findings.cut:
        pieces = [p for p in things[index]["segmentation"] if not is_short(p)]
        things[index] = {**things[index], "segmentation": pieces}
    if findings.drop.any():
        kept = np.flatnonzero(~findings.drop).tolist()
        data["annotations"] = [things[index] for index in kept]


# ------------------------------------------------------------------ shape of the file


def check_shape(data: Any, path: str, form: str) -> None:
    """Refuse what is not an annotation file at all."""
    if not isinstance(data, dict):
        kind = "a list, as results are" if isinstance(data, list) else f"a {type(data).__name__}"
        raise BadDataError(
            f"{path} holds {kind}, and not an object with 'images', 'annotations' and "
            "'categories'; give the annotation file."
        )
    # COCO's test sets have no annotations, and Detectron2 loads them.
    needed = ("images", "categories") + (("annotations",) if form == "lvis" else ())
    for key in needed:
        if key not in data:
            raise BadDataError(f"{path} has no '{key}'; its form is not that of {form.upper()}.")
    for key in _LISTS.values():
        if key in data and not isinstance(data[key], list):
            raise BadDataError(f"{path}: '{key}' is not a list; make it one.")
    for key in ("images", "categories"):
        if not data[key]:
            raise BadDataError(f"{path}: '{key}' is empty; list at least one.")


def _entry(what: str, index: int, row: Any) -> str:
    """How a message names an entry."""
    if isinstance(row, dict) and "id" in row:
        return f"{what} id {row['id']}"
    return f"{what} number {index} of the list"


def file_name(image: Dict[str, Any], form: str) -> str:
    """The file of an image below its folder: Detectron2 takes the end of the URL for LVIS."""
    url = image.get("coco_url")
    if isinstance(url, str) and (form == "lvis" or "file_name" not in image):
        return "/".join(url.split("/")[-2:])
    return image.get("file_name") or f"image id {image['id']}"


def _is_id(value: Any) -> bool:
    return isinstance(value, (int, str)) and not isinstance(value, bool)


def _is_side(value: Any) -> bool:
    is_number: bool = isinstance(value, numbers.Real)
    return is_number and value > 0 and value == value // 1


def _broken(what: str, index: int, row: Any, detail: str) -> Problem:
    name = row.get("file_name") if isinstance(row, dict) else None
    return Problem(
        "broken entry", name or f"'{_LISTS[what]}'", f"{_entry(what, index, row)} {detail}"
    )


def _broken_images(images: Sequence[Any], form: str, loading: bool) -> List[Problem]:
    found = []
    name_key = "coco_url" if form == "lvis" else "file_name"
    kind = type(images[0].get("id")) if isinstance(images[0], dict) else int
    for index, image in enumerate(images):
        if not isinstance(image, dict):
            detail = "is not an object"
        elif not _is_id(image.get("id")) or type(image["id"]) is not kind:
            detail = "has no 'id', or one of another type than the first image's"
        elif loading and (not isinstance(image.get(name_key), str) or not image[name_key]):
            detail = f"has no '{name_key}'"
        elif loading and not (_is_side(image.get("width")) and _is_side(image.get("height"))):
            detail = f"has width {image.get('width')!r} and height {image.get('height')!r}"
        elif form == "lvis" and not _has_lists(image):
            detail = "lacks the list 'neg_category_ids' or 'not_exhaustive_category_ids' of LVIS"
        else:
            continue
        found.append(_broken("image", index, image, detail))
    return found


def _has_lists(image: Dict[str, Any]) -> bool:
    keys = ("neg_category_ids", "not_exhaustive_category_ids")
    return all(isinstance(image.get(key), list) for key in keys)


def _broken_categories(categories: Sequence[Any], form: str) -> List[Problem]:
    found = []
    for index, row in enumerate(categories):
        if not isinstance(row, dict):
            detail = "is not an object"
        elif not _is_id(row.get("id")) or isinstance(row["id"], str):
            detail = "has no whole number as 'id'"
        elif not isinstance(row.get("name"), str) or not row["name"]:
            detail = "has no 'name'"
        elif form == "lvis" and row.get("frequency") not in ("r", "c", "f"):
            detail = f"has the frequency {row.get('frequency')!r}, and not r, c or f as in LVIS"
        else:
            continue
        found.append(_broken("category", index, row, detail))
    return found


def _broken_annotations(things: Sequence[Any], form: str, loading: bool) -> List[Problem]:
    keys = ("id", "image_id", "category_id", "bbox")
    try:
        list(map(itemgetter("bbox"), things))
        kinds = {kind for key in keys[:3] for kind in set(map(type, map(itemgetter(key), things)))}
        crowds = {thing.get("iscrowd", 0) for thing in things}
        ignored = {thing.get("ignore", 0) for thing in things} if form == "coco" else set()
        masks = {type(thing.get("segmentation")) for thing in things}
        drawn_all = form == "lvis" and loading
        allowed = {list} if drawn_all else {list, dict, type(None)}
        drawn = not drawn_all or all(thing["segmentation"] for thing in things)
        fine = kinds <= {int, str} and crowds <= {0, 1} and ignored <= {0} and masks <= allowed
        if fine and drawn:
            return []
    except (KeyError, TypeError, AttributeError):
        pass
    details = (_annotation_fault(thing, keys, form, loading) for thing in things)
    return [_broken("annotation", k, things[k], d) for k, d in enumerate(details) if d]


def _annotation_fault(thing: Any, keys: Sequence[str], form: str, loading: bool) -> str:
    if not isinstance(thing, dict):
        return "is not an object"
    for key in keys:
        if key not in thing:
            return f"has no '{key}'"
        if key != "bbox" and not _is_id(thing[key]):
            return f"has {thing[key]!r} as '{key}'"
    if thing.get("iscrowd", 0) not in (0, 1):
        return f"has {thing['iscrowd']!r} as 'iscrowd', and not 0 or 1"
    if form == "coco" and thing.get("ignore", 0) != 0:
        return "has 'ignore', which Detectron2 does not know; set 'iscrowd' instead"
    mask = thing.get("segmentation")
    if loading and form == "lvis" and not (isinstance(mask, list) and mask):
        return "has no polygons as 'segmentation', which LVIS' files have"
    if mask is not None and not isinstance(mask, (list, dict)):
        return f"has a {type(mask).__name__} as 'segmentation'"
    return ""


def _repeated(rows: Sequence[Any], what: str, kind: str) -> List[Problem]:
    seen, found = set(), []
    for index, row in enumerate(rows):
        if row["id"] in seen:
            found.append(Problem(kind, f"'{_LISTS[what]}'", _entry(what, index, row)))
        seen.add(row["id"])
    return found


def _repeated_names(categories: Sequence[Any]) -> List[Problem]:
    seen: Dict[str, Any] = {}
    found = []
    for row in categories:
        if row["name"] in seen:
            detail = f"category ids {seen[row['name']]} and {row['id']} are both '{row['name']}'"
            found.append(Problem("same class name", "'categories'", detail))
        seen.setdefault(row["name"], row["id"])
    return found


def _repeated_images(images: Sequence[Any], names: Sequence[str]) -> List[Problem]:
    found: List[Problem] = []
    ids: Dict[Any, str] = {}
    files: Dict[Any, str] = {}
    for image, name in zip(images, names):
        if image["id"] in ids:
            detail = f"image id {image['id']} is that of {ids[image['id']]}, too"
            found.append(Problem("duplicate image id", name, detail))
        elif name in files:
            detail = f"image id {image['id']} and image id {files[name]}"
            found.append(Problem("same file twice", name, detail))
        ids[image["id"]] = name
        files[name] = image["id"]
    return found


# ------------------------------------------------------------------ the annotations


def _look_up(rank: Dict[Any, int], key: str, things: List[Any]) -> np.ndarray:
    """(G,) the rank of each annotation's ``key``, -1 if it is unknown."""
    try:
        ranks = map(rank.__getitem__, map(itemgetter(key), things))
        return np.fromiter(ranks, np.int64, len(things))
    except KeyError:
        return np.fromiter((rank.get(t[key], -1) for t in things), np.int64, len(things))


def _corners(boxes: np.ndarray) -> np.ndarray:
    """XYXY of boxes (G, 4) in XYWH."""
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)


class _Table(Columns):
    """The annotations of a file, and of which of them to cut polygons."""

    def __init__(
        self, images: Sequence[Any], names: List[str], categories: Sequence[Any], things: List[Any]
    ):
        rank = {image["id"]: k for k, image in enumerate(images)}
        sides = [(image.get("width"), image.get("height")) for image in images]
        super().__init__(things, _look_up(rank, "image_id", things), sides)
        self.names = names
        self.ids = list(map(itemgetter("id"), things))
        self.category = _look_up(
            {row["id"]: k for k, row in enumerate(categories)}, "category_id", things
        )
        self.cut: List[int] = []

    def name(self, k: int) -> Tuple[str, str]:
        rank = self.image[k]
        image = self.names[rank] if rank >= 0 else f"image id {self.things[k]['image_id']}"
        return image, f"annotation id {self.ids[k]}"

    def find_unknown(self) -> List[Problem]:
        """Annotations of missing images or categories."""
        found = [self.problem("no such image", k) for k in np.flatnonzero(self.image < 0).tolist()]
        for k in np.flatnonzero(self.category < 0).tolist():
            detail = f"category id {self.things[k]['category_id']!r}"
            found.append(self.problem("unknown class", k, detail))
        return found

    def find_boxes(self) -> List[Problem]:
        """Boxes that break a rule."""
        given = list(map(itemgetter("bbox"), self.things))
        faults = box_faults(given, self.sizes, _corners, whole=" of the file")
        return [self.problem(*fault) for fault in faults]

    def find_areas(self) -> List[Problem]:
        """Areas that are not numbers of pixels; a missing one is the box's."""
        given = [thing.get("area", 0) for thing in self.things]
        if set(map(type, given)) <= {int, float}:
            with contextlib.suppress(OverflowError):  # an integer beyond all floats
                areas = np.fromiter(given, np.float64, len(given))
                bad = np.flatnonzero(~(np.isfinite(areas) & (areas >= 0))).tolist()
                return [self._bad_area(k, given[k]) for k in bad]
        return [self._bad_area(k, area) for k, area in enumerate(given) if not is_area(area)]

    def _bad_area(self, k: int, area: Any) -> Problem:
        return self.problem("broken area", k, f"area {printable(repr(area), 40)}")

    def find_polygons(self, deep: bool) -> List[Problem]:
        """Polygons that Detectron2 would leave out, that have no points, or that reach too far."""
        masks = self.masks
        drawn = [k for k, mask in enumerate(masks) if type(mask) is list and mask]
        try:
            lengths = np.asarray([len(p) for k in drawn for p in masks[k]], dtype=np.int64)
        except TypeError:
            flat = [k for k in drawn if not all(isinstance(p, list) for p in masks[k])]
            detail = "its segmentation is not a list of polygons"
            return [self.problem("broken entry", k, detail) for k in flat]
        owner = np.repeat(drawn, [len(masks[k]) for k in drawn]).astype(np.int64)
        short = (lengths % 2 == 1) | (lengths < 6)
        bad = np.bincount(owner[short], minlength=len(masks))
        found = []
        for k in np.flatnonzero(bad).tolist():
            whole = bad[k] == len(masks[k])
            sizes = ", ".join(str(len(p)) for p in masks[k] if is_short(p))
            detail = f"polygon of {sizes} coordinates"
            found.append(self.problem("short polygon" + ("" if whole else " piece"), k, detail))
            if not whole:
                self.cut.append(k)
        # Every coordinate is looked at where masks are used, image by image, and here if asked.
        for k in drawn if deep else ():
            fault = polygon_fault(masks[k], reach(*self.sizes[k].tolist()))
            if fault:
                found.append(self.problem("broken mask", k, fault))
        return found
