"""Parts for boxes that end with their last pixel, one before ``x2`` and ``y2``.

The first detectors, maskrcnn-benchmark among them, count so: a box from 3 to 5 is 3 pixels wide.
Everywhere else in this package boxes are continuous; these parts are the places where that shows.

Shapes: K boxes.
"""

import math
from typing import Any, List

import torch
from detectron2.modeling.anchor_generator import (
    ANCHOR_GENERATOR_REGISTRY,
    BufferList,
    DefaultAnchorGenerator,
)
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.modeling.poolers import ROIPooler
from torch import nn

__all__ = ["LastPixelTransform", "RoundedAnchorGenerator", "pool_to_last_pixel", "rounded_anchors"]


class LastPixelTransform(Box2BoxTransformLinear):
    """Distances from a point to the first and the last pixels of a box."""

    def get_deltas(self, src_boxes: torch.Tensor, target_boxes: torch.Tensor) -> torch.Tensor:
        """(K, 4) distances; the boxes have to contain the centres of ``src_boxes``."""
        return super().get_deltas(src_boxes, target_boxes - target_boxes.new_tensor([0, 0, 1, 1]))

    def apply_deltas(self, deltas: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """(K, 4) boxes."""
        return super().apply_deltas(deltas, boxes) + deltas.new_tensor([0, 0, 1, 1])


@ANCHOR_GENERATOR_REGISTRY.register()
class RoundedAnchorGenerator(DefaultAnchorGenerator):
    """Anchors of whole pixels at the size of a stride, which are then scaled.

    Sides are up to 6 % off those of ``DefaultAnchorGenerator``, but for squares. With an offset of
    0.5 they are maskrcnn-benchmark's.
    """

    def _calculate_anchors(self, sizes: List[Any], aspect_ratios: List[Any]) -> BufferList:
        return BufferList(
            [
                rounded_anchors(stride, of_level, ratios)
                for stride, of_level, ratios in zip(self.strides, sizes, aspect_ratios)
            ]
        )


def rounded_anchors(stride: int, sizes: List[float], ratios: List[float]) -> torch.Tensor:
    """(sizes * ratios, 4) around the origin."""
    rows = []
    for size in sizes:
        for ratio in ratios:
            width = round(math.sqrt(stride**2 / ratio))
            height = round(width * ratio)
            x, y = width * size / stride / 2, height * size / stride / 2
            rows.append([-x, -y, x, y])
    return torch.tensor(rows)


def pool_to_last_pixel(pooler: ROIPooler) -> None:
    """Make a pooler pool boxes that end one pixel earlier, in place.

    The level of a box follows from its continuous size as before.
    """
    pooler.level_poolers = nn.ModuleList(map(_ToLastPixel, pooler.level_poolers))


class _ToLastPixel(nn.Module):
    """A pooling operation that is given boxes one pixel smaller at the end."""

    def __init__(self, pool: nn.Module):
        super().__init__()
        self.pool = pool

    def forward(self, feature: torch.Tensor, regions: torch.Tensor) -> torch.Tensor:
        """
        Args:
            feature: (N, C, H, W).
            regions: (K, 5), image and box.
        """
        return self.pool(feature, regions - regions.new_tensor([0, 0, 0, 1, 1]))
