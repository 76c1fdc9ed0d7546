"""Boxes as lines of text: CSV tables, and a text file of pixel boxes for each image."""

import csv
import os
import re
from typing import Dict, List, Optional, Sequence, Tuple

from ..checks.kinds import BadDataError
from .records import Photo, Source, Thing, split_named
from .tree import IMAGE_SUFFIXES, Tree, read_text

__all__ = ["find_csv", "find_pixel_boxes", "read_csv", "read_pixel_boxes"]

# What a column may be called, letters and digits alone.
_COLUMNS = {
    "file": ("filename", "image", "imagepath", "imagename", "file", "path", "imageid", "img"),
    "name": ("class", "label", "classname", "labelname", "name", "category", "categoryname"),
    "x1": ("xmin", "x1", "left", "bboxx1", "xstart"),
    "y1": ("ymin", "y1", "top", "bboxy1", "ystart"),
    "x2": ("xmax", "x2", "right", "bboxx2", "xend"),
    "y2": ("ymax", "y2", "bottom", "bboxy2", "yend"),
    "x": ("x", "bboxx"),
    "y": ("y", "bboxy"),
    "w": ("w", "boxwidth", "bboxwidth", "bboxw"),
    "h": ("h", "boxheight", "bboxheight", "bboxh"),
    "split": ("split", "set", "subset"),
}
#: The classes of DeepPCB (its README), where the folders are as in its public repository.
_DEEPPCB = ("open", "short", "mousebite", "spur", "copper", "pin-hole")


# ------------------------------------------------------------------ CSV


def find_csv(tree: Tree) -> List[str]:
    """CSV files with a column of image files and four of a box."""
    return [file for file in tree.having(".csv") if _columns(_csv_rows(tree.path(file))[0])]


def read_csv(tree: Tree, files: List[str]) -> Source:
    """Read tables of boxes; a line with a file name alone is an image without objects."""
    source = Source("CSV", [])
    photos: Dict[str, Photo] = {}
    lost: List[str] = []
    for file in files:
        path = tree.path(file)
        rows = _csv_rows(path)
        columns = _columns(rows[0]) or {}
        has_header = "file" in columns and not _is_file(rows[0][columns["file"]])
        stem = os.path.splitext(os.path.basename(file))[0]
        of_file = split_named(stem.split("_")[-1]) if len(files) > 1 else ""
        for number, row in enumerate(rows[has_header:], 1 + has_header):
            cells = {k: row[c].strip() if c < len(row) else "" for k, c in columns.items()}
            image = tree.image(file, cells["file"])
            if image is None:
                lost.append(cells["file"])
                continue
            split = split_named(cells.get("split", "")) or of_file or tree.split_of(image)
            photo = photos.setdefault(image, Photo(tree.path(image), path, [], split))
            thing = _thing(cells, f"{path}, line {number}")
            if thing is not None:
                photo.things.append(thing)
    source.photos = [photos[image] for image in sorted(photos)]
    if lost:
        source.notes.append(f"{len(lost)} lines name images that are not there, first {lost[0]}")
    unused = len(set(tree.images) - set(photos))
    if unused:
        source.notes.append(f"{unused} images are on no line and are left out")
    return source


def _csv_rows(path: str) -> List[List[str]]:
    text = read_text(path)
    first = text.split("\n", 1)[0]
    delimiter = max(",;\t", key=first.count)
    try:
        rows = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if row]
    except csv.Error as error:
        raise BadDataError(f"{path} is not a table: {error}; write the file again.") from None
    return rows or [[]]


def _is_file(cell: str) -> bool:
    return cell.lower().endswith(IMAGE_SUFFIXES)


def _columns(row: Sequence[str]) -> Optional[Dict[str, int]]:
    """What each column is, by the first line; six columns without names are file, box, class."""
    if len(row) >= 6 and _is_file(row[0]):
        return {"file": 0, "x1": 1, "y1": 2, "x2": 3, "y2": 4, "name": 5}
    names = [re.sub(r"[^a-z0-9]", "", cell.lower()) for cell in row]
    found = {}
    for key, words in _COLUMNS.items():
        place = next((names.index(word) for word in words if word in names), None)
        if place is not None:
            found[key] = place
    if {"x", "y"} <= set(found) and not {"w", "h"} <= set(found):
        # "width" and "height" are the image's beside corners, and the box's beside x and y.
        for key, word in (("w", "width"), ("h", "height")):
            if word in names:
                found[key] = names.index(word)
    corners, sized = {"x1", "y1", "x2", "y2"}, {"x", "y", "w", "h"}
    if not {"file", "name"} <= set(found) or not (corners <= set(found) or sized <= set(found)):
        return None
    return found


