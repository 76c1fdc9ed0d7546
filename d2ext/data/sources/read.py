"""From a path to splits in COCO's form, whatever the labels are.

Every reader gives the same records; sizes, classes, splits and checks are settled here, once.
"""

import os
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
from PIL import Image

from ..checks.boxes import BOX_KINDS, are_relative, box_codes, show_box
from ..checks.images import oriented_size
from ..checks.json_text import read_json
from ..checks.kinds import KINDS, BadDataError, Problem, settle
from .coco import find_coco, read_coco
from .duplicates import duplicate_groups
from .labelme import find_labelme, read_labelme
from .records import SPLITS, Photo, Source, Thing
from .splits import stratified_split
from .tables import find_csv, find_pixel_boxes, read_csv, read_pixel_boxes
from .tree import Tree
from .voc import find_voc, read_voc
from .yolo import find_yolo, folders_of_yaml, read_yolo, read_yolo_yaml, yaml_of

__all__ = ["FORMS", "OwnData", "parse_shares", "read_data", "read_source", "watched_folders"]

#: Every form that is read: name -> (label files of a tree, reader of them); the first that finds
#: any is the form of a folder.
FORMS: Dict[str, Tuple[Callable[[Tree], List[str]], Callable[[Tree, List[str]], Source]]] = {
    "coco": (find_coco, read_coco),
    "voc": (find_voc, read_voc),
    "labelme": (find_labelme, read_labelme),
    "csv": (find_csv, read_csv),
    "yolo": (find_yolo, read_yolo),
    "pixel boxes": (find_pixel_boxes, read_pixel_boxes),
}


class OwnData(NamedTuple):
    """A data set in COCO's form.

    Attributes:
        form: what it was, for people.
        root: the folder that file names are relative to.
        classes: names in the order of the labels.
        splits: split -> ``images``, ``annotations``, ``categories``; a split without images is
            not there.
        notes: what was left out, split or looked strange, a sentence each.
        problems: findings of the kinds that are left out.
    """

    form: str
    root: str
    classes: List[str]
    splits: Dict[str, Dict[str, Any]]
    notes: List[str]
    problems: List[Problem]


def parse_shares(text: Optional[str]) -> Tuple[float, ...]:
    """The shares of training, validation and test images: "0.8", or "0.7,0.2,0.1"; None: 0.8."""
    if text is None:
        return (0.8, 0.2)
    try:
        given = [float(part) for part in str(text).split(",")]
    except ValueError:
        given = []
    if len(given) == 1:
        given.append(round(1 - given[0], 9))
    total = sum(given)
    if not 2 <= len(given) <= 3 or min(given) <= 0 or not abs(total - 1) < 1e-6:
        raise BadDataError(
            f"The split '{text}' is not a share of training images such as 0.8, nor shares of "
            "training, validation and test images that add up to 1, such as 0.7,0.2,0.1."
        )
    return tuple(given)


def read_source(path: str) -> Source:
    """Read a folder, a ``data.yaml`` or a COCO JSON file, without splitting it."""
    path = os.path.abspath(os.path.expanduser(path))
    if not os.path.exists(path):
        raise BadDataError(f"{path} does not exist; give a folder, a data.yaml or a COCO JSON.")
    if os.path.isdir(path):
        return _read_folder(path)
    suffix = os.path.splitext(path)[1].lower()
    if suffix in (".yaml", ".yml"):
        return _read_yaml(path)
    if suffix == ".json" and os.path.isfile(path):
        return _read_json(path)
    if suffix == ".csv":
        return _read_one(os.path.dirname(path), os.path.basename(path), read_csv)
    raise BadDataError(f"{path} is not a folder, data.yaml, COCO JSON or CSV; give one of them.")


