"""Albumentations' transforms on dataset dicts: boxes, masks and key points go with the image.

Corners of polygons travel as points, which is exact; run-length masks travel as pixels.
"""

import os
from typing import Any, Dict, List, Sequence

import numpy as np
from detectron2.structures import BoxMode

from d2ext._files import RunError

from .pictures import Picture, reach_of

__all__ = ["Albumentations"]

# They exchange left and right, which key points have names for.
_MIRRORS = ("HorizontalFlip", "VerticalFlip", "Transpose", "D4", "SquareSymmetry")


class Albumentations:
    """A list of Albumentations' transforms.

    Args:
        rows: each a mapping with ``name`` and the transform's arguments; one that holds others
            (``OneOf``) has them under ``transforms``.
        keypoints: whether key points are used; mirrors are refused then.
    """

    def __init__(self, rows: Sequence[Dict[str, Any]], *, keypoints: bool = False):
        # It asks the network for a newer version of itself otherwise.
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
        try:
            import albumentations
        except ImportError as error:
            raise RunError(
                "INPUT.ALBUMENTATIONS needs the package albumentations; install it with pip "
                "install 'd2ext[augment]', or empty the list."
            ) from error
        self._library, self._keypoints = albumentations, keypoints
        transforms = [self._build(row) for row in rows]
        self._compose = albumentations.Compose(
            transforms,
            bbox_params=albumentations.BboxParams(
                format="pascal_voc", label_fields=["numbers"], min_area=1.0, clip=True
            ),
            keypoint_params=albumentations.KeypointParams(format="xy", remove_invisible=False),
        )

    def _build(self, row: Any) -> Any:
        if not isinstance(row, dict) or not isinstance(row.get("name"), str):
            raise RunError(f"INPUT.ALBUMENTATIONS: {row!r} has no 'name' of a transform.")
        kind = getattr(self._library, row["name"], None)
        base = (self._library.BasicTransform, self._library.BaseCompose)
        if not (isinstance(kind, type) and issubclass(kind, base)):
            raise RunError(f"INPUT.ALBUMENTATIONS: Albumentations has no '{row['name']}'.")
        if self._keypoints and row["name"] in _MIRRORS:
            raise RunError(
                f"INPUT.ALBUMENTATIONS: {row['name']} exchanges left and right, which key points "
                "are named after; INPUT.RANDOM_FLIP renames them."
            )
        given = {k: v for k, v in row.items() if k != "name"}
        if "transforms" in given:
            given["transforms"] = [self._build(part) for part in given["transforms"]]
        try:
            return kind(**given)
        except (TypeError, ValueError) as error:
            text = " ".join(str(error).split())[:200]
            raise RunError(
                f"INPUT.ALBUMENTATIONS: {row['name']} refuses {given}: {text}"
            ) from error

    def __call__(self, picture: Picture) -> Picture:
        """A new picture; objects of which less than a pixel is left are left out."""
        self._compose.set_random_seed(int(np.random.randint(2**31)))
        objects = picture.annotations
        points = _points(objects)
        pixels = [k for k, item in enumerate(objects) if isinstance(item.get("segmentation"), dict)]
        given: Dict[str, Any] = {
            "image": np.ascontiguousarray(picture.image),
            "bboxes": reach_of(objects),
            "numbers": list(range(len(objects))),
            "keypoints": np.concatenate([p for _, _, p in points]) if points else np.zeros((0, 2)),
        }
        if pixels:
            given["masks"] = _decoded(objects, pixels)
        done = self._compose(**given)
        kept = {int(n): box for n, box in zip(done["numbers"], done["bboxes"])}
        new = [dict(item) for item in objects]
        _put_back(new, points, np.asarray(done["keypoints"], dtype=np.float64), done["image"].shape)
        for k, mask in zip(pixels, done.get("masks", ())):
            new[k]["segmentation"] = _encoded(mask)
        for k, box in kept.items():
            new[k]["bbox"] = [float(value) for value in box[:4]]
            new[k]["bbox_mode"] = BoxMode.XYXY_ABS
        return Picture(done["image"], [new[k] for k in sorted(kept)])


def _points(objects: Sequence[Dict[str, Any]]) -> List[Any]:
    """(object, piece or None for key points, (P, 2)) of everything that is points."""
    found: List[Any] = []
    for k, item in enumerate(objects):
        if isinstance(item.get("segmentation"), list):
            for n, piece in enumerate(item["segmentation"]):
                found.append((k, n, np.asarray(piece, dtype=np.float64).reshape(-1, 2)))
        if "keypoints" in item:
            rows = np.asarray(item["keypoints"], dtype=np.float64).reshape(-1, 3)
            found.append((k, None, rows[:, :2]))
    return found


def _put_back(
    objects: List[Dict[str, Any]], points: List[Any], values: np.ndarray, shape: Sequence[int]
) -> None:
    start = 0
    for k, piece, given in points:
        part = values[start : start + len(given), :2]
        start += len(given)
        if piece is None:
            rows = np.array(objects[k]["keypoints"], dtype=np.float64).reshape(-1, 3)
            inside = (part >= 0).all(1) & (part <= [shape[1], shape[0]]).all(1)
            rows[:, :2] = part
            rows[~inside] = 0
            objects[k]["keypoints"] = rows.ravel().tolist()
        else:
            pieces = list(objects[k]["segmentation"])
            pieces[piece] = part.ravel()
            objects[k]["segmentation"] = pieces


def _decoded(objects: Sequence[Dict[str, Any]], numbers: Sequence[int]) -> np.ndarray:
    from pycocotools import mask as coder

    return np.stack([coder.decode(objects[k]["segmentation"]) for k in numbers])


def _encoded(mask: np.ndarray) -> Dict[str, Any]:
    from pycocotools import mask as coder

    return coder.encode(np.asfortranarray(np.asarray(mask, dtype=np.uint8)))
