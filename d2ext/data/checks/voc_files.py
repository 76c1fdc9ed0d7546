"""Rules for Pascal VOC's lists of images and XML files."""

import os
import xml.etree.ElementTree as ElementTree
from typing import Any, Collection, Dict, List, Optional, Sequence, Tuple

import numpy as np

from d2ext._files import open_regular
from d2ext.safe_load import UnsafeFileError, parse_xml

from .boxes import BOX_KINDS, box_codes, show_box
from .kinds import BadDataError, Problem

__all__ = [
    "check_split",
    "check_voc",
    "check_xml",
    "difficult_objects",
    "read_split",
    "read_xml",
    "split_file",
]

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def check_voc(dirname: str, split: str, class_names: Optional[Collection[str]]) -> List[Problem]:
    """Check a split's list and its XML files.

    Args:
        dirname: with ``Annotations`` and ``ImageSets/Main``.
        split: a list in ``ImageSets/Main``, without ".txt".
        class_names: those that are known; None for any.

    Raises:
        BadDataError: if the list cannot be read.
    """
    path = split_file(dirname, split)
    names = read_split(path)
    found = check_split(names, path)
    if found:  # the names are not those of the images
        return found
    for name in names:
        found += check_xml(os.path.join(dirname, "Annotations", f"{name}.xml"), class_names)
    return found


def difficult_objects(dicts: Sequence[Dict[str, Any]], dirname: str) -> List[Tuple[int, int]]:
    """Image and number of each object that a file calls difficult; the dicts hold all objects."""
    found = []
    for image, item in enumerate(dicts):
        root = read_xml(os.path.join(dirname, "Annotations", f"{item['image_id']}.xml"))
        for number, thing in enumerate(root.findall("object")):
            if thing.findtext("difficult", "0").strip() == "1":
                found.append((image, number))
    return found


def split_file(dirname: str, split: str) -> str:
    """Where the list of a split is."""
    return os.path.join(dirname, "ImageSets", "Main", f"{split}.txt")


def read_split(path: str) -> List[str]:
    """The lines of a list of images."""
    try:
        with open(path, encoding="utf-8") as file:
            return [line.strip() for line in file if line.strip()]
    except FileNotFoundError:
        folder = os.path.dirname(path)
        files = os.listdir(folder) if os.path.isdir(folder) else []
        known = ", ".join(sorted(f[:-4] for f in files if f.endswith(".txt"))) or "not there"
        raise FileNotFoundError(f"{path} does not exist; the splits are {known}.") from None
    except UnicodeDecodeError as error:
        raise BadDataError(f"{path} is not a list of names: {error}; save it as UTF-8.") from None


def check_split(names: List[str], path: str) -> List[Problem]:
    """What Detectron2 would misread in a list of images: it reads a table, "#" starts a comment."""
    found = []
    if len(names) < 2:
        detail = f"{len(names)} images; Detectron2 reads lists of two or more"
        found.append(Problem("broken split", path, detail))
    seen = set()
    for line, name in enumerate(names, 1):
        if "#" in name or len(name.split()) != 1:
            detail = f"entry {line} '{name}'; a name without spaces and # is needed"
            found.append(Problem("broken split", path, detail))
        elif name in seen:
            found.append(Problem("duplicate image id", path, f"'{name}' is listed twice"))
        seen.add(name)
    return found


def read_xml(path: str) -> ElementTree.Element:
    """The root of an XML file, or an error that names it."""
    try:
        with open_regular(path) as file:
            content = file.read()
        # Detectron2 decodes the file as text before it is parsed, whatever its header says.
        content.decode("utf-8")
        root: Any = parse_xml(path, content).getroot()
        return root
    except FileNotFoundError:
        raise BadDataError(
            f"{path} does not exist; add it, or take the image off the list."
        ) from None
    except UnicodeDecodeError as error:
        raise BadDataError(f"{path} is not UTF-8: {error}; save it as UTF-8.") from None
    except ElementTree.ParseError as error:
        raise BadDataError(f"{str(error).rstrip('.')}; write the file again.") from None
    except UnsafeFileError as error:
        raise BadDataError(str(error)) from None


def check_xml(path: str, class_names: Optional[Collection[str]] = None) -> List[Problem]:
    """Check one image's XML file."""
    try:
        root = read_xml(path)
    except BadDataError as error:
        return [Problem("broken XML", path, str(error).split(": ", 1)[-1])]
    sides = [root.findtext(f"./size/{side}") for side in ("width", "height")]
    # As Detectron2 reads it: a whole number, without a decimal point.
    whole = [int(side) for side in sides if side is not None and side.strip().isdigit()]
    if len(whole) < 2 or min(whole) <= 0:
        detail = f"width {sides[0]!r} and height {sides[1]!r} in <size>"
        return [Problem("broken XML", path, detail)]
    size = np.asarray([whole], dtype=np.float64)
    found: List[Problem] = []
    for number, thing in enumerate(root.findall("object"), 1):
        kind, detail = _check_object(thing, size, class_names)
        if kind:
            found.append(Problem(kind, path, f"object {number}: {detail}"))
    return found


def _check_object(
    thing: ElementTree.Element, size: np.ndarray, class_names: Optional[Collection[str]]
) -> Tuple[str, str]:
    """The kind of problem, or "", and what was seen."""
    name, box = thing.findtext("name"), thing.find("bndbox")
    if not name:
        return "broken XML", "it has no <name>"
    if class_names is not None and name not in class_names:
        return "unknown class", f"class '{name}'"
    if thing.findtext("difficult", "0").strip() not in ("0", "1"):
        return "broken XML", f"<difficult> is {thing.findtext('difficult')!r}, and not 0 or 1"
    if box is None:
        return "broken XML", "it has no <bndbox>"
    texts: List[Any] = [box.findtext(corner) for corner in _CORNERS]
    try:
        corners = np.asarray([[float(text) for text in texts]])
    except (TypeError, ValueError):
        return "malformed box", f"<bndbox> has {', '.join(map(repr, texts))}"
    is_empty = not (corners[:, 2:] > corners[:, :2]).all()
    corners[:, :2] -= 1  # VOC counts pixels from 1
    code = int(box_codes(corners, size)[0])
    if is_empty and not code:  # VOC's way of counting turns a slip of the hand into one pixel
        code = BOX_KINDS.index("zero area")
    return BOX_KINDS[code], show_box(corners[0], size[0])
