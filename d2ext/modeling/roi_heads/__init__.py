"""ROI heads."""

from .fast_rcnn import ExtFastRCNNOutputLayers
from .roi_heads import ExtCascadeROIHeads, ExtStandardROIHeads

__all__ = ["ExtCascadeROIHeads", "ExtFastRCNNOutputLayers", "ExtStandardROIHeads"]
