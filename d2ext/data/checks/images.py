"""Rules for image files: those of a whole data set by name, and one by its header."""

import os
from typing import Any, Dict, Iterable, List, Optional, Set, Tuple

from detectron2.data.detection_utils import SizeMismatchError
from PIL import Image

from d2ext._files import open_image, open_regular

from .kinds import KINDS, BadDataError, Problem
from .masks import annotation_mask_fault

__all__ = ["check_image_file", "check_sample", "explain", "find_missing", "oriented_size"]

_ORIENTATION = 0x0112  # the EXIF tag
_JPEG = b"\xff\xd8\xff"


def find_missing(files: Iterable[str]) -> List[Problem]:
    """Missing files; each folder is listed once, which is quick on network disks too.

    Addresses such as "s3://..." are not looked at.
    """
    listed: Dict[str, Optional[Set[str]]] = {}
    found = []
    for file in files:
        if "://" in file:
            continue
        folder, name = os.path.split(file)
        if folder not in listed:
            try:
                listed[folder] = set(os.listdir(folder or "."))
            except OSError:
                listed[folder] = None
        names = listed[folder]
        # A name may be spelt another way than it is listed (case, Unicode form).
        if names is None or (name not in names and not os.path.exists(file)):
            detail = "no such file" if names is not None else f"no such folder as '{folder}'"
            found.append(Problem("missing file", file, detail))
    return found


def oriented_size(image: Image.Image) -> Tuple[Tuple[int, int], bool]:
    """Width and height as Detectron2 sees them, and whether the EXIF tag turns the image."""
    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Detectron2 treats a damaged tag as absent, whatever PIL says about it
        orientation = 1
    turned = orientation in range(2, 9)
    return (image.size[::-1] if turned and orientation >= 5 else image.size), turned


def check_image_file(path: str, width: Any = None, height: Any = None) -> List[Problem]:
    """Check an image's header; ``width`` and ``height`` are what the data set says."""
    try:
        with open_image(path) as image:
            size, turned = oriented_size(image)
            deep, alpha = _is_deep(image), image.has_transparency_data
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        return [Problem("unreadable file", path, str(error))]
    found = []
    if width and height and (width, height) != size:
        detail = f"{size[0]} x {size[1]}, annotated as {width} x {height}"
        if turned and (width, height) == size[::-1]:
            detail += ", which it is before its EXIF tag turns it"
        found.append(Problem("wrong image size", path, detail))
    elif turned:
        found.append(Problem("turned by EXIF", path, f"to {size[0]} x {size[1]}"))
    if deep:
        found.append(Problem("deep pixels", path, _DEEP))
    elif alpha:
        found.append(Problem("alpha channel", path, "colours are used as if it were opaque"))
    return found


_DEEP = "one channel of more than 8 bits"


def _is_deep(image: Image.Image) -> bool:
    """Whether PIL clips values instead of scaling them. (16-bit colour it does scale.)"""
    return image.mode == "F" or image.mode.startswith("I")


def check_sample(element: Dict[str, Any], *, images: bool = True, masks: bool = False) -> None:
    """Check what a mapper would silently accept and get wrong, before it reads the image.

    Args:
        element: a dataset dict.
        images: whether its image is read as Detectron2 reads images, with Pillow.
        masks: whether the masks are used.

    Raises:
        BadDataError: for an image of more than 8 bits, and for damaged masks.
    """
    path = element.get("file_name")
    if images and path is not None and os.path.exists(path):
        with open_regular(path) as file:
            is_jpeg = file.read(len(_JPEG)) == _JPEG
        # JPEG has 8 bits, and most images are JPEG: its header need not be read twice.
        if not is_jpeg:
            with open_image(path) as image:
                if _is_deep(image):
                    raise BadDataError(f"{_DEEP}; {KINDS['deep pixels'].advice}.")
    if not masks:
        return
    for number, annotation in enumerate(element.get("annotations", ()), 1):
        fault = annotation_mask_fault(annotation, element.get("width"), element.get("height"))
        if fault:
            raise BadDataError(f"object {number}: {fault}; {KINDS['broken mask'].advice}.")


def explain(error: Exception, element: Any) -> str:
    """What a user should know about an error of the mapper besides its own words, or ""."""
    if not isinstance(error, SizeMismatchError):
        return ""
    try:
        with open_image(element["file_name"]) as image:
            size, turned = oriented_size(image)
    except OSError:  # a mapper of the user's own read it
        return ""
    if turned and size == (element["height"], element["width"]):
        return (
            " The image is turned by its EXIF tag before boxes are used: give size and boxes of "
            "the turned image, or remove the tag."
        )
    return ""
