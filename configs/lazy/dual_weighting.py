"""DW with box refinement; the parts of configs/DualWeighting/dw_R_50_FPN_1x_refine.yaml."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec

from d2ext.modeling.lazy import eval_bn_resnet
from d2ext.modeling.meta_arch import DualWeightingFCOS
from d2ext.modeling.meta_arch.dual_weighting_head import DualWeightingHead
from d2ext.ops.dual_weighting import DualWeightingConstants

from .fcos import dataloader, lr_multiplier, optimizer, train  # noqa: F401
from .fcos import model as _fcos

# Epochs 8, 11 and 12 of COCO at 16 images a step, as the YAML config.
train.max_iter = 87960
lr_multiplier.scheduler.milestones = [58640, 80630, 87960]
lr_multiplier.warmup_length = 1000 / 87960
train.init_checkpoint = "detectron2://ImageNetPretrained/torchvision/R-50.pkl"
dataloader.train.mapper.image_format = "RGB"
dataloader.train.mapper.augmentations[0].short_edge_length = [800]

_backbone = _fcos.backbone
_backbone.bottom_up.stages.stride_in_1x1 = False
_backbone.bottom_up = L(eval_bn_resnet)(resnet=_backbone.bottom_up)

model = L(DualWeightingFCOS)(
    backbone=_backbone,
    head=L(DualWeightingHead)(
        input_shape=[ShapeSpec(channels=256, stride=stride) for stride in (8, 16, 32, 64, 128)],
        num_classes="${..num_classes}",
        conv_dims=[256] * 4,
        norm="GN",
        prior_prob=0.02,
        regression="point",
        box_bias=4.0,
        refine=True,
    ),
    head_in_features=["p3", "p4", "p5", "p6", "p7"],
    num_classes=80,
    constants=L(DualWeightingConstants)(soft_prior=True, beta=5.0, mu=5.0),
    pixel_mean=[123.675, 116.28, 103.53],
    pixel_std=[58.395, 57.12, 57.375],
)
