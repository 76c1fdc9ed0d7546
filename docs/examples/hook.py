"""A trainer hook of your own, whose state survives a kill: the lowest loss so far.

    PYTHONPATH=docs/examples python train_net.py --import hook \
        --config-file configs/Demo/fcos_shapes.yaml \
        ENGINE.HOOKS "['build_loss_record']"
"""

from d2ext.engine import HOOK_REGISTRY, HookBase


class LossRecord(HookBase):
    """Remembers the lowest total loss of the training and the step it was reached in."""

    def __init__(self, smoothing: float = 0.9):
        self.smoothing = smoothing
        self.average, self.lowest, self.step = None, float("inf"), -1

    def on_losses(self, loss_dict):
        # Between forward and backward; return a dictionary to replace the losses.
        self.total = sum(loss.detach() for loss in loss_dict.values())

    def after_step(self):
        total = float(self.total)
        old = total if self.average is None else self.average
        self.average = self.smoothing * old + (1 - self.smoothing) * total
        if self.average < self.lowest:
            self.lowest, self.step = self.average, self.trainer.iter
        self.trainer.storage.put_scalar("lowest_loss", self.lowest, smoothing_hint=False)

    def state_dict(self):
        return {"average": self.average, "lowest": self.lowest, "step": self.step}

    def load_state_dict(self, state):
        self.average, self.lowest, self.step = state["average"], state["lowest"], state["step"]


@HOOK_REGISTRY.register()
def build_loss_record(cfg):
    return LossRecord()
