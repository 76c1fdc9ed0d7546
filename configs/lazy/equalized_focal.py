"""RetinaNet with EFL; the parts of configs/EqualizedFocalLoss/retinanet_R_50_FPN_1x_efl.yaml.

Model, optimiser, clipping, schedule and repeat factors are those of the YAML config. The mapper is
Detectron2's, the annotations are read twice, and the run evaluates every ``train.eval_period``
steps. Detectron2's own lazy script knows no ``train.clipper`` and would train without clipping.
"""

from detectron2 import model_zoo
from detectron2.config import LazyCall as L
from detectron2.data.samplers import RepeatFactorTrainingSampler

from d2ext.engine.precision import GlobalNormClipper
from d2ext.evaluation import LVISEvaluator
from d2ext.modeling.losses import EqualizedFocalLoss

from .retinanet import dataloader, model, optimizer, train  # noqa: F401

dataloader.train.dataset.names = "lvis_v1_train"
dataloader.train.sampler = L(RepeatFactorTrainingSampler)(
    repeat_factors=L(RepeatFactorTrainingSampler.repeat_factors_from_category_frequency)(
        dataset_dicts="${...dataset}", repeat_thresh=0.001
    )
)
dataloader.test.dataset.names = "lvis_v1_val"
dataloader.evaluator._target_ = LVISEvaluator

lr_multiplier = model_zoo.get_config("common/coco_schedule.py").lr_multiplier_2x
train.max_iter = 180000
# Of the first steps, in which nearly every class gets the largest weight at once.
train.clipper = L(GlobalNormClipper)(max_norm=35.0)

model.num_classes = 1203
model.test_score_thresh = 0.0001
model.max_detections_per_image = 300
model.criterion.cls_loss = L(EqualizedFocalLoss)(num_classes="${...num_classes}")
