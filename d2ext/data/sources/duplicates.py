"""Photographs that show nearly the same, found by what they look like.

Shapes: N photographs.
"""

from typing import Iterator, List, Sequence, Tuple

import numpy as np
from PIL import Image, ImageOps

__all__ = ["MAX_COMPARED", "duplicate_groups", "fingerprints", "near_duplicates"]

#: Photographs that are compared, each with each other; of more, only the first ones are.
MAX_COMPARED = 20000
_SIDE = 32
_HASH_BITS = 12  # of 64 that may differ for two to be looked at more closely
_CORRELATION = 0.975  # of two thumbnails, from which they count as the same
_CHUNK = 128


def fingerprints(files: Sequence[str]) -> Tuple[np.ndarray, np.ndarray]:
    """A difference hash and a thumbnail of each image.

    Returns:
        (N,) uint64, and (N, 1024) float32 of mean 0 and length 1; both 0 where an image cannot be
        read, and the latter where it is of one colour.
    """
    hashes = np.zeros(len(files), dtype=np.uint64)
    thumbnails = np.zeros((len(files), _SIDE * _SIDE), dtype=np.float32)
    weights = np.uint64(1) << np.arange(64, dtype=np.uint64)
    for k, file in enumerate(files):
        try:
            with Image.open(file) as image:
                image.draft("L", (4 * _SIDE, 4 * _SIDE))  # JPEG decodes at a fraction of its size
                grey = ImageOps.exif_transpose(image).convert("L")
                small = np.asarray(grey.resize((9, 8), Image.Resampling.BOX), dtype=np.int16)
                thumb = grey.resize((_SIDE, _SIDE), Image.Resampling.BOX)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            continue  # the checks of image files report it
        hashes[k] = (weights * (small[:, 1:] > small[:, :-1]).ravel()).sum()
        pixels = np.asarray(thumb, dtype=np.float32).ravel()
        pixels = pixels - pixels.mean()
        thumbnails[k] = pixels / max(float(np.linalg.norm(pixels)), 1e-6)
    return hashes, thumbnails


def near_duplicates(hashes: np.ndarray, thumbnails: np.ndarray) -> Iterator[Tuple[int, int]]:
    """Pairs of photographs that look the same, the earlier one first.

    The hash finds candidates, and the thumbnails' correlation decides: a hash alone takes flat
    pictures for each other.
    """
    count = min(len(hashes), MAX_COMPARED)
    usable = np.abs(thumbnails).any(1)
    for start in range(0, count, _CHUNK):
        rows = hashes[start : start + _CHUNK, None]
        differ = _count_bits(rows ^ hashes[None, start:count])
        for a, b in zip(*np.nonzero(differ <= _HASH_BITS)):
            a, b = int(start + a), int(b)
            if not (a < b and usable[a] and usable[b]):
                continue
            if float(thumbnails[a] @ thumbnails[b]) >= _CORRELATION:
                yield a, b


def _count_bits(values: np.ndarray) -> np.ndarray:
    if hasattr(np, "bitwise_count"):  # NumPy 2
        return np.bitwise_count(values)
    return np.unpackbits(np.ascontiguousarray(values)[..., None].view(np.uint8), axis=-1).sum(-1)


def duplicate_groups(files: Sequence[str]) -> List[int]:
    """A number for each photograph, the same for those that look the same, directly or through
    others."""
    group = list(range(len(files)))

    def find(k: int) -> int:
        while group[k] != k:
            group[k] = group[group[k]]
            k = group[k]
        return k

    for a, b in near_duplicates(*fingerprints(files)):
        group[find(b)] = find(a)
    return [find(k) for k in range(len(files))]
