"""Detectron2's ROI heads with the extended box predictor."""

from typing import Any, Dict

from detectron2.config import configurable
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads

from ..last_pixel import pool_to_last_pixel
from ..losses.guided import sampling_free_on
from .fast_rcnn import ExtFastRCNNOutputLayers
from .unsampled import UnsampledMixin

__all__ = ["ExtCascadeROIHeads", "ExtStandardROIHeads"]


def _unsampled_options(cfg: Any) -> Dict[str, Any]:
    """Arguments of the heads below that say which proposals they learn from."""
    if sampling_free_on(cfg, "roi"):
        limit = cfg.MODEL.SAMPLING_FREE.MASK_MAX_FOREGROUND
        return {"use_all_proposals": True, "mask_max_foreground": limit}
    if cfg.MODEL.OHEM.ON_ROI:
        # The box predictor selects by loss; the mask head gets as many as it would of a sample.
        node = cfg.MODEL.ROI_HEADS
        quota = int(node.BATCH_SIZE_PER_IMAGE * node.POSITIVE_FRACTION)
        return {"use_all_proposals": True, "mask_max_foreground": max(quota, 1)}
    return {}


def _without_federated_loss(cfg: Any) -> Any:
    """The config for upstream's predictor, which is built only to be replaced.

    It would insist on ``USE_SIGMOID_CE`` beside a federated loss, which here ``CLS_LOSS`` decides.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS = False
    return cfg


class _ExtROIHeads(UnsampledMixin):
    """What both kinds of heads add to Detectron2's."""

    @configurable
    def __init__(self, *, use_all_proposals: bool = False, mask_max_foreground: int = 0, **kwargs):
        """
        Args:
            use_all_proposals, mask_max_foreground: see :class:`UnsampledMixin`.
            kwargs: arguments of Detectron2's heads of the same kind.
        """
        super().__init__(**kwargs)
        self.use_all_proposals = use_all_proposals
        self.mask_max_foreground = mask_max_foreground

    @classmethod
    def from_config(cls, cfg, input_shape):
        upstream: Any = super()
        args = {**upstream.from_config(cfg, input_shape), **_unsampled_options(cfg)}
        for name, node in (("box", cfg.MODEL.ROI_BOX_HEAD), ("mask", cfg.MODEL.ROI_MASK_HEAD)):
            if node.LEGACY_ROIS and args.get(f"{name}_pooler") is not None:
                pool_to_last_pixel(args[f"{name}_pooler"])
        return args


@ROI_HEADS_REGISTRY.register()
class ExtStandardROIHeads(_ExtROIHeads, StandardROIHeads):
    """Faster and Mask R-CNN heads whose box losses are slots."""

    @classmethod
    def _init_box_head(cls, cfg, input_shape) -> Dict[str, Any]:
        args = super()._init_box_head(_without_federated_loss(cfg), input_shape)
        args["box_predictor"] = ExtFastRCNNOutputLayers(cfg, args["box_head"].output_shape)
        return args


@ROI_HEADS_REGISTRY.register()
class ExtCascadeROIHeads(_ExtROIHeads, CascadeROIHeads):
    """Cascade R-CNN heads whose box losses are slots, each stage with its own criterion."""

    @classmethod
    def _init_box_head(cls, cfg, input_shape) -> Dict[str, Any]:
        args = super()._init_box_head(_without_federated_loss(cfg), input_shape)
        weights = cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS
        args["box_predictors"] = [
            ExtFastRCNNOutputLayers(
                cfg, head.output_shape, box2box_transform=Box2BoxTransform(weights=weight)
            )
            for head, weight in zip(args["box_heads"], weights)
        ]
        return args
