"""The index in an output folder: what was made of a run, and with which data.

``index.json`` lets a report collect by itself what ``train``, ``val``, ``analyze``, ``show`` and
``data check`` wrote, without the modules that registered the data sets.
"""

import json
import logging
import os
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

from ._files import atomic_write, writing

__all__ = ["FILE_NAME", "describe_set", "note_in_run", "read_index", "record", "record_sets",
           "run_of"]  # fmt: skip

FILE_NAME = "index.json"
logger = logging.getLogger(__name__)


def describe_set(name: str) -> Dict[str, Any]:
    """What a report needs to know of a registered data set: files, form and classes."""
    from detectron2.data import MetadataCatalog

    meta = MetadataCatalog.get(name)
    json_file = meta.get("json_file")
    return {
        "name": name,
        "json_file": None if json_file is None else os.path.abspath(json_file),
        "image_root": os.path.abspath(meta.get("image_root") or "."),
        "classes": [str(c) for c in meta.get("thing_classes", ())],
    }


def record(run: Union[str, Path], kind: str, path: Union[str, Path] = "", **facts: Any) -> None:
    """Add an entry to a run's index, in place of one of the same kind and path.

    Args:
        run: the output folder.
        kind: what it is: "data", "evaluation", "analysis", "pictures" or "check".
        path: where it is; kept relative to ``run`` if it lies in there.
        facts: more about it, as JSON has it.
    """
    run = Path(run)
    place = str(path)
    if place:
        absolute = Path(os.path.abspath(place))
        inside = absolute.is_relative_to(os.path.abspath(run))
        place = str(absolute.relative_to(os.path.abspath(run)) if inside else absolute)
    entry = {"kind": kind, "path": place, **facts}
    same = (kind, place, facts.get("name"), facts.get("split"))
    entries = [
        e for e in read_index(run) if (e["kind"], e["path"], e.get("name"), e.get("split")) != same
    ]
    with atomic_write(str(run / FILE_NAME)) as stream:
        stream.write((json.dumps({"entries": [*entries, entry]}, indent=1) + "\n").encode())


def record_sets(run: Union[str, Path], train: Sequence[str], test: Sequence[str]) -> None:
    """Add the data sets that a run trains and evaluates on, on the main process."""
    from detectron2.utils import comm

    if not comm.is_main_process():
        return
    with writing(run):
        for split, names in (("train", train), ("test", test)):
            for name in names:
                record(run, "data", split=split, **describe_set(name))


def note_in_run(source: Union[str, Path], kind: str, path: Union[str, Path]) -> None:
    """:func:`record` in the run that a file belongs to; nothing where it belongs to none."""
    run = run_of(source)
    if run is not None:
        record(run, kind, path)


def run_of(source: Union[str, Path]) -> Optional[Path]:
    """The output folder of the training that a file belongs to, if there is one."""
    folders = Path(os.path.abspath(source)).parents[:4]
    return next((folder for folder in folders if (folder / "metrics.json").is_file()), None)


def read_index(run: Union[str, Path]) -> List[Dict[str, Any]]:
    """The entries of a run's index, those that are well formed; none if there is no index."""
    path = Path(run) / FILE_NAME
    if not path.is_file():
        return []
    try:
        entries = json.loads(path.read_bytes())["entries"]
    except (ValueError, TypeError, KeyError, RecursionError, OSError):
        logger.warning(f"{path} is not an index and is left out.")
        return []
    return [e for e in entries if _is_entry(e)] if isinstance(entries, list) else []


def _is_entry(entry: Any) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(k), str) for k in ("kind", "path"))
