"""RetinaNet with CIoU and adaptive loss weights, which any model can have: they are a hook.

The parts of COCO/retinanet_R_50_FPN_1x with ALWA/Base-CIoU and ALWA/Base-ALWA-recommended.
Detectron2's own lazy script knows no ``train.hooks`` and would train without the weights.
"""

from detectron2.config import LazyCall as L

from d2ext.engine.lazy import adaptive_loss_weights
from d2ext.modeling.losses.box_losses import CIoULoss

from .retinanet import dataloader, lr_multiplier, model, optimizer, train  # noqa: F401

model.criterion.box_loss = L(CIoULoss)()
train.hooks = [
    L(adaptive_loss_weights)(
        variant=2, interval=100, stats_on="raw", min_weight=0.1, start_iter=1000
    )
]
