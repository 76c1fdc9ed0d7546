"""Ground truth and assignments of a whole batch as a few flat tensors.

Shapes: N images, G objects of all images together, R priors of all levels together, C classes.
"""

from typing import List, NamedTuple, Optional, Sequence, Tuple

import torch
from detectron2.structures import Boxes, Instances

__all__ = ["Assignment", "PackedTargets", "Predictions", "Priors", "SoftTargets", "pack_targets"]


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
        level_strides: the stride of each level; None: the width of the boxes.
    """

    boxes: torch.Tensor
    num_per_level: Tuple[int, ...]
    level_strides: Optional[Tuple[int, ...]] = None

    @classmethod
    def from_boxes(cls, levels: List[Boxes], strides: Optional[Sequence[int]] = None) -> "Priors":
        """Join what a Detectron2 anchor generator returns, for levels of these strides."""
        return cls(
            torch.cat([x.tensor for x in levels]),
            tuple(len(x) for x in levels),
            None if strides is None else tuple(strides),
        )

    @property
    def strides(self) -> torch.Tensor:
        """(R,), the stride of each prior."""
        if self.level_strides is None:
            return self.boxes[:, 2] - self.boxes[:, 0]
        levels = [
            self.boxes.new_full((num,), stride)
            for num, stride in zip(self.num_per_level, self.level_strides)
        ]
        return torch.cat(levels)

    @property
    def centers(self) -> torch.Tensor:
        """(R, 2)."""
        return (self.boxes[:, :2] + self.boxes[:, 2:]) / 2

    def widened(self, scale: float) -> "Priors":
        """The same places, as squares whose sides are so many strides."""
        half = self.strides[:, None] * (scale / 2)
        centers = self.centers
        return self._replace(boxes=torch.cat([centers - half, centers + half], dim=1))


class Predictions(NamedTuple):
    """A head's predictions for every prior of a batch, without gradient.

    Attributes:
        logits: (N, R, C) of the classes.
        boxes: (N, R, 4), decoded.
        objectness: (N, R) logits of a detector whose classes are conditional on an object; None
            elsewhere.
    """

    logits: torch.Tensor
    boxes: torch.Tensor
    objectness: Optional[torch.Tensor] = None


class SoftTargets(NamedTuple):
    """What an assignment may say of positives beyond a label; None: nothing.

    Attributes:
        target: (N, R), what a class loss that needs a quality aims at instead of the IoU.
        weights: (N, R), weights of the box losses. Their sum takes the place of the number of
            positives in all divisors.
    """

    target: Optional[torch.Tensor] = None
    weights: Optional[torch.Tensor] = None


class Assignment(NamedTuple):
    """Who is responsible for which object.

    Attributes:
        labels: (N, R) int64; 0..C-1 a class, C background, -1 ignored.
        matched: (N, R) int64, the object of each prior, counted over the batch. Where the label is
            not a class it is a valid index without a meaning (0 if the batch has no object).
        quality: (N, R), the IoU by which a prior was matched, or None if that is not how.
        target, weights: (N, R) each, see :class:`SoftTargets`; both are 0 off positives.
    """

    labels: torch.Tensor
    matched: torch.Tensor
    quality: Optional[torch.Tensor] = None
    target: Optional[torch.Tensor] = None
    weights: Optional[torch.Tensor] = None

    @property
    def soft(self) -> Optional[SoftTargets]:
        """The soft part, None if there is nothing soft in it."""
        hard = self.target is None and self.weights is None
        return None if hard else SoftTargets(self.target, self.weights)

    def matched_boxes(self, targets: PackedTargets) -> torch.Tensor:
        """(N, R, 4), the box of each prior's object; zeros if the batch has no object."""
        if len(targets.boxes) == 0:
            return targets.boxes.new_zeros(self.matched.shape + (4,))
        return targets.boxes[self.matched]