def read_data(path: str, shares: Sequence[float] = (0.8, 0.2), *, resplit: bool = False) -> OwnData:
    """Read labelled photographs of any form, with one list of classes for all splits.

    Args:
        path: a folder, a ``data.yaml`` or a COCO JSON file.
        shares: of training, validation and, if there are three, test images, where the data have
            no splits of their own.
        resplit: leave their own splits aside.

    Raises:
        BadDataError: if nothing can be read, or something has to be refused.
    """
    source = read_source(path)
    if not source.photos:
        raise BadDataError(f"{path}: no image has labels; {'; '.join(source.notes) or 'add some'}.")
    source.photos.sort(key=lambda photo: photo.file)
    if resplit:
        for photo in source.photos:
            photo.split = ""
    root = os.path.commonpath([os.path.dirname(photo.file) for photo in source.photos])
    problems = _settle_sizes(source.photos)
    problems += _settle_boxes(source.photos)
    settle([p for p in problems if KINDS[p.kind].level == "refuse"], path)
    classes = _classes(source)
    _settle_splits(source, classes, shares, root)
    splits = {}
    for split in SPLITS:
        photos = [photo for photo in source.photos if photo.split == split]
        if photos:
            splits[split] = _to_coco(photos, classes, source, root)
    return OwnData(source.form, root, classes, splits, source.notes, problems)


def watched_folders(path: str) -> List[str]:
    """The folders whose files decide what :func:`read_data` gives for a path."""
    if os.path.isdir(path):
        described = yaml_of(Tree(path))
        return sorted({path, *(watched_folders(described) if described else ())})
    folder = os.path.dirname(path)
    if path.endswith((".yaml", ".yml")):
        return sorted({folder, *folders_of_yaml(path)})
    return [folder if _has_images(folder) else os.path.dirname(folder)]


# ------------------------------------------------------------------ which form


def _read_folder(path: str) -> Source:
    tree = Tree(path)
    described = yaml_of(tree)
    if described:
        return _read_yaml(described)
    tried = {name: find(tree) for name, (find, _) in FORMS.items()}
    found = {name: files for name, files in tried.items() if files}
    if not found:
        raise BadDataError(
            f"{path} has no labels that d2ext knows ({len(tree.images)} images, "
            f"{len(tree.files) - len(tree.images)} other files); COCO, Pascal VOC, YOLO, LabelMe, "
            "CSV and pixel boxes are read, see docs/data_formats.md."
        )
    name, files = next(iter(found.items()))
    source = FORMS[name][1](tree, files)
    for other in list(found)[1:]:
        source.notes.append(f"labels of the form {other} are there, too; those of {name} are used")
    lists = tree.split_lists()
    if lists and not any(photo.split for photo in source.photos):
        _use_lists(source, lists)
    return source


def _use_lists(source: Source, lists: Dict[str, str]) -> None:
    for photo in source.photos:
        stems = [os.path.splitext(os.path.basename(f))[0] for f in (photo.file, photo.labels)]
        photo.split = next((lists[s.lower()] for s in stems if s.lower() in lists), "")
    unlisted = sum(not photo.split for photo in source.photos)
    if unlisted == len(source.photos):
        return  # the lists are of something else
    source.photos = [photo for photo in source.photos if photo.split]
    if unlisted:
        source.notes.append(f"{unlisted} images are on no list of a split and are left out")


def _read_yaml(path: str) -> Source:
    import yaml

    with open(path, encoding="utf-8-sig") as stream:
        data = yaml.safe_load(stream)
    if isinstance(data, dict) and str(data.get("train", "")).endswith(".json"):
        # What "d2ext data import" writes: COCO files, and the folder of the images.
        folder = os.path.dirname(path)
        source = Source("COCO", [], [str(name) for name in data["names"]])
        for split in SPLITS:
            if data.get(split):
                part = _read_json(os.path.join(folder, data[split]), data.get("path") or folder)
                for photo in part.photos:
                    photo.split = split
                source.photos += part.photos
                source.form, source.categories = part.form, part.categories
        return source
    return read_yolo_yaml(path)


def _read_json(path: str, images: Optional[str] = None) -> Source:
    data = read_json(path)
    if isinstance(data, dict) and isinstance(data.get("shapes"), list):
        return _read_one(os.path.dirname(path), os.path.basename(path), read_labelme)
    folder, name = os.path.split(path)
    if images is None and not _has_images(folder):
        # annotations/instances.json beside images/
        folder, name = os.path.dirname(folder), os.path.join(os.path.basename(folder), name)
    if images is not None:
        name, folder = os.path.relpath(path, images), images
    return _read_one(folder, name, read_coco)


