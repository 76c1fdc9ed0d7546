"""FCOS configured by YAML, whose assigner, losses and normaliser are slots.

Shapes: N images, C classes, K positive points.
"""

from typing import List, Tuple

import torch
from detectron2.config import configurable
from detectron2.layers import ShapeSpec
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from torch import nn

from d2ext.config import arguments, names_keys, validate
from d2ext.ops.precision import full_precision

from ..last_pixel import LastPixelTransform
from ..losses.positives import Positives
from .build import OwnChoices, dense_arguments, dense_slots, select_features
from .dense import ExtDenseMixin

__all__ = ["ExtFCOS", "ExtFCOSHead", "centerness_targets"]


def centerness_targets(ltrb: torch.Tensor) -> torch.Tensor:
    """FCOS centerness of points from their distances to the four sides: (K, 4) to (K,).

    A point outside, which only an assigner of overlaps makes a positive, has none.
    """
    ltrb = ltrb.clamp(min=0)
    left_right, top_bottom = ltrb[:, [0, 2]], ltrb[:, [1, 3]]
    product = (left_right.amin(dim=-1) / left_right.amax(dim=-1)) * (
        top_bottom.amin(dim=-1) / top_bottom.amax(dim=-1)
    )
    return torch.sqrt(product)


class ExtFCOSHead(FCOSHead):
    """Detectron2's head, also in the form of the first FCOS.

    Args:
        input_shape: shapes of the feature maps.
        conv_dims: channels of the towers' convolutions.
        exp_pixels: distances are the exponential of what a learned factor of each level scales, in
            pixels; otherwise the branch's output as it is.
        centerness_on: the tower whose features the centerness branch sees, "box" or "class".
        kwargs: further arguments of Detectron2's ``FCOSHead``.
    """

    def __init__(
        self,
        *,
        input_shape: List[ShapeSpec],
        conv_dims: List[int],
        exp_pixels: bool = False,
        centerness_on: str = "box",
        **kwargs,
    ):
        if centerness_on not in ("box", "class"):
            raise ValueError(f"centerness_on must be box or class, not '{centerness_on}'.")
        super().__init__(input_shape=input_shape, conv_dims=conv_dims, **kwargs)
        self.centerness_on = centerness_on
        self.scales = nn.ParameterList(
            [nn.Parameter(torch.ones(())) for _ in input_shape] if exp_pixels else []
        )

    def forward(
        self, features: List[torch.Tensor]
    ) -> Tuple[List[torch.Tensor], List[torch.Tensor], List[torch.Tensor]]:
        """
        Returns:
            For each level: logits (N, C, H, W), deltas (N, 4, H, W) and centerness logits
            (N, 1, H, W).
        """
        logits, deltas, centerness = [], [], []
        for level, feature in enumerate(features):
            towers = {"class": self.cls_subnet(feature), "box": self.bbox_subnet(feature)}
            logits.append(self.cls_score(towers["class"]))
            delta = self.bbox_pred(towers["box"])
            if len(self.scales):
                # exp() of a half-precision number overflows at 11.
                delta = (full_precision(delta) * self.scales[level]).exp()
            deltas.append(delta)
            centerness.append(self.ctrness(towers[self.centerness_on]))
        return logits, deltas, centerness


@META_ARCH_REGISTRY.register()
class ExtFCOS(ExtDenseMixin, FCOS):
    """Detectron2's FCOS with exchangeable parts, chosen in YAML.

    With the default config it computes what upstream's LazyConfig model computes and has its
    state-dict keys. The losses are ``loss_fcos_cls``, ``loss_fcos_loc`` and ``loss_fcos_ctr``.
    """

    least_weight = 1e-6

    score_power = 0.5  # the score is a square root
    loss_prefix = "loss_fcos_"
    loss_names = {"box": "loc"}
    quality_loss = "ctr"
    point_extent = 8.0  # as ATSS' anchors, and those of the RetinaNet its paper compares it with

    @names_keys("MODEL.FCOS")
    @configurable
    def __init__(self, *, box_weight: str = "none", **kwargs):
        """
        Args:
            box_weight: "none", or "centerness": the box loss is the mean that its targets weigh.
            kwargs: arguments of :class:`ExtDenseMixin` and Detectron2's ``FCOS``.
        """
        if box_weight not in ("none", "centerness"):
            raise ValueError(f"box_weight must be none or centerness, not '{box_weight}'.")
        super().__init__(**kwargs)
        self.quality_weighs_boxes = box_weight == "centerness"

    @classmethod
    def from_config(cls, cfg):
        validate(cfg, "MODEL.FCOS")
        node = cfg.MODEL.FCOS
        exp_pixels = node.DISTANCE == "exp_pixels"
        transform = LastPixelTransform if node.LEGACY_BOXES else Box2BoxTransformLinear
        backbone = build_backbone(cfg)
        shapes = select_features(backbone, node.IN_FEATURES, "MODEL.FCOS.IN_FEATURES")
        own = OwnChoices(assigner="center", initial=300, guides=("box", "ctr"))
        return {
            **dense_arguments(cfg, "MODEL.FCOS"),
            **dense_slots(cfg, "MODEL.FCOS", own),
            "backbone": backbone,
            "box2box_transform": transform(normalize_by_size=not exp_pixels),
            "head": ExtFCOSHead(
                input_shape=shapes,
                num_classes=node.NUM_CLASSES,
                conv_dims=[shapes[0].channels] * node.NUM_CONVS,
                exp_pixels=exp_pixels,
                **arguments(cfg, "MODEL.FCOS", "head"),
            ),
        }

    @torch.no_grad()
    def quality_targets(self, positives: Positives) -> torch.Tensor:
        """Centerness of the positives: (K,)."""
        return centerness_targets(positives.target_deltas)
