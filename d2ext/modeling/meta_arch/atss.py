"""ATSS (Zhang et al., CVPR 2020), also in the form that EFL's paper calls its improved baseline.

Shapes: K positive anchors.
"""

from typing import Any, Dict, List, Optional, Tuple

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform, Box2BoxTransformLinear
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes
from torch import nn

from d2ext.config import arguments, names_keys, validate

from ..losses.positives import Positives
from .atss_head import QualityHead
from .build import OwnChoices, dense_arguments, dense_slots, select_features
from .decoupled_head import DecoupledHead
from .dense import ExtDenseMixin
from .fcos import centerness_targets

__all__ = ["ATSS"]


@META_ARCH_REGISTRY.register()
class ATSS(ExtDenseMixin, FCOS):
    """A dense detector whose positives are found by the statistics of their overlaps.

    Boxes are predicted relative to anchors or as distances from points; the third branch predicts
    centerness or IoU, whose target also weighs the box loss. The losses are ``loss_cls``,
    ``loss_box_reg`` and ``loss_quality``.
    """

    quality_weighs_boxes = True

    @names_keys("MODEL.ATSS")
    @configurable
    def __init__(
        self,
        *,
        anchor_generator: nn.Module,
        point_generator: Optional[nn.Module] = None,
        quality: str = "centerness",
        box_loss_weight: float = 2.0,
        l1_loss_weight: float = 0.0,
        score: str = "sqrt",
        clip_before_nms: bool = False,
        drop_empty: bool = False,
        test_score_thresh: float = 0.05,
        input_format: str = "BGR",
        **kwargs,
    ):
        """
        Args:
            anchor_generator: the anchors that are assigned to objects.
            point_generator: boxes of a stride's size, which the deltas are relative to; None: the
                anchors themselves.
            quality: what the third branch predicts, "centerness" or "iou".
            box_loss_weight: constant weight of the box loss.
            l1_loss_weight: weight of the mean L1 of the positives' deltas, over this rank; 0: none.
            score: "sqrt" (geometric mean of class score and quality) or "product".
            clip_before_nms: see :class:`ExtDenseMixin`.
            drop_empty: leave boxes without area in the image out before the best are taken; clips.
            test_score_thresh: compared with the score, whichever it is.
            input_format: order of the colours.
            kwargs: arguments of :class:`ExtDenseMixin` and Detectron2's ``FCOS``.
        """
        for name, value, allowed in (
            ("quality", quality, ("centerness", "iou")),
            ("score", score, ("sqrt", "product")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be {' or '.join(allowed)}, not '{value}'.")
        super().__init__(
            test_score_thresh=test_score_thresh,
            clip_before_nms=clip_before_nms or drop_empty,
            **kwargs,
        )
        self.anchor_generator = anchor_generator
        self.point_generator = point_generator
        self.quality = quality
        self.box_loss_weight = box_loss_weight
        self.l1_loss_weight = l1_loss_weight
        self.score_power = 0.5 if score == "sqrt" else 1.0
        self.drop_empty = drop_empty
        self.input_format = input_format

    @classmethod
    def from_config(cls, cfg):
        validate(cfg, "MODEL.ATSS")
        node = cfg.MODEL.ATSS
        backbone = build_backbone(cfg)
        shapes = select_features(backbone, node.IN_FEATURES, "MODEL.ATSS.IN_FEATURES")
        own = OwnChoices(
            assigner="atss", normalizer="positives", sync=True, guides=("box", "quality")
        )
        return {
            **dense_arguments(cfg, "MODEL.ATSS"),
            **dense_slots(cfg, "MODEL.ATSS", own, num_anchors=len(node.ANCHOR_SCALES)),
            "backbone": backbone,
            "head": cls._head(cfg, shapes),
            **cls._geometry(node, [shape.stride for shape in shapes]),
            "input_format": cfg.INPUT.FORMAT,
        }

    @staticmethod
    def _head(cfg: Any, shapes: List[ShapeSpec]) -> nn.Module:
        """Towers that all levels share, or towers for each."""
        node = cfg.MODEL.ATSS
        common = {
            "input_shape": shapes,
            "num_classes": node.NUM_CLASSES,
            "num_anchors": len(node.ANCHOR_SCALES),
            "conv_dims": [shapes[0].channels] * node.NUM_CONVS,
            **arguments(cfg, "MODEL.ATSS", "head"),
        }
        if node.HEAD == "shared":
            return QualityHead(**common, **arguments(cfg, "MODEL.ATSS", "shared"))
        # The head brings a normalisation of its own, with the backbone's constants.
        return DecoupledHead(**{**arguments(cfg, "MODEL.CSPDARKNET", "norm"), **common})

    @staticmethod
    def _geometry(node: Any, strides: List[int]) -> Dict[str, Any]:
        """Anchors, and what the box branch is relative to."""
        generate = {"aspect_ratios": [1.0], "strides": strides, "offset": node.ANCHOR_OFFSET}
        anchors = DefaultAnchorGenerator(
            sizes=[[scale * s for scale in node.ANCHOR_SCALES] for s in strides], **generate
        )
        if node.REGRESSION == "anchor":
            transform = Box2BoxTransform(weights=tuple(node.BBOX_REG_WEIGHTS))
            return {"anchor_generator": anchors, "box2box_transform": transform}
        points = DefaultAnchorGenerator(
            sizes=[[s] * len(node.ANCHOR_SCALES) for s in strides], **generate
        )
        return {
            "anchor_generator": anchors,
            "point_generator": points,
            "box2box_transform": Box2BoxTransformLinear(normalize_by_size=True),
        }

    def anchors_and_priors(self, features: List[torch.Tensor]) -> Tuple[List[Boxes], List[Boxes]]:
        anchors = self.anchor_generator(features)
        return anchors, self.point_generator(features) if self.point_generator else anchors

    @torch.no_grad()
    def quality_targets(self, positives: Positives) -> torch.Tensor:
        """What the third branch should say for each positive: (K,), without graph."""
        if self.quality == "iou":
            return positives.iou.detach().float()
        priors, boxes = positives.priors, positives.boxes
        center = (priors[:, :2] + priors[:, 2:]) / 2
        ltrb = torch.cat([center - boxes[:, :2], boxes[:, 2:] - center], dim=1)
        return centerness_targets(ltrb)

    def further_losses(self, positives: Positives, divisor: Any) -> Dict[str, torch.Tensor]:
        """The mean over the deltas of this rank's positives, as in United-Perception."""
        if not self.l1_loss_weight:
            return {}
        error = (positives.deltas - positives.target_deltas).abs().sum()
        return {"l1": error * (self.l1_loss_weight / max(4 * len(positives), 1))}