def _has_images(folder: str) -> bool:
    return bool(Tree(folder).images)


def _read_one(folder: str, name: str, reader: Callable[[Tree, List[str]], Source]) -> Source:
    return reader(Tree(folder), [name])


# ------------------------------------------------------------------ sizes and boxes


def _settle_sizes(photos: List[Photo]) -> List[Problem]:
    """The size of each image as read, after its EXIF rotation."""
    found = []
    for photo in photos:
        try:
            with Image.open(photo.file) as image:
                size, _ = oriented_size(image)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            found.append(Problem("unreadable file", photo.file, str(error)))
            continue
        if photo.size is not None and tuple(photo.size) != size:
            told = f"{size[0]} x {size[1]}, annotated as {photo.size[0]} x {photo.size[1]}"
            found.append(Problem("wrong image size", photo.file, told))
        photo.size = size
    return found


def _settle_boxes(photos: List[Photo]) -> List[Problem]:
    """Scale what is relative, clip what reaches beyond its image, leave out what has no extent."""
    rows, sizes, owners = [], [], []
    for photo in photos:
        width, height = photo.size or (0, 0)
        if photo.relative:
            scale = np.asarray([width, height] * 2, dtype=np.float64)
            photo.things = [_scaled(thing, scale) for thing in photo.things]
        for thing in photo.things:
            rows.append(thing.box)
            sizes.append((width, height))
            owners.append(photo)
    if not rows:
        return [Problem("no annotations", photos[0].file, f"{len(photos)} images, no object")]
    boxes, limits = np.asarray(rows, dtype=np.float64), np.asarray(sizes, dtype=np.float64)
    if are_relative(boxes, limits):
        return [Problem("relative box", owners[0].labels, "no coordinate is above 1")]
    codes = box_codes(boxes, limits)
    found, bad = [], set()
    numbers: Dict[int, int] = {}
    for k, (photo, code) in enumerate(zip(owners, codes)):
        numbers[id(photo)] = numbers.get(id(photo), 0) + 1
        if code:
            detail = f"object {numbers[id(photo)]}: {show_box(boxes[k], limits[k])}"
            found.append(Problem(BOX_KINDS[code], photo.labels, detail))
            if KINDS[BOX_KINDS[code]].level == "skip":
                bad.add(k)
    clipped = np.clip(boxes, 0, np.tile(limits, 2))
    index = 0
    for photo in photos:
        kept = []
        for thing in photo.things:
            if index not in bad:
                kept.append(thing._replace(box=tuple(clipped[index].tolist())))
            index += 1
        photo.things = kept
    return found


def _scaled(thing: Thing, scale: np.ndarray) -> Thing:
    box = tuple((np.asarray(thing.box, dtype=np.float64) * scale).tolist())
    polygons = [
        (np.asarray(p, dtype=np.float64).reshape(-1, 2) * scale[:2]).ravel().tolist()
        for p in thing.polygons
    ]
    return thing._replace(box=box, polygons=polygons)


# ------------------------------------------------------------------ classes and splits


def _classes(source: Source) -> List[str]:
    found = {thing.name for photo in source.photos for thing in photo.things}
    if source.classes is None:
        return sorted(found)
    return [*source.classes, *sorted(found - set(source.classes))]


def _settle_splits(source: Source, classes: List[str], shares: Sequence[float], root: str) -> None:
    photos = source.photos
    there = {photo.split for photo in photos}
    if "train" not in there:
        # One split alone, or none: all of it is to be learnt from.
        for photo in photos:
            photo.split = photo.split if photo.split == "test" and there != {"test"} else "train"
    free = [photo for photo in photos if photo.split == ""]
    if free:
        raise BadDataError(
            f"{len(free)} images belong to no split and others do, the first is {free[0].file}; "
            "put them into a split's folder or list."
        )
    if there & {"val", "test"} and "train" in there:
        return
    if len(photos) < 2:
        raise BadDataError(f"{photos[0].file} is the only image; training needs two or more.")
    pool = [photo for photo in photos if photo.split == "train"]
    if "test" in {photo.split for photo in photos}:
        shares = shares[:2]
    _deal(pool, classes, shares, root, source.notes)


