"""Equalized focal loss (Li et al., CVPR 2022) as a class loss that keeps its own statistics.

Shapes: M samples (anchors, points or proposals of all images), C classes. Labels are Detectron2's:
0..C-1 classes, C background, -1 ignored.
"""

import logging
from typing import Any, Dict, Mapping, Optional, Sequence, Union

import torch

from d2ext.ops.sigmoid_losses import (
    equalized_focal_loss,
    equalized_quality_focal_loss,
    sigmoid_loss_per_row,
)

from ..reduce import reduce_sum
from .cls_losses import ClsLoss
from .registry import CLS_LOSS_REGISTRY

__all__ = ["EqualizedFocalLoss", "EqualizedQualityFocalLoss", "frequency_groups"]

logger = logging.getLogger(__name__)

_EPS = 1e-10  # the authors' guard of the division


@CLS_LOSS_REGISTRY.register("efl")
class EqualizedFocalLoss(ClsLoss):
    """Focal loss whose focusing and weight follow each class's balance of gradients.

    A class j that has collected as much positive as negative gradient (g_j = 1) has the plain focal
    loss; one that collects next to none (g_j = 0) has the exponent ``gamma_b + scale``, and its
    loss is weighted by ``(gamma_b + scale) / gamma_b``.

    The statistics are buffers, so they are in every checkpoint, and are identical on all ranks:

    * ``pos_grad``, ``neg_grad``: (C,) sums of ``|d loss / d logit|`` over positive and over
      negative entries, since the first iteration. They are computed with the loss, in float32,
      before any outer loss weight and before an AMP scale.
    * ``pos_neg``: (C,) g_j, ``pos_grad / neg_grad`` cut to [0, 1]; 1 before the first iteration.

    A forward pass first reads g and then collects, if the module is in training mode and gradients
    are enabled. Evaluation and passes under ``no_grad`` leave no trace, a forward pass that
    activation checkpointing repeats is counted once, and with gradient accumulation each of the
    forward passes counts and sees what the earlier ones collected. If any sum is not finite on any
    rank, that forward pass is not counted at all.

    Every rank must run as many counted forward passes as the others, because each ends in one
    all-reduce of a (2, C) tensor; ranks without samples take part with an empty ``logits``.

    Args:
        num_classes: C, without background.
        alpha: weight of positives, ``1 - alpha`` of negatives; below 0: no weights. Not used with
            ``quality``.
        gamma_b: focusing exponent of a balanced class.
        scale: s, the most that is added to the exponent of an unbalanced class; 0 is the focal
            loss.
        loss_weight: factor of the loss, seen by the statistics.
        quality: the quality variant, EQFL, in which a positive's target is its IoU.
    """

    def __init__(
        self,
        num_classes: int,
        alpha: float = 0.25,
        gamma_b: float = 2.0,
        scale: float = 8.0,
        loss_weight: float = 1.0,
        quality: bool = False,
    ):
        super().__init__()
        if num_classes < 1:
            raise ValueError(f"num_classes must be 1 or more, not {num_classes}.")
        if gamma_b <= 0:
            raise ValueError(f"gamma_b must be above 0, not {gamma_b}; set 2.0 as the paper does.")
        if scale < 0:
            raise ValueError(f"scale must be 0 or more, not {scale}; 0 is the plain focal loss.")
        self.num_classes = num_classes
        self.alpha = alpha
        self.gamma_b = gamma_b
        self.scale = scale
        self.loss_weight = loss_weight
        self.needs_quality = quality
        self.register_buffer("pos_grad", torch.zeros(num_classes))
        self.register_buffer("neg_grad", torch.zeros(num_classes))
        self.register_buffer("pos_neg", torch.ones(num_classes))
        # g as the last counted forward pass read it: what a recomputation of that pass must see.
        self.register_buffer("_ratio_read", torch.ones(num_classes), persistent=False)
        self.register_buffer("_num_skipped", torch.zeros((), dtype=torch.long), persistent=False)
        self._counted_last_forward = False
        self._warned = False

    @classmethod
    def from_node(cls, *, cfg: Any, num_classes: int, alpha: float, gamma: float):
        """Make the loss from ``cfg.MODEL.EFL``; the focal parameters of the head are not used."""
        node = cfg.MODEL.EFL
        return cls(
            num_classes,
            alpha=node.ALPHA,
            gamma_b=node.GAMMA_B,
            scale=node.SCALE,
            loss_weight=node.LOSS_WEIGHT,
        )

    def forward(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        normalizer: Union[float, torch.Tensor] = 1.0,
        quality: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """Sum over all valid samples times ``loss_weight / normalizer``.

        Args:
            logits: (M, C); M may be 0.
            labels: (M,).
            normalizer: usually the number of positives, averaged over ranks; never 0.
            quality: (M,) IoU of each positive's predicted box with its object, without gradient;
                needed by the quality variant, refused by the plain one.

        Returns:
            A scalar.
        """
        self._check_quality(quality)
        recomputing, counts = self._role_of_this_pass()
        ratio = self._ratio_read if recomputing else self.pos_neg
        if counts:
            self._ratio_read.copy_(ratio)
        if self.needs_quality:
            total, pos, neg = equalized_quality_focal_loss(
                logits, labels, quality, ratio, gamma_b=self.gamma_b, scale=self.scale
            )
        else:
            total, pos, neg = equalized_focal_loss(
                logits, labels, ratio, alpha=self.alpha, gamma_b=self.gamma_b, scale=self.scale
            )
        if torch.is_tensor(normalizer):
            normalizer = normalizer.detach().to(device=total.device, dtype=total.dtype)
        factor = self.loss_weight / normalizer
        if counts:
            self._collect(torch.stack((pos, neg)) * factor)
        return total * factor

    def per_row(
        self, logits: torch.Tensor, labels: torch.Tensor, quality: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        """Loss of each of a few samples with the statistics as they are, which are not updated.

        Returns:
            (M,) losses times ``loss_weight``, not normalized, differentiable.
        """
        self._check_quality(quality)
        loss = sigmoid_loss_per_row(
            logits,
            labels,
            kind="eqfl" if self.needs_quality else "efl",
            alpha=self.alpha,
            grad_ratio=self.pos_neg,
            gamma_b=self.gamma_b,
            scale=self.scale,
            quality=quality,
        )
        return loss * self.loss_weight

    @property
    def gamma(self) -> torch.Tensor:
        """(C,) focusing exponents that the next forward pass uses."""
        return self.gamma_b + self.scale * (1.0 - self.pos_neg)

    def stats(self, groups: Optional[Mapping[str, Sequence[int]]] = None) -> Dict[str, float]:
        """What there is to log: whether the loss is at work, and on which classes.

        Args:
            groups: class indices by group name, such as :func:`frequency_groups` makes.

        Returns:
            The mean of g and of gamma over all classes, the fraction of classes with g = 0 and with
            g = 1, the number of forward passes that were not counted because a sum was not finite,
            and ``ratio_<group>`` and ``gamma_<group>`` means of each group that has a class.
        """
        ratio = self.pos_neg.detach().double().cpu()
        gamma = self.gamma_b + self.scale * (1.0 - ratio)
        num_skipped = int(self._num_skipped)
        self._warn_of_skipped(num_skipped)
        result = {
            "ratio_mean": float(ratio.mean()),
            "gamma_mean": float(gamma.mean()),
            "fraction_ratio_0": float((ratio == 0).double().mean()),
            "fraction_ratio_1": float((ratio == 1).double().mean()),
            "num_skipped": float(num_skipped),
        }
        for name, indices in (groups or {}).items():
            index = torch.as_tensor(indices, dtype=torch.long)
            if index.numel():
                result[f"ratio_{name}"] = float(ratio[index].mean())
                result[f"gamma_{name}"] = float(gamma[index].mean())
        return result

    def extra_repr(self) -> str:
        text = f"num_classes={self.num_classes}, gamma_b={self.gamma_b}, scale={self.scale}"
        text += "" if self.needs_quality else f", alpha={self.alpha}"
        return text + f", loss_weight={self.loss_weight}, quality={self.needs_quality}"

    def _check_quality(self, quality: Optional[torch.Tensor]) -> None:
        if self.needs_quality and quality is None:
            raise ValueError("EQFL needs quality, the IoU of each positive; pass it or use EFL.")
        if quality is not None and not self.needs_quality:
            raise ValueError("EFL takes no quality; make the loss with quality=True for EQFL.")

    def _role_of_this_pass(self):
        """Whether this forward pass recomputes a counted one, and whether it is to be counted.

        A forward pass inside a backward pass is activation checkpointing at work. In its
        non-reentrant form the first pass had gradients enabled and was counted. In its reentrant
        form the first pass ran under no_grad, so only the recomputation can be.
        """
        learns = self.training and torch.is_grad_enabled()
        if torch._C._current_graph_task_id() != -1:
            recomputing = learns and self._counted_last_forward
            return recomputing, learns and not recomputing
        if self.training:
            self._counted_last_forward = learns
        return False, learns

    @torch.no_grad()
    def _collect(self, sums: torch.Tensor) -> None:
        """Add this pass's (2, C) positive and negative sums of all ranks; updates in place.

        In place because whatever holds the buffers (DDP, an average of the weights) keeps doing so.
        """
        sums = reduce_sum(sums.to(self.pos_grad.dtype))
        finite = sums.isfinite().all()
        sums = torch.where(finite, sums, torch.zeros_like(sums))
        self.pos_grad.add_(sums[0])
        self.neg_grad.add_(sums[1])
        ratio = (self.pos_grad / (self.neg_grad + _EPS)).clamp_(0.0, 1.0)
        self.pos_neg.copy_(torch.where(finite, ratio, self.pos_neg))
        self._num_skipped.add_(~finite)
        # Reading a value waits for the device, so elsewhere than on the CPU stats() looks at it.
        if self._num_skipped.device.type == "cpu":
            self._warn_of_skipped(int(self._num_skipped))

    def _warn_of_skipped(self, num_skipped: int) -> None:
        if num_skipped and not self._warned:
            self._warned = True
            logger.warning(
                "The gradients of the equalized focal loss were not finite; its statistics leave "
                "out such iterations. Said once; look for a diverging loss if it was not AMP."
            )

    def _apply(self, fn, *args, **kwargs):
        """Move the module, but keep the statistics in float32 or wider.

        A sum over a whole training would stop growing in half precision.
        """
        kept = {name: getattr(self, name) for name in ("pos_grad", "neg_grad", "pos_neg")}
        super()._apply(fn, *args, **kwargs)
        for name, before in kept.items():
            now = getattr(self, name)
            if now.dtype in (torch.float16, torch.bfloat16):
                setattr(self, name, before.to(now.device))
        return self


@CLS_LOSS_REGISTRY.register("eqfl")
class EqualizedQualityFocalLoss(EqualizedFocalLoss):
    """:class:`EqualizedFocalLoss` in its quality variant."""

    def __init__(
        self,
        num_classes: int,
        alpha: float = -1.0,
        gamma_b: float = 2.0,
        scale: float = 8.0,
        loss_weight: float = 1.0,
    ):
        super().__init__(num_classes, alpha, gamma_b, scale, loss_weight, quality=True)


def frequency_groups(
    image_counts: Sequence[int], *, rare: int = 10, common: int = 100
) -> Dict[str, Sequence[int]]:
    """Class indices of LVIS' frequency groups.

    Args:
        image_counts: number of training images with each class.
        rare: classes in at most so many images are rare.
        common: classes in more, but at most so many, are common; the others are frequent.

    Returns:
        Indices by group name: "rare", "common" and "frequent".
    """
    groups: Dict[str, list] = {"rare": [], "common": [], "frequent": []}
    for index, count in enumerate(image_counts):
        name = "rare" if count <= rare else "common" if count <= common else "frequent"
        groups[name].append(index)
    return groups
