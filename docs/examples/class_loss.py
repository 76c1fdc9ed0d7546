"""A class loss of your own: focal loss that forgives the negatives it finds hardest.

    PYTHONPATH=docs/examples python train_net.py --import class_loss \
        --config-file configs/Demo/retinanet_shapes.yaml \
        MODEL.DENSE.CLS_LOSS capped_focal
"""

import torch
from torch.nn import functional as F

from d2ext.losses import ClsLoss
from d2ext.modeling.losses import CLS_LOSS_REGISTRY


@CLS_LOSS_REGISTRY.register("capped_focal")
class CappedFocalLoss(ClsLoss):
    """Focal loss whose negatives cost at most ``cap``: an unlabelled object is not a mistake."""

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0, cap: float = 0.5):
        super().__init__()
        self.alpha, self.gamma, self.cap = alpha, gamma, cap

    @classmethod
    def from_config(cls, cfg, *, num_classes, alpha, gamma):
        return {"alpha": alpha, "gamma": gamma}

    def forward(self, logits, labels, normalizer=1.0, quality=None):
        rows = self.per_row(logits, labels)
        return rows[labels >= 0].sum() / normalizer

    def per_row(self, logits, labels, quality=None):
        """(M, C) logits and (M,) labels to (M,). With it, the harmonic coupling works too."""
        classes = torch.arange(logits.shape[1], device=logits.device)
        target = (labels[:, None] == classes).to(logits.dtype)
        wrong = torch.where(target > 0, 1 - logits.sigmoid(), logits.sigmoid())
        entropy = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        weight = torch.where(target > 0, self.alpha, 1 - self.alpha)
        loss = weight * wrong**self.gamma * entropy
        return torch.where(target > 0, loss, loss.clamp(max=self.cap)).sum(dim=1)