def _deal(
    pool: List[Photo], classes: List[str], shares: Sequence[float], root: str, notes: List[str]
) -> None:
    rank = {name: k for k, name in enumerate(classes)}
    counts = np.zeros((len(pool), len(classes)))
    for k, photo in enumerate(pool):
        for thing in photo.things:
            counts[k, rank[thing.name]] += 1
    groups = duplicate_groups([photo.file for photo in pool])
    keys = [os.path.relpath(photo.file, root) for photo in pool]
    weights = np.asarray(shares) / sum(shares)
    chosen = stratified_split(counts, weights.tolist(), keys=keys, groups=groups)
    for photo, split in zip(pool, chosen):
        photo.split = SPLITS[split]
    parts = ", ".join(f"{(chosen == s).sum()} {SPLITS[s]}" for s in range(len(shares)))
    repeated = len(groups) - len(set(groups))
    notes.append(
        f"split into {parts} by class, {repeated} near-duplicate images kept with their likes"
    )


# ------------------------------------------------------------------ COCO's form


def _to_coco(photos: List[Photo], classes: List[str], source: Source, root: str) -> Dict[str, Any]:
    ids = {name: k for k, name in enumerate(classes, 1)}
    lists = ("neg_category_ids", "not_exhaustive_category_ids")
    images: List[Dict[str, Any]] = []
    annotations: List[Dict[str, Any]] = []
    for number, photo in enumerate(photos, 1):
        name = os.path.relpath(photo.file, root).replace(os.sep, "/")
        width, height = photo.size or (0, 0)
        row = {"id": number, "file_name": name, "width": width, "height": height}
        for key in lists:
            if key in photo.extra:
                row[key] = [ids[n] for n in photo.extra[key] if n in ids]
        if source.form == "LVIS":
            # Detectron2 takes the end of this address for the file.
            row["coco_url"] = "/".join(["", *(["."] if "/" not in name else []), name])
        images.append(row)
        annotations += [
            _annotation(len(annotations) + k, number, ids, thing)
            for k, thing in enumerate(photo.things, 1)
        ]
    categories = [{**source.categories.get(n, {}), "id": k, "name": n} for n, k in ids.items()]
    if source.form == "LVIS":
        _count_images(categories, annotations)
    return {"images": images, "annotations": annotations, "categories": categories}


def _annotation(key: int, image: int, ids: Dict[str, int], thing: Thing) -> Dict[str, Any]:
    x1, y1, x2, y2 = thing.box
    row = {
        "id": key,
        "image_id": image,
        "category_id": ids[thing.name],
        "bbox": [x1, y1, x2 - x1, y2 - y1],
        "area": _area(thing),
        "iscrowd": int(thing.crowd),
    }
    extra = dict(thing.extra or {})
    if thing.polygons:
        row["segmentation"] = thing.polygons
    return {**row, **extra}


def _area(thing: Thing) -> float:
    if not isinstance(thing.polygons, list) or not thing.polygons:
        x1, y1, x2, y2 = thing.box
        return (x2 - x1) * (y2 - y1)
    total = 0.0
    for piece in thing.polygons:
        x, y = np.asarray(piece, dtype=np.float64).reshape(-1, 2).T
        total += abs(float(x @ np.roll(y, 1) - y @ np.roll(x, 1))) / 2
    return total


def _count_images(categories: List[Dict[str, Any]], annotations: List[Dict[str, Any]]) -> None:
    images: Dict[int, set] = {}
    for row in annotations:
        images.setdefault(row["category_id"], set()).add(row["image_id"])
    for category in categories:
        category["image_count"] = len(images.get(category["id"], ()))
        category["instance_count"] = sum(a["category_id"] == category["id"] for a in annotations)
