"""Detectron2's ``DatasetMapper`` with a faster resize: the same samples, pixels within one level.

Of the time Detectron2's mapper takes, most goes into Pillow's resize. PyTorch resizes bytes with
the same filter (bilinear, widened when it shrinks) in a fraction of it, and rounds differently
here and there, by one grey level. Augmentations, what they draw, their transforms and the treatment
of masks and keypoints are Detectron2's own; boxes without them are transformed all at once.

Shapes: H and W the size of an image, G objects.
"""

import copy
import logging
from typing import Any, Dict, Optional, Sequence, Set

import numpy as np
import torch
from detectron2.data import DatasetMapper, detection_utils
from detectron2.data import transforms as T
from detectron2.structures import Boxes, BoxMode, Instances
from detectron2.utils.logger import log_first_n
from PIL import Image
from torch.nn import functional as F

from d2ext._files import open_image

from .tiles import cut

__all__ = ["FastMapper", "read_image", "why_not_fast"]

# Augmentations that look only at the size of an image, and lead to a transform of
# _Picture. Subclasses do not count: they may look at pixels.
_RESIZES = (T.ResizeShortestEdge, T.Resize, T.ResizeScale)
_AUGMENTATIONS = (*_RESIZES, T.RandomFlip, T.RandomCrop)
_FORMATS = ("RGB", "BGR")


def why_not_fast(augmentations: Sequence[Any], image_format: str) -> Optional[str]:
    """What keeps :class:`FastMapper` from standing in for Detectron2's mapper; None: nothing.

    Args:
        augmentations, image_format: as Detectron2's ``DatasetMapper`` takes them.
    """
    if image_format not in _FORMATS:
        return f"images in the format {image_format}"
    for augmentation in augmentations:
        # Detectron2 wraps a transform that is given in place of an augmentation.
        name = type(getattr(augmentation, "tfm", augmentation)).__name__
        if type(augmentation) not in _AUGMENTATIONS:
            return f"the augmentation {name}"
        if type(augmentation) in _RESIZES and augmentation.interp != Image.Resampling.BILINEAR:
            return f"{name} with a filter other than bilinear"
    try:
        _resize(torch.zeros(2, 2, 4, dtype=torch.uint8), 3, 3)
    except (RuntimeError, NotImplementedError):
        return f"resizing of bytes in PyTorch {torch.__version__}"
    return None


