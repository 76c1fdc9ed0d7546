"""YOLOX (Ge et al., arXiv 2107.08430): points, a decoupled head and objectness.

Shapes: N images, P points of all levels, M = N * P samples, K of them positive, C classes.
"""

import math
from typing import Any, Dict, List, Optional

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes
from detectron2.utils.events import get_event_storage, has_event_storage
from torch.nn import functional as F

from d2ext.combinations import check
from d2ext.config import arguments, names_keys, validate

from ..losses.guided import sampling_free_on
from ..losses.positives import Positives
from ..targets import Predictions
from .build import OwnChoices, dense_arguments, dense_slots, select_features
from .decoupled_head import DecoupledHead
from .dense import ExtDenseMixin

__all__ = ["YOLOX", "CornerTransform"]

# The largest log size that is decoded: 4135 strides, more than any image has.
_LOG_LIMIT = math.log(1000.0 / 16)


class CornerTransform:
    """Boxes as the shift of their centre from a cell's corner, and the log of their size.

    All four numbers are in sides of the cell, that is in strides.
    """

    def get_deltas(self, cells: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """(K, 4) deltas that :meth:`apply_deltas` turns into ``boxes``."""
        side = cells[:, 2:] - cells[:, :2]
        center = (boxes[:, :2] + boxes[:, 2:]) / 2
        size = (boxes[:, 2:] - boxes[:, :2]) / side
        return torch.cat([(center - cells[:, :2]) / side, (size + 1e-8).log()], dim=1)

    def apply_deltas(self, deltas: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        """(K, 4) boxes."""
        cells = cells.to(deltas.dtype)
        side = cells[:, 2:] - cells[:, :2]
        center = cells[:, :2] + deltas[:, :2] * side
        half = deltas[:, 2:].clamp(max=_LOG_LIMIT).exp() * side / 2
        return torch.cat([center - half, center + half], dim=1)


@META_ARCH_REGISTRY.register()
class YOLOX(ExtDenseMixin, FCOS):
    """YOLOX with exchangeable parts.

    Classes are learnt from positives, whose target is the IoU of their box; the third branch says
    of every point whether it is one. The losses are ``loss_cls``, ``loss_box_reg``, ``loss_obj``
    and, from a step on, ``loss_l1``.
    """

    quality_loss = "obj"
    point_extent = 8.0

    @names_keys("MODEL.YOLOX")
    @configurable
    def __init__(
        self,
        *,
        classify: str = "positives",
        box_loss_weight: float = 5.0,
        l1_loss_weight: float = 1.0,
        l1_from_iter: int = 0,
        input_format: str = "BGR",
        **kwargs,
    ):
        """
        Args:
            classify: which points learn their class, "positives" or "all".
            box_loss_weight: constant weight of the box loss.
            l1_loss_weight: weight of the L1 of deltas.
            l1_from_iter: first step with it.
            input_format: order of the colours.
            kwargs: arguments of :class:`ExtDenseMixin` and Detectron2's ``FCOS``.
        """
        if classify not in ("positives", "all"):
            raise ValueError(f"classify must be positives or all, not '{classify}'.")
        super().__init__(box2box_transform=CornerTransform(), **kwargs)
        self.classify = classify
        self.box_loss_weight = box_loss_weight
        self.l1_loss_weight = l1_loss_weight
        self.l1_from_iter = l1_from_iter
        self.input_format = input_format

    @classmethod
    def from_config(cls, cfg):
        validate(cfg, "MODEL.YOLOX")
        if sampling_free_on(cfg, "dense"):
            check("objectness branch", "sampling free")
        node = cfg.MODEL.YOLOX
        backbone = build_backbone(cfg)
        shapes = select_features(backbone, node.IN_FEATURES, "MODEL.YOLOX.IN_FEATURES")
        own = OwnChoices(
            assigner="simota", box_loss="iou_squared", normalizer="positives", sync=True
        )
        return {
            **dense_arguments(cfg, "MODEL.YOLOX"),
            **dense_slots(cfg, "MODEL.YOLOX", own),
            "backbone": backbone,
            "head": DecoupledHead(
                **{
                    **arguments(cfg, "MODEL.CSPDARKNET", "norm"),
                    **arguments(cfg, "MODEL.YOLOX", "head"),
                },
                input_shape=shapes,
                num_classes=node.NUM_CLASSES,
                conv_dims=[shapes[0].channels] * node.NUM_CONVS,
            ),
            "input_format": cfg.INPUT.FORMAT,
        }

    def seen_predictions(
        self,
        priors: List[Boxes],
        pred_logits: List[torch.Tensor],
        pred_deltas: List[torch.Tensor],
        pred_quality: Optional[List[torch.Tensor]] = None,
    ) -> Predictions:
        seen = super().seen_predictions(priors, pred_logits, pred_deltas)
        assert pred_quality is not None  # the head's third branch
        objectness = torch.cat([x.detach() for x in pred_quality], dim=1).squeeze(2)
        return seen._replace(objectness=objectness)

    def sample_labels(self, labels: torch.Tensor) -> torch.Tensor:
        labels = super().sample_labels(labels)
        if self.classify == "all":
            return labels
        return labels.masked_fill(labels == self.num_classes, -1)

    def quality_targets(self, positives: Positives) -> torch.Tensor:
        """1 for each positive; what the others should say is in :meth:`quality_loss_sum`."""
        return torch.ones(len(positives), device=positives.deltas.device)

    def quality_loss_sum(
        self, logits: torch.Tensor, positives: Positives, quality: torch.Tensor
    ) -> torch.Tensor:
        """Binary cross entropy of every point's objectness."""
        target = torch.zeros_like(logits).index_copy_(0, positives.index, quality.to(logits))
        return F.binary_cross_entropy_with_logits(logits, target, reduction="sum")

    def further_losses(self, positives: Positives, divisor: Any) -> Dict[str, torch.Tensor]:
        late = self.l1_from_iter <= (get_event_storage().iter if has_event_storage() else 0)
        if not self.l1_loss_weight or not late:
            return {}
        error = (positives.deltas - positives.target_deltas).abs().sum()
        return {"l1": error * self.l1_loss_weight / divisor}
