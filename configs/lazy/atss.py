"""ATSS, ResNet-50, 1x; the parts of configs/COCO/atss_R_50_FPN_1x.yaml."""

from detectron2.config import LazyCall as L
from detectron2.layers import ShapeSpec
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform

from d2ext.modeling.assigners import ATSSAssigner
from d2ext.modeling.losses.box_losses import GIoULoss
from d2ext.modeling.losses.cls_losses import FocalLoss
from d2ext.modeling.losses.criterion import Criterion
from d2ext.modeling.losses.normalizers import PositiveNormalizer
from d2ext.modeling.meta_arch import ATSS
from d2ext.modeling.meta_arch.atss_head import QualityHead

from .fcos import dataloader, lr_multiplier, optimizer, train  # noqa: F401
from .fcos import model as _fcos

STRIDES = [8, 16, 32, 64, 128]

model = L(ATSS)(
    backbone=_fcos.backbone,
    head=L(QualityHead)(
        input_shape=[ShapeSpec(channels=256, stride=stride) for stride in STRIDES],
        num_classes="${..num_classes}",
        num_anchors=1,
        conv_dims=[256] * 4,
        prior_prob=0.01,
        norm="GN",
    ),
    head_in_features=["p3", "p4", "p5", "p6", "p7"],
    anchor_generator=L(DefaultAnchorGenerator)(
        sizes=[[8.0 * stride] for stride in STRIDES],
        aspect_ratios=[1.0],
        strides=STRIDES,
        offset=0.5,
    ),
    box2box_transform=L(Box2BoxTransform)(weights=[10.0, 10.0, 5.0, 5.0]),
    criterion=L(Criterion)(cls_loss=L(FocalLoss)(alpha=0.25, gamma=2.0), box_loss=L(GIoULoss)()),
    assigner=L(ATSSAssigner)(topk=9),
    normalizer=L(PositiveNormalizer)(sync=True),
    num_classes=80,
    quality="centerness",
    box_loss_weight=2.0,
    pixel_mean=_fcos.pixel_mean,
    pixel_std=_fcos.pixel_std,
)
