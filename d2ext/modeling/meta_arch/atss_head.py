"""RetinaNet's head with a third branch that predicts how good a box is.

Shapes: N images, A anchors a location, C classes.
"""

from typing import List, Tuple

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.meta_arch.retinanet import RetinaNetHead
from torch import nn

__all__ = ["QualityHead"]


class QualityHead(RetinaNetHead):
    """Class, box and quality (centerness or IoU) branches, shared over the levels.

    Args:
        input_shape: shapes of the feature maps.
        conv_dims: channels of the towers' convolutions.
        num_anchors: anchors a location, A.
        level_scales: a learned factor on the box branch of each level.
        conv_bias: whether the towers' convolutions have a bias beside their normalisation.
        kwargs: further arguments of Detectron2's ``RetinaNetHead``.
    """

    def __init__(
        self,
        *,
        input_shape: List[ShapeSpec],
        conv_dims: List[int],
        num_anchors: int,
        level_scales: bool = True,
        conv_bias: bool = True,
        **kwargs,
    ):
        super().__init__(
            input_shape=input_shape, conv_dims=conv_dims, num_anchors=num_anchors, **kwargs
        )
        self.quality = nn.Conv2d(conv_dims[-1], num_anchors, kernel_size=3, stride=1, padding=1)
        nn.init.normal_(self.quality.weight, std=0.01)
        assert self.quality.bias is not None
        nn.init.zeros_(self.quality.bias)
        self.scales = nn.ParameterList(
            [nn.Parameter(torch.ones(())) for _ in input_shape] if level_scales else []
        )
        if not conv_bias:
            for tower in (self.cls_subnet, self.bbox_subnet):
                for layer in tower:
                    if isinstance(layer, nn.Conv2d):
                        layer.register_parameter("bias", None)

    def forward(
        self, features: List[torch.Tensor]
    ) -> Tuple[List[torch.Tensor], List[torch.Tensor], List[torch.Tensor]]:
        """
        Returns:
            For each level: logits (N, A * C, H, W), deltas (N, A * 4, H, W) and quality logits
            (N, A, H, W).
        """
        logits, deltas, quality = [], [], []
        for level, feature in enumerate(features):
            logits.append(self.cls_score(self.cls_subnet(feature)))
            box_feature = self.bbox_subnet(feature)
            delta = self.bbox_pred(box_feature)
            deltas.append(delta * self.scales[level] if len(self.scales) else delta)
            quality.append(self.quality(box_feature))
        return logits, deltas, quality
