"""ExtFCOS, ResNet-50, 1x; the parts of configs/COCO/fcos_R_50_FPN_1x.yaml."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from d2ext.modeling.assigners import CenterAssigner
from d2ext.modeling.losses.box_losses import GIoULoss
from d2ext.modeling.losses.cls_losses import FocalLoss
from d2ext.modeling.losses.criterion import Criterion
from d2ext.modeling.losses.normalizers import EMANormalizer
from d2ext.modeling.meta_arch import ExtFCOS

from .retinanet import dataloader, lr_multiplier, optimizer, train  # noqa: F401

model = model_zoo.get_config("common/models/fcos.py").model
model._target_ = ExtFCOS
model.backbone.bottom_up.freeze_at = 2
model.center_sampling_radius = 1.5
model.criterion = L(Criterion)(cls_loss=L(FocalLoss)(alpha=0.25, gamma=2.0), box_loss=L(GIoULoss)())
model.assigner = L(CenterAssigner)(center_sampling_radius=1.5)
model.normalizer = L(EMANormalizer)(initial=300)
