"""FCOS with a YAML face, whose assigner, losses and normaliser are slots.

Shapes: N images, P points of all levels, M = N * P samples, K of them positive, C classes.
"""

from typing import Any, Dict, List, Optional

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.structures import Boxes
from torch import nn
from torch.nn import functional as F

from d2ext.config import arguments

from ..assigners import CenterAssigner
from ..losses.criterion import Criterion
from ..losses.positives import Positives
from ..sampling_free import SamplingFreeOptions
from .dense import ExtDenseMixin, build_dense_normalizer, dense_arguments

__all__ = ["ExtFCOS", "centerness_targets", "select_features"]


def select_features(backbone: nn.Module, names: List[str], key: str) -> List[Any]:
    """Shapes of the named feature maps; a name the backbone lacks is refused with those it has."""
    shapes = backbone.output_shape()
    missing = [name for name in names if name not in shapes]
    if missing:
        raise ValueError(
            f"{key} asks for {missing[0]}, but the backbone has {', '.join(shapes)}; choose among "
            "those or another MODEL.BACKBONE.NAME."
        )
    return [shapes[name] for name in names]


def centerness_targets(ltrb: torch.Tensor) -> torch.Tensor:
    """FCOS centerness of points from their distances to the four sides: (K, 4) to (K,)."""
    left_right, top_bottom = ltrb[:, [0, 2]], ltrb[:, [1, 3]]
    product = (left_right.amin(dim=-1) / left_right.amax(dim=-1)) * (
        top_bottom.amin(dim=-1) / top_bottom.amax(dim=-1)
    )
    return torch.sqrt(product)


@META_ARCH_REGISTRY.register()
class ExtFCOS(ExtDenseMixin, FCOS):
    """Detectron2's FCOS with exchangeable parts, chosen in YAML.

    With the default config it computes what upstream's LazyConfig model computes and has its
    state-dict keys.
    """

    score_power = 0.5  # the score is a square root

    @configurable
    def __init__(
        self,
        *,
        criterion: Criterion,
        assigner: CenterAssigner,
        normalizer: nn.Module,
        sampling_free: Optional[SamplingFreeOptions] = None,
        **kwargs,
    ):
        """
        Args:
            criterion: class and box loss of all points.
            assigner: who is responsible for which object.
            normalizer: called with the number of positives, gives the divisor of all losses.
            sampling_free: how to train without sampling; None: not at all.
            kwargs: arguments of Detectron2's ``FCOS``.
        """
        super().__init__(**kwargs)
        self.criterion = criterion
        self.assigner = assigner
        self.normalizer = normalizer
        self.enable_optimal_bias(sampling_free, self.num_classes)

    @classmethod
    def from_config(cls, cfg):
        node = cfg.MODEL.FCOS
        backbone = build_backbone(cfg)
        shapes = select_features(backbone, node.IN_FEATURES, "MODEL.FCOS.IN_FEATURES")
        return {
            **dense_arguments(cfg, "MODEL.FCOS", guides=("box", "ctr")),
            "backbone": backbone,
            "head": FCOSHead(
                input_shape=shapes,
                num_classes=node.NUM_CLASSES,
                conv_dims=[shapes[0].channels] * node.NUM_CONVS,
                **arguments(cfg, "MODEL.FCOS", "head"),
            ),
            "assigner": CenterAssigner(center_sampling_radius=node.CENTER_SAMPLING_RADIUS),
            "normalizer": build_dense_normalizer(cfg, kind="ema", sync=False, initial=300),
        }

    def losses(
        self,
        anchors: List[Boxes],
        pred_logits: List[torch.Tensor],
        gt_labels: torch.Tensor,
        pred_anchor_deltas: List[torch.Tensor],
        gt_boxes: torch.Tensor,
        pred_centerness: List[torch.Tensor],
    ) -> Dict[str, torch.Tensor]:
        """
        Args:
            anchors: one box of a stride's size a point, for each level.
            pred_logits, pred_anchor_deltas, pred_centerness: predictions of each level,
                (N, P_l, C), (N, P_l, 4) and (N, P_l, 1).
            gt_labels, gt_boxes: (N, P) and (N, P, 4).

        Returns:
            ``loss_fcos_cls``, ``loss_fcos_loc`` and ``loss_fcos_ctr``.
        """
        positives = self.gather_positives(anchors, gt_labels, gt_boxes, pred_anchor_deltas)
        divisor = self.normalizer(len(positives), positives.deltas)
        losses = self.criterion(
            torch.cat(pred_logits, dim=1).flatten(0, 1),
            self.sample_labels(gt_labels).flatten(),
            positives,
            cls_normalizer=divisor,
            box_normalizer=divisor * self.numbers_per_box(),
            others={"ctr": self.centerness_loss(pred_centerness, positives) / divisor},
        )
        names = {"cls": "loss_fcos_cls", "box": "loss_fcos_loc", "ctr": "loss_fcos_ctr"}
        return {names.get(k, f"loss_fcos_{k}"): v for k, v in losses.items()}

    def centerness_loss(
        self, pred_centerness: List[torch.Tensor], positives: Positives
    ) -> torch.Tensor:
        """Sum of the binary cross entropies of the positives' centerness."""
        logits = torch.cat(pred_centerness, dim=1).flatten()[positives.index].float()
        targets = centerness_targets(positives.target_deltas)
        return F.binary_cross_entropy_with_logits(logits, targets.to(logits), reduction="sum")
