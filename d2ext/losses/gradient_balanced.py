"""Class losses that follow the balance of positive and negative gradients of each class.

Shapes: M samples (anchors, points or proposals of all images), C classes. Labels are Detectron2's:
0..C-1 classes, C background, -1 ignored.
"""

import logging
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

import torch

from d2ext.ops import host
from d2ext.ops.reduce import reduce_later

from .counted import CountedLoss
from .normalizers import Divisor

__all__ = ["GradientBalancedLoss"]

logger = logging.getLogger(__name__)

_EPS = 1e-10  # the authors' guard of the division


class GradientBalancedLoss(CountedLoss):
    """Base of losses that weigh classes by the gradients that they collected so far.

    The statistics are buffers, so they are in every checkpoint, and are identical on all ranks:

    * ``pos_grad``, ``neg_grad``: (C,) sums of ``|d loss / d logit|`` over positive and over
      negative entries, since the first iteration. They are computed with the loss, in float32,
      before any outer loss weight and before an AMP scale.
    * ``pos_neg``: (C,) g_j, ``pos_grad / neg_grad``, cut at ``max_ratio``.

    A forward pass first reads g and then collects, if it counts. With gradient accumulation each of
    the forward passes counts and sees what the earlier ones collected. If any sum is not finite on
    any rank, that forward pass is not counted at all.

    Every rank must run as many counted forward passes as the others, because each ends in the
    sum of a (2, C) tensor over the ranks; ranks without samples take part with an empty ``logits``.
    Under this package's trainer that sum is part of the step's own message, elsewhere a message.

    Args:
        num_classes: C, without background.
        loss_weight: factor of the loss.
        initial_ratio: g of every class before the first iteration.
        max_ratio: what g is cut at; None: not at all.
        kwargs: arguments of the base.
    """

    pos_grad: torch.Tensor
    neg_grad: torch.Tensor
    pos_neg: torch.Tensor
    _ratio_read: torch.Tensor
    _num_skipped: torch.Tensor

    collects_normalized = True
    """Whether the statistics are of the loss after normalizer and ``loss_weight``."""

    plain_form = ""
    """What the loss is for a class whose gradients are in balance, for a warning."""

    saturates_after = 1000
    """Counted passes before all classes may not be in balance any more: at the start they are."""

    def __init__(
        self,
        num_classes: int,
        *,
        loss_weight: float = 1.0,
        initial_ratio: float = 1.0,
        max_ratio: Optional[float] = 1.0,
        **kwargs: Any,
    ):
        super().__init__(**kwargs)
        if num_classes < 1:
            raise ValueError(f"num_classes must be 1 or more, not {num_classes}.")
        self.num_classes = num_classes
        self.loss_weight = loss_weight
        self.max_ratio = max_ratio
        self.register_buffer("pos_grad", torch.zeros(num_classes))
        self.register_buffer("neg_grad", torch.zeros(num_classes))
        self.register_buffer("pos_neg", torch.full((num_classes,), float(initial_ratio)))
        # g as the last counted forward pass read it: what a recomputation of that pass must see.
        self.register_buffer("_ratio_read", self.pos_neg.clone(), persistent=False)
        self.register_buffer("_num_skipped", torch.zeros((), dtype=torch.long), persistent=False)
        self._warned = False
        self._warned_of_balance = False
        self._num_counted = 0

    def compute(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        quality: Optional[torch.Tensor],
        ratio: torch.Tensor,
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The loss summed, and the (C,) sums of gradients over positive and negative entries."""
        raise NotImplementedError(f"{type(self).__name__} must define compute.")

    def compute_rows(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        quality: Optional[torch.Tensor],
        ratio: torch.Tensor,
    ) -> torch.Tensor:
        """The loss of each row, (M,), in plain differentiable operations."""
        raise NotImplementedError(f"{type(self).__name__} must define compute_rows.")

    def forward(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        normalizer: Divisor = 1.0,
        quality: Optional[torch.Tensor] = None,
    ) -> torch.Tensor:
        """Sum over all valid samples times ``loss_weight / normalizer``.

        Args:
            logits: (M, C); M may be 0.
            labels: (M,).
            normalizer: usually the number of positives, averaged over ranks; never 0.
            quality: (M,) IoU of each positive's predicted box with its object, without gradient;
                only for losses with ``needs_quality``.

        Returns:
            A scalar.
        """
        self._check_quality(quality)
        ratio, counts = self._ratio_and_whether_to_count()
        total, pos, neg = self.compute(logits, labels, quality, ratio)
        if torch.is_tensor(normalizer):
            normalizer = normalizer.detach().to(device=total.device, dtype=total.dtype)
        factor = self.loss_weight / normalizer
        if counts:
            self._num_counted += 1
            sums = torch.stack((pos, neg))
            self._collect(sums * factor if self.collects_normalized else sums)
        return total * factor

    def per_row(
        self, logits: torch.Tensor, labels: torch.Tensor, quality: Optional[torch.Tensor] = None
    ) -> torch.Tensor:
        """Loss of each of a few samples with the statistics as they are, which are not updated.

        Call it before :meth:`forward`, so that both see the same statistics.

        Returns:
            (M,) losses times ``loss_weight``, not normalized, differentiable.
        """
        self._check_quality(quality)
        ratio = self._ratio_read if self.is_repetition() else self.pos_neg
        return self.compute_rows(logits, labels, quality, ratio) * self.loss_weight

    def stats(self, groups: Optional[Mapping[str, Sequence[int]]] = None) -> Dict[str, float]:
        """What there is to log: whether the loss is at work, and on which classes.

        Args:
            groups: class indices by group name, such as :func:`frequency_groups` makes.

        Returns:
            The mean of g over all classes, the fraction of classes with g = 0 and with g of 1 or
            more, the number of forward passes that were not counted because a sum was not finite,
            and ``ratio_<group>``, the mean of each group that has a class.
        """
        self._warn_of_skipped(int(self._num_skipped))
        self._warn_of_balance()
        ratio = self.pos_neg.detach().double().cpu()
        result = {
            "ratio_mean": float(ratio.mean()),
            "fraction_ratio_0": float((ratio == 0).double().mean()),
            "fraction_ratio_1": float((ratio >= 1).double().mean()),
            "num_skipped": float(self._num_skipped),
        }
        result.update(self._group_means("ratio", ratio, groups))
        return result

    def is_plain(self, ratio: torch.Tensor) -> torch.Tensor:
        """(C,) bool, for which classes the loss is its plain form."""
        return torch.zeros_like(ratio, dtype=torch.bool)

    def _warn_of_balance(self) -> None:
        """Say once that the loss does nothing, if that is so for every class with positives."""
        if self._warned_of_balance or self._num_counted < self.saturates_after:
            return
        seen = self.pos_grad > 0
        if bool(seen.any()) and bool(self.is_plain(self.pos_neg)[seen].all()):
            self._warned_of_balance = True
            logger.warning(
                f"{type(self).__name__} has become {self.plain_form}: the ratio g of all "
                f"{int(seen.sum())} classes with objects is {float(self.pos_neg[seen].min()):.3g} "
                "or more, because positives give more gradient than negatives. Train on more "
                "background (larger images, all anchors or queries instead of a sample), or choose "
                "the plain loss. Said once."
            )

    @staticmethod
    def _group_means(
        name: str, values: torch.Tensor, groups: Optional[Mapping[str, Sequence[int]]]
    ) -> Dict[str, float]:
        index = {k: torch.as_tensor(v, dtype=torch.long) for k, v in (groups or {}).items()}
        return {f"{name}_{k}": float(values[i].mean()) for k, i in index.items() if i.numel()}

    def _check_quality(self, quality: Optional[torch.Tensor]) -> None:
        name = type(self).__name__
        if self.needs_quality and quality is None:
            raise ValueError(f"This {name} needs quality, the IoU of each positive.")
        if quality is not None and not self.needs_quality:
            raise ValueError(f"This {name} takes no quality; its targets are hard labels.")

    def _ratio_and_whether_to_count(self) -> Tuple[torch.Tensor, bool]:
        if self.is_repetition():
            return self._ratio_read, False
        counts = self.counts_now()
        if counts:
            self._ratio_read.copy_(self.pos_neg)
        return self.pos_neg, counts

    def _collect(self, sums: torch.Tensor) -> None:
        """Add this pass's (2, C) positive and negative sums of all ranks.

        The next forward pass is the first to read them, so they may travel with the trainer's own
        message at the end of the step.
        """
        reduce_later(sums.to(self.pos_grad.dtype), self._take_in)

    @torch.no_grad()
    def _take_in(self, sums: torch.Tensor) -> None:
        """Add the sums of all ranks, in place.

        In place because whatever holds the buffers (DDP, an average of the weights) keeps doing so.
        """
        finite = sums.isfinite().all()
        sums = torch.where(finite, sums, torch.zeros_like(sums))
        self.pos_grad.add_(sums[0])
        self.neg_grad.add_(sums[1])
        ratio = self.pos_grad / (self.neg_grad + _EPS)
        if self.max_ratio is not None:
            ratio.clamp_(max=self.max_ratio)
        self.pos_neg.copy_(torch.where(finite, ratio, self.pos_neg))
        self._num_skipped.add_(~finite)
        # Elsewhere stats() looks at it.
        if host.asking_is_free(self._num_skipped):
            self._warn_of_skipped(int(self._num_skipped))

    def _warn_of_skipped(self, num_skipped: int) -> None:
        if num_skipped and not self._warned:
            self._warned = True
            logger.warning(
                f"The gradients of {type(self).__name__} were not finite; its statistics leave out "
                "such iterations. Said once; look for a diverging loss if it was not AMP."
            )
