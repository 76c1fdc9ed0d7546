"""ExtRetinaNet, ResNet-50, 1x; the parts of configs/COCO/retinanet_R_50_FPN_1x.yaml."""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L

from d2ext.evaluation import COCOEvaluator
from d2ext.modeling.assigners import IoUAssigner
from d2ext.modeling.losses.box_losses import SmoothL1Loss
from d2ext.modeling.losses.cls_losses import FocalLoss
from d2ext.modeling.losses.criterion import Criterion
from d2ext.modeling.losses.normalizers import EMANormalizer
from d2ext.modeling.meta_arch import ExtRetinaNet

dataloader = model_zoo.get_config("common/data/coco.py").dataloader
dataloader.train.mapper.use_instance_mask = False
dataloader.evaluator._target_ = COCOEvaluator
lr_multiplier = model_zoo.get_config("common/coco_schedule.py").lr_multiplier_1x
optimizer = model_zoo.get_config("common/optim.py").SGD
optimizer.lr = 0.01
train = model_zoo.get_config("common/train.py").train
train.init_checkpoint = "detectron2://ImageNetPretrained/MSRA/R-50.pkl"
train.hooks = []

model = model_zoo.get_config("common/models/retinanet.py").model
model._target_ = ExtRetinaNet
model.backbone.bottom_up.freeze_at = 2
model.criterion = L(Criterion)(
    cls_loss=L(FocalLoss)(alpha=0.25, gamma=2.0), box_loss=L(SmoothL1Loss)(beta=0.0)
)
model.assigner = L(IoUAssigner)(thresholds=[0.4, 0.5], labels=[0, -1, 1], allow_low_quality=True)
model.normalizer = L(EMANormalizer)(initial=100)
