"""Decoded images of a training set, kept in memory that all data workers share.

Shapes: H and W the size of an image.
"""

import logging
import os
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

import torch

__all__ = ["ImageCache", "free_memory"]

logger = logging.getLogger(__name__)

# Of the memory that is free when training starts: the rest is the model's and the workers'.
_SHARE = 0.25


class _Place(NamedTuple):
    number: int
    start: int
    height: int
    width: int

    @property
    def stop(self) -> int:
        return self.start + 4 * self.height * self.width


class ImageCache:
    """Reads each image once; later reads, in any worker, give the same bytes.

    The memory is reserved at once, but the system gives it out as images are filled in. An image
    whose size is not the one in the data set (turned by its EXIF tag, say) is read again.

    Args:
        dicts: dataset dicts with ``file_name``, ``height`` and ``width``.
        read: a file's name to (H, W, 4) bytes.
    """

    def __init__(self, dicts: Sequence[Dict[str, Any]], read: Callable[[str], torch.Tensor]):
        self._read = read
        self._places: Dict[str, _Place] = {}
        size = 0
        for sample in dicts:
            name, height, width = sample["file_name"], sample.get("height"), sample.get("width")
            if name not in self._places and height and width:
                self._places[name] = _Place(len(self._places), size, int(height), int(width))
                size = self._places[name].stop
        self._bytes = torch.empty(size, dtype=torch.uint8).share_memory_()
        self._filled = torch.zeros(len(self._places), dtype=torch.uint8).share_memory_()

    @classmethod
    def if_wanted(
        cls,
        choice: str,
        dicts: Sequence[Dict[str, Any]],
        read: Callable[[str], torch.Tensor],
        *,
        sharers: int = 1,
    ) -> Optional["ImageCache"]:
        """A cache if DATALOADER.CACHE says so: "on", or "auto" and the images fit.

        Args:
            choice: "auto", "on" or "off".
            dicts, read: see the class.
            sharers: processes on this machine that each have a cache.
        """
        if choice == "off":
            return None
        sizes = {s["file_name"]: 4 * (s.get("height") or 0) * (s.get("width") or 0) for s in dicts}
        needed, free = sharers * sum(sizes.values()), free_memory()
        if choice == "auto" and needed > _SHARE * free:
            return None
        logger.info(
            f"Decoded images are kept in memory: {needed / 2**20:.0f} MiB of "
            f"{free / 2**20:.0f} MiB that are free (DATALOADER.CACHE)."
        )
        return cls(dicts, read)

    def __call__(self, file_name: str) -> torch.Tensor:
        """(H, W, 4) bytes of an image, not to be written to."""
        place = self._places.get(file_name)
        if place is None:
            return self._read(file_name)
        kept = self._bytes[place.start : place.stop].view(place.height, place.width, 4)
        if self._filled[place.number]:
            return kept
        image = self._read(file_name)
        if image.shape != kept.shape:
            del self._places[file_name]
            return image
        # Two workers may do this at once; both write the same.
        kept.copy_(image)
        self._filled[place.number] = 1
        return kept


def free_memory() -> int:
    """Bytes that this process may still take, as far as the system says."""
    found: List[int] = []
    try:
        with open("/proc/meminfo") as stream:
            lines = dict(line.split(":", 1) for line in stream)
        found.append(1024 * int(lines["MemAvailable"].split()[0]))
        # What is shared lies on this file system, which containers often make small.
        shared = os.statvfs("/dev/shm")
        found.append(shared.f_bavail * shared.f_frsize)
    except (OSError, KeyError, ValueError):
        pass
    return min(found, default=0)
