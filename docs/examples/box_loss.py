"""A box loss of your own: IoU loss to a power, which cares for the boxes that are nearly right.

    PYTHONPATH=docs/examples python train_net.py --import box_loss \
        --config-file configs/Demo/fcos_shapes.yaml \
        MODEL.DENSE.BOX_LOSS alpha_iou
"""

from d2ext.losses import BoxLoss, Positives
from d2ext.modeling.losses import BOX_LOSS_REGISTRY


@BOX_LOSS_REGISTRY.register("alpha_iou")
class AlphaIoULoss(BoxLoss):
    """``1 - IoU^alpha`` of decoded and true boxes.

    ``positives`` also offers ``deltas``, ``target_deltas``, ``decoded``, ``boxes`` and ``priors``.
    Return one number a sample, (K,), or one a coordinate, (K, 4); neither sum nor divide.
    """

    def __init__(self, alpha: float = 3.0):
        super().__init__()
        if alpha <= 0:
            raise ValueError(f"alpha must be above 0, not {alpha}.")
        self.alpha = alpha

    def forward(self, positives: Positives):
        # The slope of a power below 1 is infinite at 0, where boxes do not overlap.
        return 1 - positives.iou.clamp(min=1e-6) ** self.alpha

    def extra_repr(self) -> str:
        return f"alpha={self.alpha}"
