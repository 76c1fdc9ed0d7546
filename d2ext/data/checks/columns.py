"""Objects of a data set as columns, whatever they were read from.

Shapes: N images, G objects.
"""

import functools
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np

from .kinds import KINDS, Problem
from .masks import size_fault

__all__ = ["Columns"]


class Columns:
    """Objects as columns, and which of them to drop.

    Attributes:
        things: the G objects.
        image: (G,) rank of each one's image; -1 if there is no such image.
        sizes: (G, 2) width and height of its image; NaN if they are not known.
        drop: (G,) bool, those that belong to a problem of the level "skip".
    """

    def __init__(self, things: List[Dict[str, Any]], image: np.ndarray, sides: Sequence[Tuple]):
        """
        Args:
            things, image: see above.
            sides: width and height of each of the N images, or None.
        """
        self.things, self.image = things, image
        # One row more, which rank -1 finds: the size of an unknown image.
        self.sizes = np.asarray([*sides, (None, None)], dtype=np.float64)[image]
        self.drop = np.zeros(len(things), dtype=bool)

    @functools.cached_property
    def masks(self) -> List[Any]:
        return [thing.get("segmentation") for thing in self.things]

    def name(self, k: int) -> Tuple[str, str]:
        """How messages name the image of an object, and the object."""
        raise NotImplementedError

    def problem(self, kind: str, k: int, detail: str = "") -> Problem:
        """A finding of one object."""
        # An object of which only a piece is bad loses that piece.
        if KINDS[kind].level == "skip" and kind != "short polygon piece":
            self.drop[k] = True
        image, thing = self.name(k)
        return Problem(kind, image, f"{thing}: {detail}" if detail else thing)

    def find_runs(
        self, fault_of: Callable[[Dict[str, Any]], str] = lambda mask: ""
    ) -> List[Problem]:
        """Run-length encoded masks that are damaged, or of another size than their image's."""
        found = []
        for k, mask in enumerate(self.masks):
            if not isinstance(mask, dict):
                continue
            if fault := fault_of(mask):
                found.append(self.problem("broken mask", k, fault))
            elif fault := size_fault(mask, *self.sizes[k]):
                found.append(self.problem("wrong mask size", k, fault))
        return found
