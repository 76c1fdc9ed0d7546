"""YOLO text labels: boxes and polygons, with or without ultralytics' ``data.yaml``."""

import os
import re
from typing import Any, Dict, List, Optional, Sequence, Tuple

import yaml

from ..checks.kinds import BadDataError
from .records import Photo, Source, Thing, split_named
from .tree import Tree, read_text

__all__ = ["find_yolo", "folders_of_yaml", "read_yolo", "read_yolo_yaml", "yaml_of"]

_NAME_FILES = ("classes.txt", "obj.names", "data.names", "_darknet.labels", "names.txt")
_NO_LABELS = {*_NAME_FILES, "readme.txt", "readme.dataset.txt", "readme.roboflow.txt"}
_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")


def yaml_of(tree: Tree) -> Optional[str]:
    """The ``data.yaml`` of a folder, by its content."""
    for file in tree.having(".yaml", ".yml"):
        if os.sep not in file and "names" in (_load_yaml(tree.path(file)) or {}):
            return tree.path(file)
    return None


def find_yolo(tree: Tree) -> List[str]:
    """Text files whose lines are a whole number and shares of an image."""
    files = [f for f in tree.having(".txt") if os.path.basename(f).lower() not in _NO_LABELS]
    for file in files:
        for line in read_text(tree.path(file)).splitlines():
            words = line.split()
            if not words:
                continue
            if len(words) < 5 or not all(map(_NUMBER.fullmatch, words)):
                break
            if not words[0].isdigit() or max(map(float, words[1:5])) > 1.5:
                break
            return files
    return []


def read_yolo(tree: Tree, files: List[str], names: Optional[Sequence[str]] = None) -> Source:
    """Read label files below a folder; an image without one has no objects."""
    if names is None:
        names = _names_beside(tree)
    used = {}
    lists = tree.split_lists()
    for file in files:
        stem = os.path.splitext(os.path.basename(file))[0]
        image = tree.image(file, stem)
        if image is not None:
            used[image] = file
    source = Source("YOLO", [])
    for image in tree.images:
        label = used.get(image)
        path = tree.path(label) if label else ""
        split = tree.split_of(image, label or "")
        source.photos.append(Photo(tree.path(image), path, [], split, relative=True))
    lost = len(files) - len(used)
    if lost and not lists:
        source.notes.append(f"{lost} text files have no image and are left out")
    _read_labels(source, names)
    return source


def read_yolo_yaml(path: str) -> Source:
    """Read what a ``data.yaml`` names: folders, lists of images or COCO JSON files."""
    data = _load_yaml(path)
    if not isinstance(data, dict) or "names" not in data:
        raise BadDataError(f"{path} has no 'names'; give a data.yaml as ultralytics writes it.")
    names = _names(data["names"], path)
    folder = os.path.dirname(os.path.abspath(path))
    base = os.path.join(folder, os.path.expanduser(str(data.get("path") or "")))
    source = Source("YOLO", [], list(names))
    if data.get("kpt_shape"):
        source.notes.append("key points are not read, only boxes")
    for key, value in data.items():
        split = split_named(str(key)) if key in ("train", "val", "valid", "test") else ""
        for entry in (value if isinstance(value, list) else [value]) if split else ():
            if entry:
                _read_entry(source, str(entry), split, (base, folder), path)
    if not source.photos:
        raise BadDataError(f"{path} names no image under 'train', 'val' or 'test'; add a folder.")
    _read_labels(source, names, boxes_only=bool(data.get("kpt_shape")))
    return source


def folders_of_yaml(path: str) -> List[str]:
    """The folders that a ``data.yaml`` takes files from."""
    data = _load_yaml(path)
    folder = os.path.dirname(os.path.abspath(path))
    if not isinstance(data, dict) or not data.get("path"):
        return [folder]
    return [os.path.normpath(os.path.join(folder, os.path.expanduser(str(data["path"]))))]


def _read_entry(source: Source, entry: str, split: str, bases: Sequence[str], path: str) -> None:
    place = _resolve(entry, bases)
    if place is None:
        raise BadDataError(f"{path}: '{entry}' under '{split}' does not exist; correct the path.")
    if os.path.isdir(place):
        tree = Tree(place)
        images = [tree.path(image) for image in tree.images]
    else:
        lines = [line.strip() for line in read_text(place).splitlines() if line.strip()]
        found = [_resolve(line, (os.path.dirname(place), *bases)) for line in lines]
        for line, image in zip(lines, found):
            if image is None:
                raise BadDataError(f"{place}: '{line}' does not exist; correct the path.")
        images = [image for image in found if image is not None]
    for image in images:
        source.photos.append(Photo(image, _label_of(image), [], split, relative=True))


