"""The positive samples of a head, and what is computed from them at most once.

Shapes: M samples (anchors, points or proposals of all images), K of them positive.
"""

from functools import cached_property
from typing import Any, Optional

import torch

from d2ext.ops.boxes import pair_iou
from d2ext.ops.precision import full_precision

__all__ = ["Positives"]


class Positives:
    """Predicted and true boxes of the positive samples.

    Decoded boxes and IoUs are made when first asked for: with smooth L1 and no coupling they
    are never made, so a plain detector pays nothing.

    Args:
        index: (K,) rows of the head's logits that are positive, ascending.
        deltas: (K, 4) predicted box deltas, with graph.
        priors: (K, 4) anchors or proposals.
        boxes: (K, 4) matched ground-truth boxes.
        transform: relates the three: something with ``get_deltas(priors, boxes)`` and
            ``apply_deltas(deltas, priors)``, such as Detectron2's box2box transforms.
        image_sizes: (K, 2) height and width of each sample's image, for a box loss that has
            ``needs_image_sizes``.
        levels: the pyramid level of each sample, as :class:`~d2ext.losses.counted.Levels`, for a
            box loss that has ``needs_levels``.
    """

    def __init__(
        self,
        index: torch.Tensor,
        deltas: torch.Tensor,
        priors: torch.Tensor,
        boxes: torch.Tensor,
        transform: Any,
        image_sizes: Optional[torch.Tensor] = None,
        levels: Optional[Any] = None,
    ):
        self.index = index
        self.deltas = full_precision(deltas)
        self.priors = priors
        self.boxes = boxes
        self.transform = transform
        self.image_sizes = image_sizes
        self.levels = levels

    def __len__(self) -> int:
        return self.index.shape[0]

    @cached_property
    def target_deltas(self) -> torch.Tensor:
        """(K, 4) deltas that would decode to the ground truth."""
        deltas: torch.Tensor = self.transform.get_deltas(self.priors, self.boxes)
        return deltas

    @cached_property
    def decoded(self) -> torch.Tensor:
        """(K, 4) predicted boxes, with graph."""
        # The first to ask may do so under no_grad (a quality target), the next one needs gradients.
        with torch.set_grad_enabled(self.deltas.requires_grad):
            boxes: torch.Tensor = self.transform.apply_deltas(self.deltas, self.priors)
            return boxes

    @cached_property
    def quality(self) -> torch.Tensor:
        """(K,) what a class loss that needs a quality aims at, without graph.

        It is the IoU, unless the assigner has set another target.
        """
        return self.iou.detach()

    @cached_property
    def iou(self) -> torch.Tensor:
        """(K,) IoU of predicted and true boxes, with graph."""
        with torch.set_grad_enabled(self.deltas.requires_grad):
            return pair_iou(self.decoded, self.boxes)
