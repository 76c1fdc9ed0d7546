"""Feature pyramids that Detectron2 does not offer to YAML users."""

from typing import Any, Dict, Optional, Type

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet
from fvcore.nn import weight_init
from torch import nn
from torch.nn import functional as F

from .resnet import build_ext_resnet_backbone

__all__ = [
    "LateralTopFPN",
    "build_ext_resnet_fpn_backbone",
    "build_lateral_resnet_fpn_backbone",
    "build_mmdet_retinanet_resnet_fpn_backbone",
    "build_p5_resnet_fpn_backbone",
    "build_slim_resnet_fpn_backbone",
]


def _pyramid(
    cfg: Any, bottom_up: Backbone, top_block: Optional[nn.Module], form: Type[FPN] = FPN
) -> Backbone:
    """A pyramid as MODEL.FPN says, on a network and below a block of further levels."""
    return form(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=top_block,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


@BACKBONE_REGISTRY.register()
def build_p5_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """ResNet with P3-P7, where P6 is made of P5 (FCOS, ATSS, DW).

    ``build_retinanet_resnet_fpn_backbone`` makes P6 of the last ResNet stage, as RetinaNet does.
    """
    bottom_up = build_ext_resnet_backbone(cfg, input_shape)
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return _pyramid(cfg, bottom_up, LastLevelP6P7(channels, channels, in_feature="p5"))


@BACKBONE_REGISTRY.register()
def build_ext_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """ResNet with P2-P6 as Detectron2's R-CNN has it, and what `build_ext_resnet_backbone` adds."""
    return _pyramid(cfg, build_ext_resnet_backbone(cfg, input_shape), LastLevelMaxPool())


class _TwoStrides(nn.Module):
    """P6 and P7, each a convolution of stride 2 on the level below, with nothing in between."""

    def __init__(self, in_channels: int, channels: int, in_feature: str = "p5"):
        super().__init__()
        self.num_levels = 2
        self.in_feature = in_feature
        self.p6 = nn.Conv2d(in_channels, channels, kernel_size=3, stride=2, padding=1)
        self.p7 = nn.Conv2d(channels, channels, kernel_size=3, stride=2, padding=1)
        for conv in (self.p6, self.p7):
            weight_init.c2_xavier_fill(conv)

    def forward(self, x):
        p6 = self.p6(x)
        return [p6, self.p7(p6)]


class LateralTopFPN(FPN):
    """A pyramid whose top block is given the highest *lateral* map, not the level made of it.

    With C5 as the highest input, P6 is made of the output of C5's 1x1 convolution, before the 3x3
    convolution that makes it P5. Images are padded to multiples of twice the stride of C5.
    """

    @property
    def size_divisibility(self) -> int:
        return 2 * self._size_divisibility

    def forward(self, x: torch.Tensor) -> Dict[str, torch.Tensor]:
        inputs = self.bottom_up(x)
        laterals = [
            conv(inputs[name]) for conv, name in zip(self.lateral_convs, self.in_features[::-1])
        ]
        merged = laterals[:1]
        for lateral in laterals[1:]:
            above = F.interpolate(merged[-1], scale_factor=2.0, mode="nearest")
            merged.append(lateral + above if self._fuse_type == "sum" else (lateral + above) / 2)
        levels = [conv(feature) for conv, feature in zip(self.output_convs, merged)][::-1]
        levels += self.top_block(laterals[0])
        return dict(zip(self._out_features, levels))


@BACKBONE_REGISTRY.register()
def build_lateral_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """ResNet with P3-P7 as in the improved baseline of the equalized focal loss.

    P6 is made of C5's lateral map, and P7 of P6 without a ReLU before it.
    """
    bottom_up = build_ext_resnet_backbone(cfg, input_shape)
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return _pyramid(cfg, bottom_up, _TwoStrides(channels, channels), LateralTopFPN)


@BACKBONE_REGISTRY.register()
def build_mmdet_retinanet_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """ResNet with P3-P7 as mmdetection's RetinaNet has it: P6 of C5, and no ReLU before P7.

    Detectron2's has the ReLU: with weights of the other kind P7 is another map.
    """
    bottom_up = build_ext_resnet_backbone(cfg, input_shape)
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    top_block = _TwoStrides(bottom_up.output_shape()["res5"].channels, channels, "res5")
    return _pyramid(cfg, bottom_up, top_block)


def _slim_resnet(cfg: Any, input_shape: ShapeSpec) -> Backbone:
    """A ResNet-18 of any width: ``STEM_OUT_CHANNELS``, then ``RES2_OUT_CHANNELS`` doubling."""
    node = cfg.MODEL.RESNETS
    stem = BasicStem(input_shape.channels, node.STEM_OUT_CHANNELS, norm=node.NORM)
    stages, in_channels, out_channels = [], node.STEM_OUT_CHANNELS, node.RES2_OUT_CHANNELS
    last = max(int(name[3:]) for name in node.OUT_FEATURES if name.startswith("res"))
    for stage in range(2, last + 1):
        first_stride = 1 if stage == 2 else 2
        stages.append(
            ResNet.make_stage(
                BasicBlock,
                num_blocks=2,
                stride_per_block=[first_stride, 1],
                in_channels=in_channels,
                out_channels=out_channels,
                norm=node.NORM,
            )
        )
        in_channels, out_channels = out_channels, 2 * out_channels
    return ResNet(
        stem, stages, out_features=node.OUT_FEATURES, freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT
    )


@BACKBONE_REGISTRY.register()
def build_slim_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """A narrow ResNet-18 with a pyramid of just its own levels: for training on a laptop.

    Detectron2's ResNet-18 is 64 channels wide. Here ``MODEL.RESNETS.STEM_OUT_CHANNELS`` and
    ``RES2_OUT_CHANNELS`` give the width; half of it costs a quarter. The pyramid ends with P5, or
    with a pooled P6 if the pyramid begins with P2, as the R-CNN family needs it.
    """
    top_block = LastLevelMaxPool() if "res2" in cfg.MODEL.FPN.IN_FEATURES else None
    return _pyramid(cfg, _slim_resnet(cfg, input_shape), top_block)
