"""Class losses: one class each, chosen by name.

Shapes: M samples (anchors, points or proposals of all images), C classes, K of the samples
positive. Labels are Detectron2's: 0..C-1 classes, C background, -1 ignored.
"""

from typing import Any, Callable, Dict, Optional, Tuple

import torch
from torch import nn

from d2ext.ops.class_weights import softmax_loss
from d2ext.ops.sigmoid_factors import require_quality
from d2ext.ops.sigmoid_losses import (
    matchability_aware_loss,
    quality_focal_loss,
    sigmoid_bce_loss,
    sigmoid_focal_loss,
    sigmoid_loss_per_row,
    varifocal_loss,
)

from .normalizers import Divisor

__all__ = [
    "BCELoss",
    "ClsLoss",
    "FocalLoss",
    "MatchabilityAwareLoss",
    "QualityFocalLoss",
    "SigmoidLoss",
    "SoftmaxLoss",
    "VarifocalLoss",
    "class_scores",
]

#: Functions of summed losses by the name that ``sigmoid_loss_per_row`` knows them by.
SUMS: Dict[str, Callable[..., torch.Tensor]] = {
    "bce": sigmoid_bce_loss,
    "focal": sigmoid_focal_loss,
    "mal": matchability_aware_loss,
    "qfl": quality_focal_loss,
    "varifocal": varifocal_loss,
}


