"""Ground truth and assignments of a whole batch as a few flat tensors.

Shapes: N images, G objects of all images together, R priors of all levels together, C classes.
"""

from typing import List, NamedTuple, Optional, Tuple

import torch
from detectron2.structures import Boxes, Instances

__all__ = ["Assignment", "PackedTargets", "Priors", "pack_targets"]


class PackedTargets(NamedTuple):
    """The objects of a batch, image after image.

    The counts are Python numbers: shapes are known without asking the device.

    Attributes:
        boxes: (G, 4).
        classes: (G,) int64.
        image: (G,) int64, the image of each object, ascending.
        counts: objects of each image, N numbers.
        image_sizes: (height, width) of each image, N pairs.
    """

    boxes: torch.Tensor
    classes: torch.Tensor
    image: torch.Tensor
    counts: Tuple[int, ...]
    image_sizes: Tuple[Tuple[int, int], ...]

    @property
    def num_images(self) -> int:
        return len(self.counts)

    @property
    def starts(self) -> List[int]:
        """Where the objects of each image begin, N numbers."""
        starts, total = [], 0
        for count in self.counts:
            starts.append(total)
            total += count
        return starts

    def class_agnostic(self) -> "PackedTargets":
        """The same objects, all of class 0: what a proposal generator learns from."""
        return self._replace(classes=torch.zeros_like(self.classes))


def pack_targets(instances: List[Instances]) -> PackedTargets:
    """Join the ground truth of a batch; an image may be without objects.

    Args:
        instances: N Instances with ``gt_boxes`` and ``gt_classes`` (without classes, as a proposal
            generator may be given them, every object is of class 0).
    """
    if len(instances) == 0:
        raise ValueError("Cannot assign an empty batch: give at least one image.")
    boxes = torch.cat([x.gt_boxes.tensor for x in instances])
    counts = tuple(len(x) for x in instances)
    if all(x.has("gt_classes") for x in instances):
        classes = torch.cat([x.gt_classes for x in instances])
    else:
        classes = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    repeats = torch.tensor(counts)
    image = torch.arange(len(counts)).repeat_interleave(repeats, output_size=len(boxes))
    return PackedTargets(
        boxes=boxes,
        classes=classes,
        image=image.to(boxes.device, non_blocking=True),
        counts=counts,
        image_sizes=tuple(x.image_size for x in instances),
    )


class Priors(NamedTuple):
    """The anchors of a detector, or its points as boxes whose size is the stride.

    Attributes:
        boxes: (R, 4), level after level.
        num_per_level: priors of each level.
    """

    boxes: torch.Tensor
    num_per_level: Tuple[int, ...]

    @classmethod
    def from_boxes(cls, levels: List[Boxes]) -> "Priors":
        """Join what a Detectron2 anchor generator returns."""
        return cls(torch.cat([x.tensor for x in levels]), tuple(len(x) for x in levels))


class Assignment(NamedTuple):
    """Who is responsible for which object.

    Attributes:
        labels: (N, R) int64; 0..C-1 a class, C background, -1 ignored.
        matched: (N, R) int64, the object of each prior, counted over the batch. Where the label is
            not a class it is a valid index without a meaning (0 if the batch has no object).
        quality: (N, R), the IoU by which a prior was matched, or None if that is not how.
    """

    labels: torch.Tensor
    matched: torch.Tensor
    quality: Optional[torch.Tensor] = None

    def matched_boxes(self, targets: PackedTargets) -> torch.Tensor:
        """(N, R, 4), the box of each prior's object; zeros if the batch has no object."""
        if len(targets.boxes) == 0:
            return targets.boxes.new_zeros(self.matched.shape + (4,))
        return targets.boxes[self.matched]
