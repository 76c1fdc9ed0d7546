"""Golden vectors: what the authors' own code gave, one .npz a case in a folder a method."""

from pathlib import Path

import numpy as np

__all__ = ["FOLDER", "golden"]

FOLDER = Path(__file__).resolve().parent / "golden"


def golden(method, name):
    """The arrays of a case."""
    return np.load(FOLDER / method / f"{name}.npz")
