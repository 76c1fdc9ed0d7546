"""The user's own data in Detectron2's catalogs: read once, kept as COCO files, registered."""

import hashlib
import json
import os
import re
from functools import partial
from typing import Any, Dict, List, NamedTuple, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json
from detectron2.data.datasets.lvis import load_lvis_json

from d2ext._files import RunError

from .checks.kinds import Problem
from .sources import OwnData, read_data
from .sources.read import watched_folders
from .store import dataset_folder, publish

__all__ = ["RegisteredData", "register_own_data", "use_own_data", "write_own_data"]

# Version of what is kept; another one is read again.
_VERSION = "1"
_ABOUT = "about.json"


class RegisteredData(NamedTuple):
    """What was registered.

    Attributes:
        names: split -> name in Detectron2's catalogs.
        classes: names in the order of the labels.
        form: what the labels were, for people.
        folder: holds ``train.json`` and so on, and ``data.yaml``.
        root: the folder that file names are relative to.
        notes: what was left out, split or looked strange, a sentence each.
        problems: findings of the kinds that are left out.
    """

    names: Dict[str, str]
    classes: List[str]
    form: str
    folder: str
    root: str
    notes: List[str]
    problems: List[Problem]

    @property
    def evaluated(self) -> str:
        """The split to evaluate in a training: validation if there is one."""
        return next(split for split in ("val", "test", "train") if split in self.names)


def register_own_data(path: str, shares: Sequence[float] = (0.8, 0.2)) -> RegisteredData:
    """Read labelled photographs and register their splits as ``{folder}_{split}``.

    What was read is kept in the cache until a file changes.

    Args:
        path: a folder, a ``data.yaml`` or a COCO JSON file.
        shares: of training, validation and, if there are three, test images, where the data have
            no splits.

    Raises:
        BadDataError: if the data cannot be read.
    """
    path = os.path.abspath(os.path.expanduser(path))
    shares = tuple(float(share) for share in shares)
    stamp = _stamp(path, shares)
    slug = _slug(path)
    key = hashlib.sha1(f"{path}|{shares}".encode("utf-8", "surrogateescape")).hexdigest()[:8]
    folder = dataset_folder(f"own_{slug}_{key}", stamp)
    publish(folder, stamp, lambda place: write_own_data(read_data(path, shares), place))
    with open(os.path.join(folder, _ABOUT), encoding="utf-8") as stream:
        about = json.load(stream)
    names = {}
    for name in about["splits"]:
        names[name] = f"{slug}_{name}"
        json_file = os.path.join(folder, f"{name}.json")
        if names[name] in DatasetCatalog.list():
            if MetadataCatalog.get(names[name]).get("json_file") == json_file:
                continue  # registered before
            names[name] = f"{slug}_{key}_{name}"
        if names[name] not in DatasetCatalog.list():
            _register(names[name], json_file, about, path)
    problems = [Problem(*row) for row in about["problems"]]
    classes, form, root, notes = (about[key] for key in ("classes", "form", "root", "notes"))
    return RegisteredData(names, classes, form, folder, root, notes, problems)


def _register(name: str, json_file: str, about: Dict[str, Any], path: str) -> None:
    is_lvis = about["form"] == "LVIS"
    root = os.path.join(about["root"], "")
    if is_lvis:
        # Without a name: with one, Detectron2 would look for the classes of LVIS itself.
        load = partial(load_lvis_json, json_file, root)
    else:
        load = partial(load_coco_json, json_file, root, name)
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(
        thing_classes=about["classes"],
        json_file=json_file,
        image_root=root,
        evaluator_type="lvis" if is_lvis else "coco",
        own_data=path,
    )
    if is_lvis:
        with open(json_file, encoding="utf-8") as stream:
            rows = json.load(stream)["categories"]
        counts = [{"id": row["id"], "image_count": row["image_count"]} for row in rows]
        MetadataCatalog.get(name).set(class_image_count=counts)


def use_own_data(cfg: Any, given: Sequence[str] = ()) -> Any:
    """Register what ``DATASETS.DATA`` names and fit the config to it, in place.

    DATASETS.TRAIN and TEST become its splits unless an override names others, and whichever
    detector the config has gets its number of classes.

    Args:
        cfg: the config.
        given: overrides of the command line.

    Returns:
        a :class:`RegisteredData`, or None if DATASETS.DATA is empty
    """
    from d2ext.config.classes import set_class_count
    from d2ext.config.node import override_pairs

    if not cfg.DATASETS.DATA:
        return None
    data = register_own_data(cfg.DATASETS.DATA, cfg.DATASETS.SPLIT)
    keys = {key for key, _ in override_pairs(given)}
    for key, name in (("TRAIN", data.names["train"]), ("TEST", data.names[data.evaluated])):
        if f"DATASETS.{key}" not in keys:
            cfg.DATASETS[key] = (name,)
    try:
        set_class_count(cfg, len(data.classes), given)
    except ValueError as error:
        raise RunError(str(error)) from error
    return data


def write_own_data(data: OwnData, folder: str) -> None:
    """Write COCO files, one a split, and a ``data.yaml`` that names them."""
    import yaml

    os.makedirs(folder, exist_ok=True)
    for split, content in data.splits.items():
        with open(os.path.join(folder, f"{split}.json"), "w", encoding="utf-8") as stream:
            json.dump(content, stream, separators=(",", ":"))
    about = {
        "form": data.form,
        "root": data.root,
        "classes": data.classes,
        "splits": list(data.splits),
        "notes": data.notes,
        "problems": [list(problem) for problem in data.problems],
    }
    with open(os.path.join(folder, _ABOUT), "w", encoding="utf-8") as stream:
        json.dump(about, stream, indent=1)
    described = {"path": data.root, **{s: f"{s}.json" for s in data.splits}, "names": data.classes}
    with open(os.path.join(folder, "data.yaml"), "w", encoding="utf-8") as stream:
        yaml.safe_dump(described, stream, sort_keys=False, allow_unicode=True)


def _slug(path: str) -> str:
    """A name for the data: that of the folder."""
    name = os.path.basename(path)
    if os.path.isfile(path):
        stem = os.path.splitext(name)[0]
        # A common file name says nothing; its folder's name does.
        name = os.path.basename(os.path.dirname(path)) if stem in ("data", "dataset") else stem
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_") or "data"


def _stamp(path: str, shares: Sequence[float]) -> str:
    """Changes with every file below the data's folders."""
    digest = hashlib.sha1(repr((_VERSION, path, tuple(shares))).encode("utf-8", "surrogateescape"))
    for root in watched_folders(path):
        real = os.path.realpath(root)
        for folder, folders, names in os.walk(root, followlinks=True):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            inside = os.path.relpath(folder, root)
            if os.path.realpath(folder) != os.path.normpath(os.path.join(real, inside)):
                folders.clear()  # a link may lead back into the tree
            for name in sorted(names):
                try:
                    status = os.stat(os.path.join(folder, name))
                except OSError:
                    continue
                row = (os.path.join(folder, name), status.st_size, status.st_mtime_ns)
                digest.update(repr(row).encode("utf-8", "surrogateescape"))
    return digest.hexdigest()
