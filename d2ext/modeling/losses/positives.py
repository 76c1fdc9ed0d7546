"""The positive samples of a Detectron2 head."""

from functools import cached_property

import torch
from detectron2.modeling.box_regression import Box2BoxTransform

from d2ext import losses
from d2ext.ops.boxes import box_deltas

__all__ = ["Positives"]


class Positives(losses.Positives):
    """As its base, for Detectron2's transforms without their host-device syncs."""

    @cached_property
    def target_deltas(self) -> torch.Tensor:
        """(K, 4) deltas that would decode to the ground truth."""
        # Upstream's own asserts that the priors have a width, which is a sync. Anchors have one,
        # and proposals without are removed where they are made.
        if type(self.transform) is Box2BoxTransform:
            return box_deltas(self.priors, self.boxes, self.transform.weights)
        return self.transform.get_deltas(self.priors, self.boxes)
