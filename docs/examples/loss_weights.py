"""A rule for loss weights of your own: the mean box loss decides how much the class loss weighs.

    PYTHONPATH=docs/examples python train_net.py --import loss_weights \
        --config-file configs/Demo/retinanet_shapes.yaml \
        ENGINE.HOOKS "['build_equal_share']"
"""

from d2ext.engine import HOOK_REGISTRY
from d2ext.engine.hooks import LossWeights
from d2ext.ops.loss_weights import LossWeighting


class EqualShare(LossWeighting):
    """Makes class and box loss equally large: ``w = mean box / mean cls`` of the last window.

    The base class keeps the window, drops infinite losses and saves ``SETTINGS`` and ``STATE``.
    """

    SETTINGS = ("interval", "limit")
    STATE = ("weight",)

    def __init__(self, interval: int = 50, limit: float = 10.0):
        super().__init__(interval)
        self.limit, self.weight = limit, 1.0

    @property
    def weights(self):
        return self.weight, 1.0

    def close_window(self, cls, box):
        ratio = sum(box) / max(sum(cls), 1e-12)
        self.weight = min(max(ratio, 1 / self.limit), self.limit)
        self.last_update = {"ratio": ratio}
        return True


@HOOK_REGISTRY.register()
def build_equal_share(cfg):
    return LossWeights(make_weighting=EqualShare)
