"""The head of DW: FCOS' towers, an objectness branch, distances in pixels, box refinement.

Shapes: N images, C classes, L levels, h and w the size of a level's map.
"""

from typing import List, Tuple

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.fcos import FCOSHead
from torch import nn

from d2ext.ops.box_refinement import refine_boxes

from ..deform import ModulatedDeformConv

__all__ = ["DualWeightingHead"]


class DualWeightingHead(FCOSHead):
    """FCOS' head with four changes.

    * A learned factor on the box branch of each level, and ReLU instead of exp.
    * Distances come out in pixels.
    * What FCOS calls centerness (``ctrness``) is an objectness: it has no target of its own, and
      multiplies the class scores in the loss as in the result.
    * Optionally each side is read again at a learned point near that side.
    """

    def __init__(
        self,
        *,
        input_shape: List[ShapeSpec],
        num_classes: int,
        conv_dims: List[int],
        norm: str = "GN",
        prior_prob: float = 0.02,
        box_bias: float = 4.0,
        refine: bool = False,
        deform_last_conv: bool = False,
    ):
        """
        Args:
            input_shape: channels and stride of each level.
            conv_dims: channels of each convolution of the towers.
            norm: normalisation in the towers.
            prior_prob: initial class score; the joint score starts at half of it.
            box_bias: initial distance to each side, in strides.
            refine: refine the boxes.
            deform_last_conv: make the last convolution of both towers deformable.
        """
        super().__init__(
            input_shape=input_shape,
            conv_dims=conv_dims,
            num_classes=num_classes,
            norm=norm,
            prior_prob=prior_prob,
        )
        self.strides = [float(shape.stride) for shape in input_shape]
        self.scales = nn.Parameter(torch.ones(len(self.strides)))
        nn.init.constant_(self.bbox_pred.bias, box_bias)
        if deform_last_conv:
            for tower in (self.cls_subnet, self.bbox_subnet):
                _deform_last_conv(tower)
        self.reg_offset = None
        if refine:
            self.reg_offset = nn.Conv2d(conv_dims[-1], 8, kernel_size=3, padding=1)
            nn.init.normal_(self.reg_offset.weight, std=0.01)
            nn.init.zeros_(self.reg_offset.bias)

    def forward(
        self, features: List[torch.Tensor]
    ) -> Tuple[List[torch.Tensor], List[torch.Tensor], List[torch.Tensor]]:
        """
        Args:
            features: one map a level.

        Returns:
            for each level class logits (N, C, h, w), distances to left, top, right, bottom in
            pixels (N, 4, h, w), and objectness logits (N, 1, h, w).
        """
        logits, distances, objectness = [], [], []
        for level, feature in enumerate(features):
            box_feature = self.bbox_subnet(feature)
            logits.append(self.cls_score(self.cls_subnet(feature)))
            objectness.append(self.ctrness(box_feature))
            distances.append(self._distances(box_feature, level))
        return logits, distances, objectness

    def _distances(self, feature: torch.Tensor, level: int) -> torch.Tensor:
        # float32: half precision has steps of half a pixel at 1000 pixels.
        raw = self.bbox_pred(feature)
        raw = raw.to(torch.promote_types(raw.dtype, torch.float32))
        stride = self.strides[level]
        ltrb = (self.scales[level] * raw).relu() * stride
        if self.reg_offset is None:
            return ltrb
        return refine_boxes(ltrb, self.reg_offset(feature), stride)


def _deform_last_conv(tower: nn.Sequential) -> None:
    """Replace the last convolution of a tower by a deformable one, initialised alike."""
    index = max(i for i, layer in enumerate(tower) if isinstance(layer, nn.Conv2d))
    plain = tower[index]
    tower[index] = ModulatedDeformConv(
        plain.in_channels, plain.out_channels, plain.kernel_size, padding=plain.padding
    )
    tower[index].weight, tower[index].bias = plain.weight, plain.bias
