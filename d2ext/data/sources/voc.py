"""Pascal VOC: an XML file for each image, in VOC's own tree or in any two folders."""

import os
import xml.etree.ElementTree as ElementTree
from typing import Any, List, Optional, Tuple

from ..checks.kinds import BadDataError
from ..checks.voc_files import read_xml
from .records import Photo, Source, Thing
from .tree import Tree

__all__ = ["find_voc", "image_of_xml", "read_voc"]

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


def find_voc(tree: Tree) -> List[str]:
    """The XML files of annotations."""
    files = tree.having(".xml")
    if files and read_xml(tree.path(files[0])).tag != "annotation":
        return []
    return files


def read_voc(tree: Tree, files: List[str]) -> Source:
    """Read all XML files; the splits are those of ``ImageSets/Main`` or of folders."""
    source = Source("Pascal VOC", [])
    lost, missing = [], []
    for file in files:
        path = tree.path(file)
        root = read_xml(path)
        image = image_of_xml(tree, file, root)
        if image is None:
            lost.append(file)
            continue
        size = root.find("size")
        source.photos.append(
            Photo(
                file=tree.path(image),
                labels=path,
                things=_things(root, path),
                split=tree.split_of(image, file),
                size=None if size is None else _size(size, path),
            )
        )
        missing.append(image)
    unlabelled = len(set(tree.images) - set(missing))
    if lost:
        source.notes.append(f"{len(lost)} XML files have no image, the first is {lost[0]}")
    if unlabelled:
        source.notes.append(f"{unlabelled} images have no XML file and are left out")
    return source


def image_of_xml(tree: Tree, file: str, root: ElementTree.Element) -> Optional[str]:
    """The image of an XML file: the one of its own name, else the one that <filename> names.

    The name of the file comes first, as Detectron2 reads VOC: <filename> is what is left behind
    when files are renamed or copied, and often lacks the suffix.
    """
    own = os.path.splitext(os.path.basename(file))[0]
    told = root.findtext("filename") or ""
    folder = root.findtext("folder") or ""
    return tree.image(file, own, os.path.join(folder, told) if told.strip() else own)


def _size(size: ElementTree.Element, path: str) -> Optional[Tuple[int, int]]:
    texts = [size.findtext("width") or "0", size.findtext("height") or "0"]
    try:
        width, height = (int(float(text)) for text in texts)
    except (ValueError, OverflowError):
        raise BadDataError(
            f"{path}: <size> has width {texts[0]!r} and height {texts[1]!r}; write whole numbers."
        ) from None
    # Some tools write 0 for what they don't know.
    return (width, height) if width > 0 and height > 0 else None


def _things(root: ElementTree.Element, path: str) -> List[Thing]:
    things = []
    for number, thing in enumerate(root.findall("object"), 1):
        name, box = (thing.findtext("name") or "").strip(), thing.find("bndbox")
        if not name or box is None:
            lacks = "<bndbox>" if name else "<name>"
            raise BadDataError(f"{path}: object {number} has no {lacks}; add it.")
        texts: List[Any] = [box.findtext(corner) for corner in _CORNERS]
        try:
            x1, y1, x2, y2 = (float(text) for text in texts)
        except (TypeError, ValueError):
            raise BadDataError(
                f"{path}: object {number} has the corners {', '.join(map(repr, texts))}; "
                "write four numbers."
            ) from None
        # VOC counts pixels from 1 and both corners belong to the box. A box without extent stays
        # one: it is a slip of the hand, not an object of one pixel.
        if x2 > x1 and y2 > y1:
            x1, y1 = x1 - 1, y1 - 1
        things.append(Thing(name, (x1, y1, x2, y2)))
    return things
