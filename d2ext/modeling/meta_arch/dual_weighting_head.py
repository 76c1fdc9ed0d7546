"""The head of DW: FCOS' towers, an objectness branch, distances in pixels, box refinement.

Shapes: N images, C classes, L levels, h and w the size of a level's map.
"""

import math
from typing import Any, List, Tuple

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.fcos import FCOSHead
from torch import nn

from d2ext.ops.box_refinement import refine_boxes

from ..backbones.deform import ModulatedDeformConv

__all__ = ["DualWeightingHead"]

# Detectron2's bound, which keeps exp() finite.
MAX_LOG_SIZE = math.log(1000.0 / 16)


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
        regression: str = "point",
        box_bias: float = 4.0,
        anchor_scale: float = 8.0,
        refine: bool = False,
        deform_last_conv: bool = False,
        deform_init: str = "zero",
    ):
        """
        Args:
            input_shape: channels and stride of each level.
            conv_dims: channels of each convolution of the towers.
            norm: normalisation in the towers.
            prior_prob: initial class score; the joint score starts at half of it.
            regression: what the box branch means: "point", the distances to the four sides in
                strides, as in the paper; "anchor", shifts of the centre and logarithms of the size
                relative to a square anchor around the point, as in ATSS.
            box_bias: initial distance to each side, in strides; for "point".
            anchor_scale: side of the anchor, in strides; for "anchor".
            refine: refine the boxes.
            deform_last_conv: make the last convolution of both towers deformable.
            deform_init: "zero", offsets of 0 and weights as the other convolutions'; or "authors",
                offsets as the other convolutions' and weights uniform up to 1 / sqrt(fan-in).
        """
        if deform_init not in ("zero", "authors"):
            raise ValueError(f"deform_init must be zero or authors, not '{deform_init}'.")
        if regression not in ("point", "anchor"):
            raise ValueError(
                "The boxes of dual weighting are regressed from a 'point' or from one 'anchor' at "
                f"each location, not from '{regression}'; other priors give a location several "
                "boxes, which the weights do not provide for."
            )
        super().__init__(
            input_shape=input_shape,
            conv_dims=conv_dims,
            num_classes=num_classes,
            norm=norm,
            prior_prob=prior_prob,
        )
        self.strides = [float(shape.stride) for shape in input_shape]
        self.scales = nn.Parameter(torch.ones(len(self.strides)))
        self.anchor_scale = anchor_scale if regression == "anchor" else 0.0
        nn.init.constant_(self.bbox_pred.bias, 0.0 if self.anchor_scale else box_bias)
        if deform_last_conv:
            for tower in (self.cls_subnet, self.bbox_subnet):
                _deform_last_conv(tower, deform_init)
        self.reg_offset: Any = None
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
        raw = self.scales[level] * raw
        if self.anchor_scale:
            raw = _sides_of_anchor(raw, self.anchor_scale)
        # A point may be outside of its anchor's box; that side then ends at the point.
        ltrb = raw.relu() * stride
        if self.reg_offset is None:
            return ltrb
        return refine_boxes(ltrb, self.reg_offset(feature), stride)


def _sides_of_anchor(deltas: torch.Tensor, scale: float) -> torch.Tensor:
    """Distances from a point to the sides of the box that deltas make of a square anchor there.

    Args:
        deltas: (N, 4, h, w), in Detectron2's convention with the weights (10, 10, 5, 5).
        scale: side of the anchor, in strides.

    Returns:
        (N, 4, h, w) in strides.
    """
    shift = deltas[:, :2] / 10 * scale
    half = (deltas[:, 2:] / 5).clamp(max=MAX_LOG_SIZE).exp() * (scale / 2)
    return torch.cat((half - shift, half + shift), dim=1)


def _deform_last_conv(tower: nn.Sequential, init: str) -> None:
    """Replace the last convolution of a tower by a deformable one."""
    index = max(i for i, layer in enumerate(tower) if isinstance(layer, nn.Conv2d))
    plain: Any = tower[index]
    deformable: Any = ModulatedDeformConv(
        plain.in_channels, plain.out_channels, plain.kernel_size, padding=plain.padding
    )
    if init == "zero":
        deformable.weight, deformable.bias = plain.weight, plain.bias
    else:
        # The authors' head initialises ordinary convolutions, and the offsets' is one.
        nn.init.normal_(deformable.conv_offset.weight, std=0.01)
        bound = plain.weight[0].numel() ** -0.5
        nn.init.uniform_(deformable.weight, -bound, bound)
        nn.init.zeros_(deformable.bias)
    tower[index] = deformable