class FastMapper(DatasetMapper):
    """Takes Detectron2's arguments, or its config, and gives its samples.

    With the same random state it gives the same transforms, boxes, classes, masks and keypoints,
    and pixels that differ by one grey level at most. A dataset dict with a semantic segmentation
    goes through Detectron2's own code.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.read = read_image
        reason = why_not_fast(self.augmentations.augs, self.image_format)
        if reason is not None:
            raise ValueError(
                f"FastMapper does not cover {reason}; use Detectron2's DatasetMapper "
                "(with DATALOADER.MAPPER auto the choice is made by itself)."
            )

    def __call__(self, dataset_dict: Dict[str, Any]) -> Dict[str, Any]:
        """A dataset dict of Detectron2 to what its models take."""
        if "sem_seg_file_name" in dataset_dict:
            message = "Images with a semantic segmentation go through Detectron2's DatasetMapper."
            log_first_n(logging.INFO, message, name=__name__, key="message")
            return super().__call__(dataset_dict)
        sample = self._copy(dataset_dict)
        picture = _Picture(cut(self.read(sample["file_name"]), sample))
        detection_utils.check_image_size(sample, picture.image)
        transforms = self.augmentations(picture)
        sample["image"] = picture.planes(self.image_format)
        size = tuple(sample["image"].shape[1:])
        if self.proposal_topk is not None:
            detection_utils.transform_proposals(
                sample, size, transforms, proposal_topk=self.proposal_topk
            )
        if "annotations" in sample:
            self._transform_annotations(sample, transforms, size)
        return sample

    def _transform_annotations(
        self, dataset_dict: Dict[str, Any], transforms: T.TransformList, image_shape: Sequence[int]
    ) -> None:
        objects = [x for x in dataset_dict["annotations"] if x.get("iscrowd", 0) == 0]
        boxes = None
        if not self.use_instance_mask and not self.use_keypoint:
            boxes = _stack_boxes(objects)
        if boxes is None:
            super()._transform_annotations(dataset_dict, transforms, image_shape)
            return
        del dataset_dict["annotations"]
        height, width = image_shape
        boxes = transforms.apply_box(boxes).clip(min=0)
        instances = Instances(image_shape)
        instances.gt_boxes = Boxes(np.minimum(boxes, [width, height, width, height]))
        instances.gt_classes = torch.tensor(
            [int(x["category_id"]) for x in objects], dtype=torch.int64
        )
        dataset_dict["instances"] = detection_utils.filter_empty_instances(instances)

    def _copy(self, dataset_dict: Dict[str, Any]) -> Dict[str, Any]:
        """A copy to work on, without what would be thrown away: polygons are slow to copy."""
        sample = {k: copy.deepcopy(v) for k, v in dataset_dict.items() if k != "annotations"}
        if self.is_train and "annotations" in dataset_dict:
            unused = set() if self.use_instance_mask else {"segmentation"}
            unused |= set() if self.use_keypoint else {"keypoints"}
            sample["annotations"] = [
                {k: copy.deepcopy(v) for k, v in annotation.items() if k not in unused}
                for annotation in dataset_dict["annotations"]
            ]
        return sample


def _stack_boxes(objects: Sequence[Dict[str, Any]]) -> Optional[np.ndarray]:
    """Boxes of all objects as (G, 4) corners, so that they can be transformed at once.

    Detectron2 converts and transforms box after box, which with ten objects takes as long as the
    resize of a small image. It computes in the number format of each box: whole numbers stay
    whole, and what is given as width and height is rounded to float32.

    Returns:
        None where Detectron2's own code has to do it: for whole numbers, arrays, rotated boxes.
    """
    rows, sized = [], []
    for item in objects:
        box, mode = item["bbox"], item["bbox_mode"]
        kinds = set(map(type, box)) if isinstance(box, (list, tuple)) and len(box) == 4 else set()
        if float not in kinds or not kinds <= {int, float}:
            return None
        if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
            return None
        rows.append(box)
        sized.append(mode == BoxMode.XYWH_ABS)
    if not rows:
        return None
    boxes = np.array(rows, dtype=np.float64)
    corners = boxes[sized].astype(np.float32)
    corners[:, 2:] += corners[:, :2]
    boxes[sized] = corners
    return boxes


class _Picture:
    """What augmentations get, in place of Detectron2's ``AugInput``.

    Attributes:
        image: (H, W, 4) bytes, the colours and a filler. Flips to come are not yet in it.
    """

    def __init__(self, image: torch.Tensor):
        self.image = image
        self._flips: Set[int] = set()

    def transform(self, transform: T.Transform) -> None:
        """Called by each augmentation."""
        if isinstance(transform, T.HFlipTransform):
            self._flips ^= {1}
        elif isinstance(transform, T.VFlipTransform):
            self._flips ^= {0}
        elif isinstance(transform, T.CropTransform):
            self._flip()
            t = transform
            self.image = self.image[t.y0 : t.y0 + t.h, t.x0 : t.x0 + t.w]
        elif isinstance(transform, T.ResizeTransform):
            self._flip()
            self.image = _resize(self.image, transform.new_h, transform.new_w)
        elif not isinstance(transform, T.NoOpTransform):
            raise TypeError(f"FastMapper does not cover {type(transform).__name__}.")

    def _flip(self) -> None:
        if self._flips:
            self.image, self._flips = self.image.flip(tuple(self._flips)), set()

    def planes(self, image_format: str) -> torch.Tensor:
        """(3, H, W) in RGB or BGR. Flips and the order of colours take one pass together."""
        planes = self.image.permute(2, 0, 1)[:3]
        axes = [axis + 1 for axis in self._flips] + ([0] if image_format == "BGR" else [])
        if not axes:
            return planes.clone(memory_format=torch.contiguous_format)  # leaves the filler behind
        return planes.flip(axes).contiguous()


def read_image(file_name: str) -> torch.Tensor:
    """(H, W, 4) bytes of an image file, decoded, turned and converted as Detectron2 does it.

    Four bytes a pixel are how Pillow holds an image, and what PyTorch resizes twice as fast as
    three.
    """
    with open_image(file_name) as image:
        image = detection_utils._apply_exif_orientation(image)
        if image.mode != "RGB":
            image = image.convert("RGB")
        # A bytearray, because PyTorch warns of memory it must not write to.
        pixels = bytearray(image.tobytes("raw", "RGBX"))
    return torch.frombuffer(pixels, dtype=torch.uint8).view(image.height, image.width, 4)


def _resize(image: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """(H, W, 4) bytes to (height, width, 4)."""
    if tuple(image.shape[:2]) == (height, width):
        return image
    # Contiguous with colours last: PyTorch resizes other layouts several times slower.
    batch = image.contiguous().permute(2, 0, 1)[None]
    resized = F.interpolate(
        batch, (height, width), mode="bilinear", align_corners=False, antialias=True
    )
    return resized[0].permute(1, 2, 0)
