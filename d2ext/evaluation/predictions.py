"""Detections of a whole dataset as a few arrays.

The columns cost 28 bytes a box where a dictionary costs hundreds, which makes 300 boxes on each of
LVIS' 20 000 images cheap to hold and to send between processes.

Shapes: N images, M detections.
"""

import dataclasses
import json
from typing import Any, Dict, Iterator, List, Optional, Union

import numpy as np

__all__ = ["PredictionBuffer", "Predictions"]

ImageId = Union[int, str]


@dataclasses.dataclass
class Predictions:
    """Detections, in the order in which they were produced.

    Attributes:
        image_ids: the N images that were processed, also those without a detection.
        image_index: (M,) int32, position of each detection's image in ``image_ids``.
        boxes: (M, 4) float32, XYXY.
        scores: (M,) float32.
        classes: (M,) int32, contiguous class indices.
        mask_counts: M compressed run-length strings, or None for a model without masks.
        mask_sizes: (M, 2) int32, height and width of each mask, or None.
    """

    image_ids: List[ImageId]
    image_index: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    classes: np.ndarray
    mask_counts: Optional[List[bytes]] = None
    mask_sizes: Optional[np.ndarray] = None

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def has_masks(self) -> bool:
        """Whether the model predicts masks."""
        return self.mask_counts is not None

    @property
    def boxes_xywh(self) -> np.ndarray:
        """(M, 4) float32. Subtracted in float32, as Detectron2 does, so that the evaluation and the
        written file hold the numbers that Detectron2's would."""
        return np.concatenate([self.boxes[:, :2], self.boxes[:, 2:] - self.boxes[:, :2]], axis=1)

    @classmethod
    def merge(cls, parts: List["Predictions"]) -> "Predictions":
        """Join the predictions of several images or ranks, keeping their order."""
        filled = [part for part in parts if len(part)]
        # An image without detections may come without a mask field; it decides nothing
        # unless there are no detections at all.
        with_masks = any(part.has_masks for part in (filled or parts))
        if with_masks and not all(part.has_masks for part in filled):
            raise ValueError(
                "Some predictions have masks and others do not; give every prediction of one "
                "evaluation the field 'pred_masks', or none of them."
            )
        image_ids = [image_id for part in parts for image_id in part.image_ids]
        offsets = np.cumsum([0] + [len(part.image_ids) for part in parts])
        index = [part.image_index + offset for part, offset in zip(parts, offsets)]
        return cls(
            image_ids=image_ids,
            image_index=_concatenate(index, (0,), np.int32),
            boxes=_concatenate([part.boxes for part in parts], (0, 4), np.float32),
            scores=_concatenate([part.scores for part in parts], (0,), np.float32),
            classes=_concatenate([part.classes for part in parts], (0,), np.int32),
            mask_counts=(
                [c for part in filled for c in part.mask_counts or ()] if with_masks else None
            ),
            mask_sizes=(
                _concatenate([part.mask_sizes for part in filled], (0, 2), np.int32)
                if with_masks
                else None
            ),
        )

    def select(self, index: np.ndarray) -> "Predictions":
        """The detections at ``index`` (positions, not a mask), in that order."""
        counts, sizes = self.mask_counts, self.mask_sizes
        return dataclasses.replace(
            self,
            image_index=self.image_index[index],
            boxes=self.boxes[index],
            scores=self.scores[index],
            classes=self.classes[index],
            mask_counts=None if counts is None else [counts[i] for i in index.tolist()],
            mask_sizes=None if sizes is None else sizes[index],
        )

    def rle(self, index: int) -> dict:
        """The mask of one detection in COCO's compressed run-length format."""
        assert self.mask_sizes is not None and self.mask_counts is not None
        height, width = self.mask_sizes[index].tolist()
        return {"size": [height, width], "counts": self.mask_counts[index]}

    def save(self, file) -> None:
        """Write the arrays as an ``.npz`` file that :meth:`load` reads back without pickle."""
        arrays: Dict[str, Any] = {
            "image_ids": np.asarray(self.image_ids),
            "image_index": self.image_index,
            "boxes_xyxy": self.boxes,
            "scores": self.scores,
            "classes": self.classes,
        }
        counts = self.mask_counts
        if counts is not None:
            arrays["mask_sizes"] = self.mask_sizes
            arrays["mask_bytes"] = np.frombuffer(b"".join(counts), dtype=np.uint8)
            arrays["mask_lengths"] = np.asarray([len(c) for c in counts], dtype=np.int64)
        np.savez(file, **arrays)

    @classmethod
    def load(cls, file) -> "Predictions":
        """Read what :meth:`save` wrote."""
        with np.load(file, allow_pickle=False) as data:
            counts, sizes = None, None
            if "mask_bytes" in data:
                stream, sizes = data["mask_bytes"].tobytes(), data["mask_sizes"]
                ends = np.cumsum(data["mask_lengths"])
                starts = ends - data["mask_lengths"]
                counts = [stream[a:b] for a, b in zip(starts.tolist(), ends.tolist())]
            return cls(
                image_ids=data["image_ids"].tolist(),
                image_index=data["image_index"],
                boxes=data["boxes_xyxy"],
                scores=data["scores"],
                classes=data["classes"],
                mask_counts=counts,
                mask_sizes=sizes,
            )

    def iter_json(self, category_ids: np.ndarray) -> Iterator[dict]:
        """Yield one record a detection in COCO's result format.

        Args:
            category_ids: (M,) the dataset's category id of each detection.
        """
        rows = zip(
            self.image_index.tolist(),
            category_ids.tolist(),
            self.boxes_xywh.tolist(),
            self.scores.tolist(),
        )
        for i, (image, category_id, box, score) in enumerate(rows):
            record = {
                "image_id": self.image_ids[image],
                "category_id": category_id,
                "bbox": box,
                "score": score,
            }
            if self.has_masks:
                rle = self.rle(i)
                record["segmentation"] = {**rle, "counts": rle["counts"].decode("ascii")}
            yield record

    def write_json(self, file, category_ids: np.ndarray) -> None:
        """Write COCO's result format to an open text file, one record at a time."""
        file.write("[")
        for i, record in enumerate(self.iter_json(category_ids)):
            file.write((", " if i else "") + json.dumps(record))
        file.write("]")


