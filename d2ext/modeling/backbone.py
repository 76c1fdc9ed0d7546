"""Feature pyramids that Detectron2 only offers to LazyConfig users."""

from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelP6P7

from .resnet import build_ext_resnet_backbone

__all__ = ["build_p5_resnet_fpn_backbone"]


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
