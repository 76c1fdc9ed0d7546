"""Detectron2's ROI heads with the extended box predictor."""

from typing import Any, Dict

from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads

from .fast_rcnn import ExtFastRCNNOutputLayers

__all__ = ["ExtCascadeROIHeads", "ExtStandardROIHeads"]


@ROI_HEADS_REGISTRY.register()
class ExtStandardROIHeads(StandardROIHeads):
    """Faster and Mask R-CNN heads whose box losses are slots."""

    @classmethod
    def _init_box_head(cls, cfg, input_shape) -> Dict[str, Any]:
        args = super()._init_box_head(cfg, input_shape)
        args["box_predictor"] = ExtFastRCNNOutputLayers(cfg, args["box_head"].output_shape)
        return args


@ROI_HEADS_REGISTRY.register()
class ExtCascadeROIHeads(CascadeROIHeads):
    """Cascade R-CNN heads whose box losses are slots, each stage with its own criterion."""

    @classmethod
    def _init_box_head(cls, cfg, input_shape) -> Dict[str, Any]:
        args = super()._init_box_head(cfg, input_shape)
        weights = cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS
        args["box_predictors"] = [
            ExtFastRCNNOutputLayers(
                cfg, head.output_shape, box2box_transform=Box2BoxTransform(weights=weight)
            )
            for head, weight in zip(args["box_heads"], weights)
        ]
        return args