def _resolve(entry: str, bases: Sequence[str]) -> Optional[str]:
    # Roboflow writes "../train/images" where it means "train/images".
    entries = [entry, re.sub(r"^(\.\./)+", "", entry)]
    for base in bases:
        for name in entries:
            place = os.path.normpath(os.path.join(base, name))
            if os.path.exists(place):
                return place
    return None


def _label_of(image: str) -> str:
    """The label file of an image: below the last ``labels`` in place of ``images``, or beside."""
    stem = os.path.splitext(image)[0]
    parts = stem.split(os.sep)
    for k in reversed(range(len(parts) - 1)):
        if parts[k] == "images":
            place = os.sep.join([*parts[:k], "labels", *parts[k + 1 :]]) + ".txt"
            if os.path.exists(place):
                return place
            break
    return f"{stem}.txt" if os.path.exists(f"{stem}.txt") else ""


def _read_labels(source: Source, names: Optional[Sequence[str]], boxes_only: bool = False) -> None:
    """Fill in the objects of all photos, and the classes where no list names them."""
    rows: List[Tuple[Photo, int, List[float]]] = []
    for photo in source.photos:
        if photo.labels:
            rows += [(photo, *row) for row in _rows(photo.labels, boxes_only)]
    top = max((label for _, label, _ in rows), default=-1)
    known = list(names) if names is not None else [f"class_{k}" for k in range(top + 1)]
    if names is None and known:
        source.notes.append("no list of class names was found (classes.txt or data.yaml)")
    for photo, label, values in rows:
        if label >= len(known):
            raise BadDataError(
                f"{photo.labels} has the label {label}, and there are {len(known)} class names; "
                "add the name, or correct the label."
            )
        photo.things.append(_thing(known[label], values))
    source.classes = known
    polygons = sum(bool(t.polygons) for photo in source.photos for t in photo.things)
    if polygons:
        source.form = "YOLO polygons" if polygons == len(rows) else "YOLO boxes and polygons"


def _rows(path: str, boxes_only: bool) -> List[Tuple[int, List[float]]]:
    rows = []
    for number, line in enumerate(read_text(path).splitlines(), 1):
        words = line.split()
        if not words:
            continue
        where = f"{path}, line {number}"
        if not all(map(_NUMBER.fullmatch, words)) or not words[0].split(".")[0].isdigit():
            raise BadDataError(f"{where}: '{line[:60]}' is not a YOLO label; write numbers.")
        values = [float(word) for word in words[1:]]
        if boxes_only:
            values = values[:4]
        if len(values) != 4 and (len(values) < 6 or len(values) % 2):
            raise BadDataError(
                f"{where}: a class and {len(values)} numbers; a box has 4 and a polygon an even "
                "number from 6 on."
            )
        rows.append((int(float(words[0])), values))
    return rows


def _thing(name: str, values: List[float]) -> Thing:
    if len(values) == 4:
        x, y, width, height = values
        return Thing(name, (x - width / 2, y - height / 2, x + width / 2, y + height / 2))
    xs, ys = values[::2], values[1::2]
    return Thing(name, (min(xs), min(ys), max(xs), max(ys)), [values])


def _names(names: Any, path: str) -> List[str]:
    if isinstance(names, dict):
        keys: Dict[int, str] = {}
        for key, name in names.items():
            if not str(key).isdigit():
                raise BadDataError(f"{path}: 'names' has the key '{key}'; number the classes.")
            keys[int(key)] = str(name)
        return [keys.get(k, f"class_{k}") for k in range(max(keys, default=-1) + 1)]
    if not isinstance(names, list):
        raise BadDataError(f"{path}: 'names' is not a list; write the class names in order.")
    return [str(name) for name in names]


def _names_beside(tree: Tree) -> Optional[List[str]]:
    for file in tree.having(".txt", ".names", ".labels"):
        if os.path.basename(file).lower() in _NAME_FILES:
            return [s.strip() for s in read_text(tree.path(file)).splitlines() if s.strip()]
    return None


def _load_yaml(path: str) -> Any:
    try:
        return yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise BadDataError(f"{path} is not YAML ({' '.join(str(error).split())[:120]}).") from None
