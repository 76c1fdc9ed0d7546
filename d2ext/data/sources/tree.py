"""The files of a data set's folder, and which image a label file belongs to."""

import os
from collections import Counter, defaultdict
from typing import Dict, Iterator, List, Optional, Tuple

from ..checks.kinds import BadDataError
from .records import split_named

__all__ = ["IMAGE_SUFFIXES", "Tree", "read_text"]

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif")
# Folders that only say what kind of file they hold; two parallel ones belong together.
_KINDS = {"images", "labels", "annotations", "jpegimages", "xml", "xmls", "json", "imgs", "img"}


def read_text(path: str) -> str:
    """A text file in UTF-8, or an error that names it."""
    if not os.path.isfile(path):
        raise BadDataError(f"{path} is not a regular file; replace it.")
    try:
        with open(path, encoding="utf-8-sig") as file:
            return file.read()
    except UnicodeDecodeError as error:
        raise BadDataError(f"{path} is not UTF-8: {error}; save it as UTF-8.") from None


class Tree:
    """All files below a folder, hidden ones aside.

    Args:
        root: the folder.

    Attributes:
        root: its absolute path.
        files: paths below it, sorted.
        images: those of ``files`` that are images by their suffix.
    """

    def __init__(self, root: str):
        self.root = os.path.abspath(root)
        self.files = sorted(self._walk())
        self.images = [f for f in self.files if f.lower().endswith(IMAGE_SUFFIXES)]
        self._by_name: Dict[str, List[str]] = defaultdict(list)
        self._by_stem: Dict[str, List[str]] = defaultdict(list)
        for file in self.images:
            name = os.path.basename(file)
            self._by_name[name.lower()].append(file)
            self._by_stem[os.path.splitext(name)[0].lower()].append(file)

    def _walk(self) -> Iterator[str]:
        seen = set()
        for folder, folders, names in os.walk(self.root, followlinks=True):
            real = os.path.realpath(folder)
            if real in seen:  # a link into the tree itself
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in names:
                path = os.path.join(folder, name)
                if not name.startswith(".") and os.path.isfile(path):
                    yield os.path.relpath(path, self.root)

    def path(self, file: str) -> str:
        """The absolute path of one of ``files``."""
        return os.path.join(self.root, file)

    def having(self, *suffixes: str) -> List[str]:
        """Files with one of the suffixes."""
        return [file for file in self.files if file.lower().endswith(suffixes)]

    def image(self, label: str, *names: str) -> Optional[str]:
        """The image that a label file belongs to.

        Args:
            label: the label file, one of ``files``.
            names: what the image may be called, the likeliest first: a file name, a path or a
                name without suffix.

        Returns:
            one of ``images``, or None if there is none

        Raises:
            BadDataError: if several fit equally well.
        """
        for name in names:
            base = os.path.basename(name.replace("\\", "/")).lower()
            found = self._by_name.get(base) or self._by_stem.get(base)
            if not found:
                found = self._by_stem.get(os.path.splitext(base)[0])
            if found:
                return self._nearest(label, name, found)
        return None

    def _nearest(self, label: str, name: str, found: List[str]) -> str:
        if len(found) == 1:
            return found[0]
        wanted = _place(os.path.dirname(label)) + _place(os.path.dirname(name.replace("\\", "/")))

        def shared(file: str) -> Tuple[int, int]:
            place = _place(os.path.dirname(file))
            return sum((wanted & place).values()), -sum((place - wanted).values())

        ranked = sorted(found, key=shared, reverse=True)
        if shared(ranked[0]) == shared(ranked[1]):
            raise BadDataError(
                f"{self.path(label)} fits {ranked[0]} as well as {ranked[1]}; give the images "
                "different names, or put the labels into folders like theirs."
            )
        return ranked[0]

    def split_of(self, *files: str) -> str:
        """The split that a folder above one of the files is named after, or ""."""
        for file in files:
            for part in os.path.dirname(file).split(os.sep):
                if split_named(part):
                    return split_named(part)
        return ""

    def split_lists(self) -> Dict[str, str]:
        """Name, path or stem of an image -> split, from lists such as ``ImageSets/Main/val.txt``.

        A list of both training and validation images counts if there is none of training images.
        """
        lists: Dict[str, str] = {}
        for file in self.having(".txt"):
            folder, name = os.path.split(file)
            stem = os.path.splitext(name)[0].lower()
            place = os.path.basename(folder).lower()
            if stem in ("train", "trainval", "val", "valid", "test") and (
                os.sep not in folder or place in ("main", "imagesets", "splits", "lists")
            ):
                lists.setdefault(stem, file)
        if "train" in lists:
            lists.pop("trainval", None)
        found: Dict[str, str] = {}
        for stem, file in lists.items():
            for line in read_text(self.path(file)).splitlines():
                words = line.replace(",", " ").split()
                if not words or len(words) > 4:  # the labels of an image of that name
                    continue
                split = split_named(stem)
                if found.setdefault(_stem(words[0]), split) != split:
                    raise BadDataError(
                        f"{self.path(file)} lists '{words[0]}', which another list has, too; "
                        "an image belongs to one split."
                    )
        return found


def _place(folder: str) -> Counter:
    parts = [part.lower() for part in folder.split(os.sep)]
    return Counter(part for part in parts if part and part not in _KINDS)


def _stem(name: str) -> str:
    base = os.path.basename(name.replace("\\", "/"))
    stem, suffix = os.path.splitext(base)
    return (stem if suffix.lower() in (*IMAGE_SUFFIXES, ".txt", ".xml") else base).lower()
