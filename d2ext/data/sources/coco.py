"""COCO's and LVIS' JSON files, Roboflow's exports among them."""

import os
import re
from typing import Any, Dict, List, Optional, Tuple

from ..checks.json_file import check_json, file_name, guess_form
from ..checks.json_text import read_json
from ..checks.kinds import BadDataError, settle
from .records import Photo, Source, Thing, split_named
from .tree import Tree

__all__ = ["find_coco", "read_coco"]

_HEAD = 1 << 16
# What the pieces of a file's name say besides the split: "instances_val2017", "lvis_v1_train".
_SPLIT_WORD = re.compile(r"[A-Za-z]+")


def find_coco(tree: Tree) -> List[str]:
    """JSON files with images and categories, recognised by how they begin and end."""
    found = []
    for file in tree.having(".json"):
        path = tree.path(file)
        with open(path, "rb") as stream:
            head = stream.read(_HEAD)
            stream.seek(max(0, os.path.getsize(path) - _HEAD))
            text = head + stream.read(_HEAD)
        keys = [key for key in (b"images", b"categories", b"annotations") if b'"%s"' % key in text]
        if len(keys) >= 2 or (keys and text.lstrip()[:1] == b"{" and b'"file_name"' in text):
            found.append(file)
    return found


def read_coco(tree: Tree, files: List[str]) -> Source:
    """Read annotation files, each a split by its folder or name; one alone has no split."""
    source = Source("COCO", [])
    contents = [(file, _load(tree.path(file))) for file in files]
    labelled = [(file, data) for file, data in contents if "annotations" in data]
    if not labelled:
        raise BadDataError(f"{tree.path(files[0])} has no 'annotations'; give a file with them.")
    if any(guess_form(data) == "lvis" for _, data in labelled):
        source.form = "LVIS"
    by_split: Dict[str, str] = {}
    for file, data in labelled:
        split = _split_of(tree, file) if len(labelled) > 1 else ""
        if len(labelled) > 1:
            if not split or split in by_split:
                other = f", as {by_split[split]} is" if split else ""
                raise BadDataError(
                    f"{tree.path(file)} is {split or 'not one of train, val and test'} by its "
                    f"name{other}; give one of the files, or a folder with one file a split."
                )
            by_split[split] = file
        _read_file(tree, file, data, split, source)
    source.classes = _class_names([data for _, data in labelled])
    return source


def _load(path: str) -> Dict[str, Any]:
    data = read_json(path)
    form = guess_form(data)
    settle(
        [
            p
            for p in check_json(data, path, form, loading=False).problems
            if p.kind in ("broken entry", "duplicate image id", "duplicate class id")
            or p.kind in ("unknown class", "malformed box")
        ],
        path,
    )
    return data


def _split_of(tree: Tree, file: str) -> str:
    name = os.path.splitext(os.path.basename(file))[0]
    words = [split_named(word) for word in _SPLIT_WORD.findall(name)]
    return next((word for word in words if word), "") or tree.split_of(file)


def _read_file(tree: Tree, file: str, data: Dict[str, Any], split: str, source: Source) -> None:
    form = guess_form(data)
    names = {row["id"]: row["name"] for row in data["categories"]}
    for row in data["categories"]:
        kept = {k: v for k, v in row.items() if k not in ("id", "name")}
        source.categories.setdefault(row["name"], kept)
    photos: Dict[Any, Photo] = {}
    for row in data["images"]:
        name = file_name(row, form)
        image = _find_image(tree, file, name)
        extra = {k: row[k] for k in ("neg_category_ids", "not_exhaustive_category_ids") if k in row}
        # Categories get new ids.
        extra = {key: [names[c] for c in ids if c in names] for key, ids in extra.items()}
        size, width, height = None, row.get("width"), row.get("height")
        if isinstance(width, (int, float)) and isinstance(height, (int, float)):
            size = (int(width), int(height))
        photos[row["id"]] = Photo(image, tree.path(file), [], split, size, extra=extra)
    strays = 0
    for row in data["annotations"]:
        if row["image_id"] not in photos:
            strays += 1
            continue
        photos[row["image_id"]].things.append(_thing(row, names))
    if strays:
        source.notes.append(f"{file}: {strays} annotations belong to images that it does not list")
    source.photos += photos.values()


def _find_image(tree: Tree, file: str, name: str) -> str:
    folder = os.path.dirname(file)
    # Where the JSON file lies, where the tree begins, and where its own name points.
    for base in (folder, "", os.path.join(folder, "images"), "images"):
        place = os.path.normpath(os.path.join(tree.root, base, name))
        if os.path.isfile(place):
            return place
    # Annotations and images in parallel folders: the split, or its name in the file, tells.
    split = os.path.splitext(os.path.basename(file))[0].split("_")[-1]
    found = tree.image(os.path.join(folder, split, "x.json"), name)
    if found is None:
        raise BadDataError(
            f"{tree.path(file)} names the image {name}, which is not below {tree.root}; put the "
            "images there, or give the folder that has both."
        )
    return tree.path(found)


def _thing(row: Dict[str, Any], names: Dict[Any, str]) -> Thing:
    x, y, width, height = row["bbox"]
    return Thing(
        names[row["category_id"]],
        (x, y, x + width, y + height),
        row.get("segmentation") or (),
        bool(row.get("iscrowd", 0)),
        {k: row[k] for k in ("area", "keypoints", "num_keypoints") if k in row} or None,
    )


def _class_names(contents: List[Dict[str, Any]]) -> List[str]:
    """Names by id; Roboflow's first category, a heading without objects, is left out."""
    rows: List[Tuple[int, str]] = []
    used, headings = set(), set()
    for data in contents:
        names = {row["id"]: row["name"] for row in data["categories"]}
        used |= {names[row["category_id"]] for row in data["annotations"]}
        headings |= {row.get("supercategory") for row in data["categories"]}
        rows += names.items()
    ordered: Dict[str, Optional[int]] = {name: None for _, name in sorted(rows)}
    return [name for name in ordered if name in used or name not in headings]
