"""YOLOX's decoupled head: towers of its own for every level.

Shapes: N images, A anchors a location, C classes.
"""

import math
from typing import List, Tuple

import torch
from detectron2.layers import ShapeSpec
from torch import nn

from ..backbones.csp_darknet import conv_norm_silu, norm_factory

__all__ = ["DecoupledHead"]


class DecoupledHead(nn.Module):
    """A 1x1 convolution, then a class and a box tower, at each level with weights of its own.

    The third branch (quality or objectness) stands on the box tower.

    Args:
        input_shape: shapes of the feature maps.
        num_classes: C.
        num_anchors: A.
        conv_dims: channels of the towers' convolutions.
        prior_prob: what class and third branch predict at the start.
        norm: normalisation of the towers.
        bn_eps, bn_momentum: parameters of batch normalisations.
    """

    def __init__(
        self,
        *,
        input_shape: List[ShapeSpec],
        num_classes: int,
        num_anchors: int = 1,
        conv_dims: List[int],
        prior_prob: float = 0.01,
        norm: str = "BN",
        bn_eps: float = 1e-3,
        bn_momentum: float = 0.03,
    ):
        super().__init__()
        make_norm = norm_factory(norm, bn_eps, bn_momentum)
        dims = [conv_dims[0], *conv_dims]

        def tower() -> nn.Sequential:
            pairs = zip(dims, dims[1:])
            return nn.Sequential(*(conv_norm_silu(a, b, 3, norm=make_norm) for a, b in pairs))

        def predictor(numbers: int) -> nn.ModuleList:
            channels = num_anchors * numbers
            return nn.ModuleList(nn.Conv2d(dims[-1], channels, 1) for _ in input_shape)

        self.stems = nn.ModuleList(
            conv_norm_silu(shape.channels, dims[0], 1, norm=make_norm) for shape in input_shape
        )
        self.cls_subnet = nn.ModuleList(tower() for _ in input_shape)
        self.bbox_subnet = nn.ModuleList(tower() for _ in input_shape)
        self.cls_score = predictor(num_classes)
        self.bbox_pred = predictor(4)
        self.quality = predictor(1)
        for layer in (*self.cls_score, *self.quality):
            nn.init.constant_(layer.bias, -math.log((1 - prior_prob) / prior_prob))

    def forward(
        self, features: List[torch.Tensor]
    ) -> Tuple[List[torch.Tensor], List[torch.Tensor], List[torch.Tensor]]:
        """
        Returns:
            For each level: logits (N, A * C, H, W), deltas (N, A * 4, H, W) and logits of the third
            branch (N, A, H, W).
        """
        logits, deltas, quality = [], [], []
        for level, feature in enumerate(features):
            feature = self.stems[level](feature)
            logits.append(self.cls_score[level](self.cls_subnet[level](feature)))
            boxes = self.bbox_subnet[level](feature)
            deltas.append(self.bbox_pred[level](boxes))
            quality.append(self.quality[level](boxes))
        return logits, deltas, quality