class ClsLoss(nn.Module):
    """Base class of class losses.

    Attributes:
        sigmoid: True if a sample's classes are independent (logits (M, C)), False if they are one
            softmax with the background last (logits (M, C + 1)).
        needs_quality: True if ``forward`` needs the IoU of each positive.
        needs_levels: True if ``forward`` takes ``levels``, the pyramid level of each sample as
            :class:`~d2ext.losses.counted.Levels`; None where a head has none.
        objectness: True for independent classes beside a column of its own for the background
            (logits (M, C + 1)); the loss then defines ``scores``, (M, C) for inference.
        counts_first: True if ``forward`` takes the batch into its statistics before it computes the
            loss: single samples are then to be asked for after it, and otherwise before it, so that
            both see the same statistics.
        place: "dense", "rpn" or "roi" if it was built from a config, else "".
        weighs_classes: True if ``forward`` and ``per_row`` multiply by ``weights_of_classes``.

    Args:
        class_weights: (C,) see :meth:`weigh_classes`; None: all classes weigh 1.
    """

    place = ""
    weighs_classes = False
    sigmoid = True
    needs_quality = False
    needs_levels = False
    objectness = False
    counts_first = False
    class_weights: Optional[torch.Tensor]

    def __init__(self, *, class_weights: Optional[torch.Tensor] = None):
        super().__init__()
        self.register_buffer("class_weights", None)
        self.uncounted_power = 0.0
        if class_weights is not None:
            self.weigh_classes(class_weights)

    def weigh_classes(self, weights: torch.Tensor, *, from_data: bool = False) -> None:
        """Multiply what each class contributes to the loss, positives and negatives alike.

        Statistics of gradients contain the weights, as they contain any other factor of the loss.

        Args:
            weights: (C,), 0 or more; see :mod:`d2ext.ops.class_weights`. A softmax loss weighs the
                rows of a class; its background weighs 1.
            from_data: whether they were counted in the data. Then they are in checkpoints, so that
                a run that resumes has those that it began with.
        """
        weights = torch.as_tensor(weights, dtype=torch.float32)
        if not bool(((weights >= 0) & weights.isfinite()).all()):
            raise ValueError(f"Class weights must be 0 or more, not {weights.min().item():g}.")
        old = self.class_weights
        if old is not None and old.shape == weights.shape:
            weights = old.copy_(weights)  # in place: DDP and averages hold the buffer
        self.register_buffer("class_weights", weights, persistent=from_data)
        self.uncounted_power = 0.0

    def expect_counts(self, num_classes: int, power: float) -> None:
        """Refuse to train until `weigh_classes` was called with the weights of the data.

        Args:
            num_classes: C.
            power: what the counts are to be raised to; see
                :func:`d2ext.ops.class_weights.inverse_frequency_weights`.
        """
        # 0 means "not counted" in a checkpoint too: no counts give it to all classes.
        self.weigh_classes(torch.zeros(num_classes), from_data=True)
        self.uncounted_power = power

    @property
    def weights_of_classes(self) -> Optional[torch.Tensor]:
        """(C,) weights, or None if all classes weigh 1."""
        if self.uncounted_power and self.training:
            raise RuntimeError(
                "The class weights need the number of objects of each class, which has not been "
                "counted; use d2ext's trainer, or set MODEL.CLASS_WEIGHTS.COUNTS."
            )
        return self.class_weights

    def forward(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        normalizer: Divisor = 1.0,
        quality: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """Sum over all valid samples, divided by ``normalizer``: a scalar."""
        raise NotImplementedError(f"{type(self).__name__} must define forward.")

    def per_row(
        self, logits: torch.Tensor, labels: torch.Tensor, quality: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        """Loss of each of a few samples, summed over classes: (K,), differentiable."""
        raise NotImplementedError(
            f"{type(self).__name__} has no per-sample form; choose another class loss or turn the "
            "coupling off."
        )


def class_scores(cls_loss: ClsLoss, logits: torch.Tensor) -> torch.Tensor:
    """(K, C) scores of the classes, without the background's."""
    if cls_loss.objectness:
        scores: Any = cls_loss.scores  # which losses with an objectness define
        own: torch.Tensor = scores(logits)
        return own
    return logits.sigmoid() if cls_loss.sigmoid else logits.softmax(dim=1)[:, :-1]


class SigmoidLoss(ClsLoss):
    """Base of the losses of :mod:`d2ext.ops.sigmoid_losses` that keep no statistics.

    Attributes:
        kind: which loss it is, a key of ``SUMS``.
        options: the attributes that are keyword arguments of the function.
    """

    kind = ""
    options: Tuple[str, ...] = ()
    weighs_classes = True

    def forward(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        normalizer: Divisor = 1.0,
        quality: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        aim = (require_quality(quality),) if self.needs_quality else ()
        return SUMS[self.kind](logits, labels, *aim, **self._arguments()) / normalizer

    def per_row(
        self, logits: torch.Tensor, labels: torch.Tensor, quality: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        options = self._arguments()
        return sigmoid_loss_per_row(logits, labels, kind=self.kind, quality=quality, **options)

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={getattr(self, name)}" for name in self.options)

    def _arguments(self) -> Dict[str, Any]:
        options = {name: getattr(self, name) for name in self.options}
        return {**options, "class_weights": self.weights_of_classes}


class BCELoss(SigmoidLoss):
    """Plain sigmoid cross entropy over all classes of every valid sample."""

    kind = "bce"


class FocalLoss(SigmoidLoss):
    """Sigmoid focal loss (Lin et al., 2017).

    Args:
        alpha: weight of positives, ``1 - alpha`` of negatives; below 0: no weights.
        gamma: focusing exponent.
        kwargs: arguments of the base.
    """

    kind = "focal"
    options = ("alpha", "gamma")

    def __init__(self, alpha: float = 0.25, gamma: float = 2.0, **kwargs: Any):
        super().__init__(**kwargs)
        refuse_negative(gamma=gamma)
        self.alpha = alpha
        self.gamma = gamma


class QualityFocalLoss(SigmoidLoss):
    """Quality focal loss (Li et al., 2020): a positive's target is its IoU instead of 1."""

    kind = "qfl"
    options = ("gamma",)
    needs_quality = True
    per_row = ClsLoss.per_row  # no coupling takes it

    def __init__(self, gamma: float = 2.0, **kwargs: Any):
        super().__init__(**kwargs)
        refuse_negative(gamma=gamma)
        self.gamma = gamma


class VarifocalLoss(SigmoidLoss):
    """Varifocal loss (Zhang et al., CVPR 2021): negatives are focal, positives weigh their quality.

    Args:
        alpha, gamma, iou_weighted, detach_weight: see
            :func:`d2ext.ops.sigmoid_losses.varifocal_loss`.
        kwargs: arguments of the base.
    """

    kind = "varifocal"
    options = ("alpha", "gamma", "iou_weighted", "detach_weight")
    needs_quality = True

    def __init__(
        self,
        alpha: float = 0.75,
        gamma: float = 2.0,
        iou_weighted: bool = True,
        detach_weight: bool = False,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        refuse_negative(alpha=alpha, gamma=gamma)
        self.alpha = alpha
        self.gamma = gamma
        self.iou_weighted = iou_weighted
        self.detach_weight = detach_weight


class MatchabilityAwareLoss(SigmoidLoss):
    """MAL (Huang et al., DEIM, CVPR 2025): poor boxes keep teaching. Made for DETR.

    Args:
        gamma, alpha: see :func:`d2ext.ops.sigmoid_losses.matchability_aware_loss`.
        kwargs: arguments of the base.
    """

    kind = "mal"
    options = ("alpha", "gamma")
    needs_quality = True

    def __init__(self, gamma: float = 1.5, alpha: float = 1.0, **kwargs: Any):
        super().__init__(**kwargs)
        refuse_negative(alpha=alpha, gamma=gamma)
        self.alpha = alpha
        self.gamma = gamma


def refuse_negative(**values: float) -> None:
    """Raise a ValueError for the first argument that is not 0 or more."""
    for name, value in values.items():
        if not value >= 0:
            raise ValueError(f"{name} must be 0 or more, not {value}.")


class SoftmaxLoss(ClsLoss):
    """Softmax cross entropy over C classes and the background, which is the last column."""

    sigmoid = False
    weighs_classes = True

    def forward(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        normalizer: Divisor = 1.0,
        quality: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        return softmax_loss(logits, labels, class_weights=self.weights_of_classes) / normalizer

    def per_row(
        self, logits: torch.Tensor, labels: torch.Tensor, quality: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        weights = self.weights_of_classes
        return softmax_loss(logits, labels, class_weights=weights, reduction="none")