class PredictionBuffer:
    """Collects :class:`Predictions` image by image."""

    def __init__(self):
        self._parts: List[Predictions] = []

    def add(self, image_id: ImageId, instances) -> None:
        """Keep the detections of one image.

        Args:
            image_id: identifies the image in the dataset's annotations.
            instances: detectron2's ``Instances`` with ``pred_boxes``, ``scores``, ``pred_classes``
                and, for instance segmentation, ``pred_masks`` (boolean, one full image each).
        """
        boxes = instances.pred_boxes.tensor.detach().float().cpu().numpy().reshape(-1, 4)
        scores = instances.scores.detach().float().cpu().numpy()
        counts, sizes = None, None
        if instances.has("pred_masks"):
            counts, sizes = _encode_masks(instances.pred_masks)
        self._parts.append(
            Predictions(
                image_ids=[_plain_id(image_id)],
                image_index=np.zeros(len(scores), dtype=np.int32),
                boxes=boxes,
                scores=scores,
                classes=instances.pred_classes.cpu().numpy().astype(np.int32),
                mask_counts=counts,
                mask_sizes=sizes,
            )
        )

    def merged(self) -> Predictions:
        """All detections so far."""
        if len(self._parts) != 1:
            self._parts = [Predictions.merge(self._parts)]
        return self._parts[0]


def _concatenate(arrays, empty_shape, dtype):
    """Concatenate along the first axis; no arrays make an empty one."""
    arrays = list(arrays) or [np.empty(empty_shape)]
    return np.concatenate(arrays).astype(dtype, copy=False)


def _plain_id(image_id) -> ImageId:
    """An image id as JSON can write it: an int from a tensor or NumPy scalar, else unchanged."""
    return image_id.item() if hasattr(image_id, "item") else image_id


def _encode_masks(masks):
    """Compress full-image masks, (M, H, W) boolean, to run lengths."""
    import pycocotools.mask as mask_util

    if masks.ndim != 3:
        raise ValueError(
            f"Masks to evaluate must have shape (M, height, width), got {tuple(masks.shape)}; "
            "paste them into the image first, as detectron2's 'detector_postprocess' does."
        )
    sizes = np.tile(np.asarray(masks.shape[1:], dtype=np.int32), (len(masks), 1))
    # One mask at a time: run lengths need Fortran order, and a copy of all masks of a large
    # image in that order would double the memory they take.
    masks = masks.detach().cpu().numpy().astype(np.uint8, copy=False)
    counts = [mask_util.encode(np.asfortranarray(mask))["counts"] for mask in masks]
    return counts, sizes
