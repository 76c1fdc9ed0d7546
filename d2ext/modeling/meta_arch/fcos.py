"""FCOS with a YAML face, whose assigner, losses and normaliser are slots.

Shapes: K positive points.
"""

import torch
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead

from d2ext.config import arguments

from ..losses.positives import Positives
from .build import OwnChoices, dense_arguments, dense_slots, select_features
from .dense import ExtDenseMixin

__all__ = ["ExtFCOS", "centerness_targets"]


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


@META_ARCH_REGISTRY.register()
class ExtFCOS(ExtDenseMixin, FCOS):
    """Detectron2's FCOS with exchangeable parts, chosen in YAML.

    With the default config it computes what upstream's LazyConfig model computes and has its
    state-dict keys. The losses are ``loss_fcos_cls``, ``loss_fcos_loc`` and ``loss_fcos_ctr``.
    """

    score_power = 0.5  # the score is a square root
    loss_prefix = "loss_fcos_"
    loss_names = {"box": "loc"}
    quality_loss = "ctr"
    point_extent = 8.0  # as ATSS' anchors, and those of the RetinaNet its paper compares it with

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.FCOS
        backbone = build_backbone(cfg)
        shapes = select_features(backbone, node.IN_FEATURES, "MODEL.FCOS.IN_FEATURES")
        own = OwnChoices(assigner="center", initial=300, guides=("box", "ctr"))
        return {
            **dense_arguments(cfg, "MODEL.FCOS"),
            **dense_slots(cfg, "MODEL.FCOS", own),
            "backbone": backbone,
            "head": FCOSHead(
                input_shape=shapes,
                num_classes=node.NUM_CLASSES,
                conv_dims=[shapes[0].channels] * node.NUM_CONVS,
                **arguments(cfg, "MODEL.FCOS", "head"),
            ),
        }

    @torch.no_grad()
    def quality_targets(self, positives: Positives) -> torch.Tensor:
        """Centerness of the positives: (K,)."""
        return centerness_targets(positives.target_deltas)