def _thing(cells: Dict[str, str], where: str) -> Optional[Thing]:
    keys = ("x1", "y1", "x2", "y2") if cells.get("x1") is not None else ("x", "y", "w", "h")
    texts = [cells[key] for key in keys]
    if not any(texts):
        return None
    try:
        x, y, third, fourth = map(float, texts)
    except ValueError:
        raise BadDataError(f"{where}: the box {texts} is not four numbers; correct it.") from None
    if not cells["name"]:
        raise BadDataError(f"{where}: the box has no class; name it.")
    corners = (x, y, third, fourth) if keys[0] == "x1" else (x, y, x + third, y + fourth)
    return Thing(cells["name"], corners)


# ------------------------------------------------------------------ pixel boxes


def find_pixel_boxes(tree: Tree) -> List[str]:
    """Text files whose lines are four numbers in pixels and a class."""
    files = tree.having(".txt")
    pixels = [file for file in files if _pixel_row(_first_line(tree.path(file))) is not None]
    lists = {file for file in files if split_named(os.path.splitext(os.path.basename(file))[0])}
    return sorted(set(pixels) - lists)


def read_pixel_boxes(tree: Tree, files: List[str]) -> Source:
    """Read ``x1 y1 x2 y2 class`` lines; the classes are sorted, numbers by their value."""
    source = Source("pixel boxes", [])
    lost, used = [], set()
    folders = {os.path.dirname(file) for file in files}
    # An empty or broken file is recognised by its place, not by its first line.
    beside = [
        file
        for file in tree.having(".txt")
        if os.path.dirname(file) in folders and tree.image(file, file) is not None
    ]
    for file in sorted({*files, *beside}):
        stem = os.path.splitext(os.path.basename(file))[0]
        # DeepPCB's public layout has a defect-free template beside each tested image.
        image = tree.image(file, f"{stem}_test") or tree.image(file, stem)
        if image is None:
            lost.append(file)
            continue
        used.add(image)
        path = tree.path(file)
        things = []
        for number, line in enumerate(read_text(path).splitlines(), 1):
            if not line.strip():
                continue
            row = _pixel_row(line)
            if row is None:
                raise BadDataError(
                    f"{path}, line {number}: '{line[:60]}' is not x1 y1 x2 y2 class; correct it."
                )
            things.append(Thing(*row))
        split = tree.split_of(image, file)
        source.photos.append(Photo(tree.path(image), path, things, split))
    if lost:
        source.notes.append(f"{len(lost)} text files have no image, the first is {lost[0]}")
    unused = len([i for i in set(tree.images) - used if "_temp." not in i])
    if unused:
        source.notes.append(f"{unused} images have no text file and are left out")
    public = all(os.path.basename(os.path.dirname(file)).endswith("_not") for file in files)
    if public:
        source.form = "DeepPCB"
    _name_classes(source, _names_of(tree) or (list(_DEEPPCB) if public else None))
    return source


def _name_classes(source: Source, names: Optional[List[str]]) -> None:
    """Put names in place of numbers, which count them from 0 or from 1 on."""
    found = {thing.name for photo in source.photos for thing in photo.things}
    numbers = all(label.isdigit() for label in found)
    if names is None or not numbers:
        source.classes = sorted(found, key=int) if numbers else None
        return
    values = set(map(int, found))
    start = 1 if 0 not in values and max(values, default=0) <= len(names) else 0
    if max(values, default=0) >= len(names) + start:
        raise BadDataError(
            f"{source.photos[0].labels} and others have classes up to {max(values)}, and there "
            f"are {len(names)} names; complete the list of names."
        )
    for photo in source.photos:
        photo.things = [t._replace(name=names[int(t.name) - start]) for t in photo.things]
    source.classes = names


def _first_line(path: str) -> str:
    with open(path, "rb") as stream:
        text = stream.read(4096).decode("utf-8", "replace")
    return next((line for line in text.splitlines() if line.strip()), "")


def _pixel_row(line: str) -> Optional[Tuple[str, Tuple[float, float, float, float]]]:
    """Class and box of a line, or None if it is something else."""
    words = line.replace(",", " ").replace(";", " ").split()
    if len(words) < 5:
        return None
    try:
        x1, y1, x2, y2 = (float(word) for word in words[:4])
    except ValueError:
        return None
    label = " ".join(words[4:])
    # Shares of the image, and the polygons of others, are not read as pixels.
    if max(x1, y1, x2, y2) <= 1 or (len(words) > 5 and re.fullmatch(r"[-\d. ]+", label)):
        return None
    return label, (x1, y1, x2, y2)


def _names_of(tree: Tree) -> Optional[List[str]]:
    """The lines of a ``classes.txt``."""
    for file in tree.having("classes.txt"):
        rows = [line.strip() for line in read_text(tree.path(file)).splitlines() if line.strip()]
        return [re.sub(r"^\d+[\s:,]+", "", row) for row in rows]
    return None
