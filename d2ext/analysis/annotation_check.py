"""Bad annotations and image files of a data set, counted by kind and named by file.

The rules are those of the training, in ``d2ext/data/checks``; here everything found is listed,
where a training stops at what it cannot use.
"""

import math
import os
from typing import Any, Dict, Iterable, List, Optional, Tuple

from d2ext.data.checks import KINDS as RULES
from d2ext.data.checks import Problem
from d2ext.data.checks.dicts import check_annotations, check_images
from d2ext.data.checks.images import check_image_file, find_missing
from d2ext.data.checks.json_file import check_json, file_name, guess_form
from d2ext.data.checks.kinds import group

__all__ = [
    "KINDS",
    "MAX_OPENED",
    "MILD",
    "RULES",
    "Problem",
    "check_coco",
    "check_dicts",
    "check_image_files",
    "summarize_problems",
]

#: Image files whose header is read.
MAX_OPENED = 2000
#: Kind of problem -> what it does to a training.
KINDS = {name: kind.harm for name, kind in RULES.items()}
#: Kinds that neither stop a training nor make it wrong.
MILD = tuple(name for name, kind in RULES.items() if kind.level == "note")


def check_coco(
    data: Any,
    image_root: Optional[str] = None,
    *,
    path: str = "the file",
    form: Optional[str] = None,
    max_opened: int = MAX_OPENED,
) -> List[Problem]:
    """Check a data set in the form of COCO's or LVIS' JSON files.

    Args:
        data: with ``images``, ``annotations`` and ``categories``.
        image_root: folder of the images; None leaves the files unchecked.
        path: where it was read from, for messages.
        form: "coco" or "lvis"; guessed if not given.
        max_opened: image files whose header is read, evenly chosen.
    """
    form = form or guess_form(data)
    found = check_json(data, path, form, deep=True).problems
    if image_root is not None and not any(p.kind == "broken entry" for p in found):
        found += _check_files(
            (
                (os.path.join(image_root, file_name(image, form)), image["width"], image["height"])
                for image in data["images"]
            ),
            max_opened,
        )
    return found


def check_dicts(
    dicts: Iterable[Dict[str, Any]], num_classes: Optional[int], *, max_opened: int = MAX_OPENED
) -> List[Problem]:
    """Check Detectron2's dataset dicts, whatever they were read from.

    Args:
        dicts: dataset dicts.
        num_classes: labels from it on are unknown; None if the number is not known.
        max_opened: as in :func:`check_coco`.
    """
    dicts = list(dicts)
    found = check_image_files(dicts, max_opened=max_opened)
    if not any(p.kind == "broken entry" for p in found):
        found = check_annotations(dicts, num_classes).problems + found
    return found


def check_image_files(
    dicts: List[Dict[str, Any]], *, max_opened: int = MAX_OPENED
) -> List[Problem]:
    """Check the images of dataset dicts alone; see :func:`check_dicts`."""
    found = check_images(dicts)
    if any(p.kind == "broken entry" for p in found):
        return found
    files = ((str(d["file_name"]), d.get("width"), d.get("height")) for d in dicts)
    return found + _check_files(files, max_opened)


def _check_files(files: Iterable[Tuple[str, Any, Any]], max_opened: int) -> List[Problem]:
    listed = list({row[0]: row for row in files}.values())
    found = find_missing(row[0] for row in listed)
    missing = {problem.file for problem in found}
    step = max(1, math.ceil(len(listed) / max(max_opened, 1)))
    for path, width, height in listed[::step] if max_opened > 0 else ():
        if path not in missing:
            found += check_image_file(path, width, height)
    return found


def summarize_problems(problems: Iterable[Problem], examples: int = 5) -> Dict[str, Dict]:
    """By kind: ``count``, ``files`` (how many), and the first ``examples`` with their files."""
    return {
        kind: {
            "count": len(found),
            "files": len({p.file for p in found}),
            "examples": [f"{p.file}: {p.detail}" for p in found[:examples]],
        }
        for kind, found in group(problems).items()
    }
