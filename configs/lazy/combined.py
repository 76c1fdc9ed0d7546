"""Three ideas at once: EFL, the harmonic coupling and adaptive loss weights on RetinaNet."""

from detectron2.config import LazyCall as L

from d2ext.modeling.losses.harmonic import HarmonicCoupling

from .alwa import train as _alwa
from .equalized_focal import dataloader, lr_multiplier, model, optimizer, train  # noqa: F401

train.hooks = _alwa.hooks
model.criterion.coupling = L(HarmonicCoupling)(place="dense", alpha_hiou=1.5, gamma=0.8)
