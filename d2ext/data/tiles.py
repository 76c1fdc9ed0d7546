"""Large images with small objects: tiles for training by index, and detections of tiles merged.

A tile is a dataset dict of its image with a ``tile``, and is cut out when the image is read;
nothing is stored.

Shapes: K detections of an image.
"""

from typing import Any, Dict, List, Sequence, Tuple

import numpy as np
import torch
from detectron2.data import transforms as T
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, BoxMode, Instances
from torch import nn

__all__ = ["TiledModel", "cut", "tile_places", "tiles_of"]

# Share of an object's area that a tile has to show for the object to be learnt there.
_MIN_SHARE = 0.3
# Boxes of one class that overlap by more are one object seen in two tiles.
_SAME = 0.5
_BATCH = 4


def tile_places(width: int, height: int, side: int, overlap: float) -> List[Tuple[int, ...]]:
    """Where the tiles of an image are: x, y, width, height.

    The last one of a row or column is moved back to end with the image.

    Args:
        width, height: of the image.
        side: of a tile, in pixels of the image.
        overlap: share of a side that neighbours have in common at least.
    """

    def starts(length: int) -> List[int]:
        if length <= side:
            return [0]
        step = max(int(side * (1 - overlap)), 1)
        return [*range(0, length - side, step), length - side]

    size = (min(side, width), min(side, height))
    return [(x, y, *size) for y in starts(height) for x in starts(width)]


def tiles_of(
    dicts: Sequence[Dict[str, Any]], side: int, overlap: float, *, keep_empty: bool = False
) -> List[Dict[str, Any]]:
    """Dataset dicts of all tiles, each with the objects of which it shows enough.

    Boxes and polygons are moved; boxes are clipped to the tile.

    Args:
        dicts: of the images.
        side, overlap: see :func:`tile_places`.
        keep_empty: tiles without objects, too.
    """
    found = []
    for item in dicts:
        places = tile_places(item["width"], item["height"], side, overlap)
        if len(places) == 1:
            found.append(dict(item))
            continue
        tiles = [_tile_of(item, place) for place in places]
        found += [tile for tile in tiles if keep_empty or tile.get("annotations")]
    return found


def _tile_of(item: Dict[str, Any], place: Tuple[int, ...]) -> Dict[str, Any]:
    x, y, width, height = place
    sample = {**item, "tile": list(place), "width": width, "height": height}
    if "image_id" in item:
        sample["image_id"] = f"{item['image_id']}:{x},{y}"
    if "annotations" not in item:
        return sample
    kept = []
    for thing in item["annotations"]:
        box = BoxMode.convert(list(map(float, thing["bbox"])), thing["bbox_mode"], BoxMode.XYXY_ABS)
        x1, y1, x2, y2 = box
        inside = [max(x1 - x, 0), max(y1 - y, 0), min(x2 - x, width), min(y2 - y, height)]
        shown = max(inside[2] - inside[0], 0) * max(inside[3] - inside[1], 0)
        if shown < _MIN_SHARE * (x2 - x1) * (y2 - y1) or shown <= 0:
            continue
        moved = {**thing, "bbox": inside, "bbox_mode": BoxMode.XYXY_ABS}
        if isinstance(thing.get("segmentation"), list):
            pieces = [np.asarray(p, dtype=np.float64).reshape(-1, 2) for p in thing["segmentation"]]
            moved["segmentation"] = [(p - [x, y]).ravel().tolist() for p in pieces]
        kept.append(moved)
    sample["annotations"] = kept
    return sample


def cut(pixels: Any, sample: Dict[str, Any]) -> Any:
    """The pixels (H, W, C) of a dataset dict: the whole image, or its tile."""
    if "tile" not in sample:
        return pixels
    x, y, width, height = sample["tile"]
    return pixels[y : y + height, x : x + width]


class TiledModel(nn.Module):
    """A detector that looks at tiles of an image and at the whole of it, and merges by NMS.

    Args:
        model: the detector; boxes only.
        side, overlap: of the tiles; see :func:`tile_places`.
        resize: what an image or tile is resized by before the model sees it.
        max_detections: of an image.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        side: int,
        overlap: float,
        resize: T.Augmentation,
        max_detections: int = 100,
    ):
        super().__init__()
        self.model, self.side, self.overlap = model, side, overlap
        self.resize, self.max_detections = resize, max_detections

    def forward(self, inputs: List[Dict[str, Any]]) -> List[Dict[str, Instances]]:
        """Like the detector's, of images in the size of their files."""
        return [{"instances": self._detect(sample["image"])} for sample in inputs]

    def _detect(self, image: torch.Tensor) -> Instances:
        height, width = image.shape[-2:]
        places = tile_places(width, height, self.side, self.overlap)
        if len(places) > 1:
            places.append((0, 0, width, height))
        parts = []
        for start in range(0, len(places), _BATCH):
            chunk = places[start : start + _BATCH]
            outputs = self.model([self._input(image, place) for place in chunk])
            for (x, y, _, _), output in zip(chunk, outputs):
                found = output["instances"]
                shift = found.pred_boxes.tensor.new_tensor([x, y, x, y])
                parts.append((found.pred_boxes.tensor + shift, found.scores, found.pred_classes))
        boxes, scores, classes = (torch.cat(columns) for columns in zip(*parts))
        kept = batched_nms(boxes, scores, classes, _SAME)[: self.max_detections]
        merged = Instances((height, width))
        merged.pred_boxes = Boxes(boxes[kept])
        merged.scores, merged.pred_classes = scores[kept], classes[kept]
        return merged

    def _input(self, image: torch.Tensor, place: Tuple[int, ...]) -> Dict[str, Any]:
        x, y, width, height = place
        tile = image[:, y : y + height, x : x + width].permute(1, 2, 0).cpu().numpy()
        given = T.AugInput(np.ascontiguousarray(tile))
        self.resize(given)
        pixels = torch.as_tensor(np.ascontiguousarray(given.image.transpose(2, 0, 1)))
        return {"image": pixels, "height": height, "width": width}
