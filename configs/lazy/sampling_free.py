"""RetinaNet without sampling; the parts of configs/SamplingFree/retinanet_R_50_FPN_1x.yaml.

As with YAML the prior is measured on the training data before the first step; prior=2e-5 in
SamplingFreeOptions would give it. train.prior has the limits of the measurement.
"""

from detectron2.config import LazyCall as L

from d2ext.modeling.losses.cls_losses import BCELoss
from d2ext.modeling.losses.guided import GuidedScale
from d2ext.modeling.losses.normalizers import PositiveNormalizer
from d2ext.modeling.sampling_free import SamplingFreeOptions

from .retinanet import dataloader, lr_multiplier, model, optimizer, train  # noqa: F401

model.box2box_transform.weights = [10.0, 10.0, 5.0, 5.0]
model.criterion.cls_loss = L(BCELoss)()
model.criterion.box_loss.beta = 0.11
model.criterion.guide = L(GuidedScale)(guides=["box"], weight=1.0)
model.normalizer = L(PositiveNormalizer)()
model.sampling_free = L(SamplingFreeOptions)()
train.prior = {"max_batches": 500, "tolerance": 0.02}
