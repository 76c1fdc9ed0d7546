"""RetinaNet with the harmonic loss; the parts of configs/Harmonic/retinanet_R_50_FPN_1x.yaml."""

from detectron2.config import LazyCall as L

from d2ext.modeling.losses.harmonic import HarmonicCoupling

from .retinanet import dataloader, lr_multiplier, model, optimizer, train  # noqa: F401

model.criterion.coupling = L(HarmonicCoupling)(place="dense", alpha_hiou=1.5, gamma=0.8)
