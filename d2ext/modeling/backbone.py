"""Feature pyramids that Detectron2 does not offer to YAML users."""

from typing import Any

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.resnet import BasicBlock, BasicStem, ResNet

from .resnet import build_ext_resnet_backbone

__all__ = ["build_p5_resnet_fpn_backbone", "build_slim_resnet_fpn_backbone"]


@BACKBONE_REGISTRY.register()
def build_p5_resnet_fpn_backbone(cfg, input_shape: ShapeSpec) -> Backbone:
    """ResNet with P3-P7, where P6 is made of P5 (FCOS, ATSS, DW).

    ``build_retinanet_resnet_fpn_backbone`` makes P6 of the last ResNet stage, as RetinaNet does.
    """
    bottom_up = build_ext_resnet_backbone(cfg, input_shape)
    channels = cfg.MODEL.FPN.OUT_CHANNELS
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=channels,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelP6P7(channels, channels, in_feature="p5"),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


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
    with a pooled P6 if the pyramid begins with P2, as the R-CNN family wants it.
    """
    bottom_up = _slim_resnet(cfg, input_shape)
    return FPN(
        bottom_up=bottom_up,
        in_features=cfg.MODEL.FPN.IN_FEATURES,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool() if "res2" in cfg.MODEL.FPN.IN_FEATURES else None,
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )
