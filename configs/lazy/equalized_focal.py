"""RetinaNet with EFL; the parts of configs/EqualizedFocalLoss/retinanet_R_50_FPN_1x_efl.yaml."""

from detectron2.config import LazyCall as L

from d2ext.evaluation import LVISEvaluator
from d2ext.modeling.losses import EqualizedFocalLoss

from .retinanet import dataloader, lr_multiplier, model, optimizer, train  # noqa: F401

dataloader.train.dataset.names = "lvis_v1_train"
dataloader.test.dataset.names = "lvis_v1_val"
dataloader.evaluator._target_ = LVISEvaluator

model.num_classes = 1203
model.test_score_thresh = 0.0
model.max_detections_per_image = 300
model.criterion.cls_loss = L(EqualizedFocalLoss)(num_classes="${...num_classes}")
