"""RetinaNet whose assigner, losses and normaliser are slots.

Shapes: N images, R anchors of all levels, M = N * R samples, K of them positive, C classes.
"""

from typing import Dict, List, Optional

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.retinanet import RetinaNet
from detectron2.structures import Boxes
from torch import nn

from ..assigners import IoUAssigner
from ..losses.build import build_criterion
from ..losses.criterion import Criterion
from ..sampling_free import SamplingFreeOptions
from .dense import ExtDenseMixin, build_dense_normalizer, dense_slots

__all__ = ["ExtRetinaNet"]


@META_ARCH_REGISTRY.register()
class ExtRetinaNet(ExtDenseMixin, RetinaNet):
    """Detectron2's RetinaNet with exchangeable parts.

    With the default config it computes what upstream computes and has its state-dict keys, so
    that model-zoo weights load unchanged.
    """

    @configurable
    def __init__(
        self,
        *,
        criterion: Criterion,
        assigner: IoUAssigner,
        normalizer: nn.Module,
        sampling_free: Optional[SamplingFreeOptions] = None,
        **kwargs,
    ):
        """
        Args:
            criterion: class and box loss of all anchors.
            assigner: who is responsible for which object.
            normalizer: called with the number of positives, gives the divisor of both losses.
            sampling_free: how to train without sampling; None: not at all.
            kwargs: arguments of Detectron2's ``RetinaNet``. Its ``anchor_matcher`` and its loss
                parameters are not used: assigner and criterion hold their own.
        """
        super().__init__(**kwargs)
        self.criterion = criterion
        self.assigner = assigner
        self.normalizer = normalizer
        self.enable_optimal_bias(sampling_free, self.num_classes)

    @classmethod
    def from_config(cls, cfg):
        args = super().from_config(cfg)
        node = cfg.MODEL.RETINANET
        slots = dense_slots(
            cfg,
            box_loss=node.BBOX_REG_LOSS_TYPE,
            alpha=node.FOCAL_LOSS_ALPHA,
            gamma=node.FOCAL_LOSS_GAMMA,
            num_classes=node.NUM_CLASSES,
            smooth_l1_beta=node.SMOOTH_L1_LOSS_BETA,
        )
        args["criterion"] = build_criterion(cfg, **slots)
        args["assigner"] = IoUAssigner(
            thresholds=node.IOU_THRESHOLDS, labels=node.IOU_LABELS, allow_low_quality=True
        )
        args["normalizer"] = build_dense_normalizer(cfg, kind="ema", sync=False, initial=100)
        args["sampling_free"] = SamplingFreeOptions.from_cfg(cfg, "dense")
        return args

    def losses(
        self,
        anchors: List[Boxes],
        pred_logits: List[torch.Tensor],
        gt_labels: torch.Tensor,
        pred_anchor_deltas: List[torch.Tensor],
        gt_boxes: torch.Tensor,
    ) -> Dict[str, torch.Tensor]:
        """
        Args:
            anchors: boxes of each level, R in all.
            pred_logits, pred_anchor_deltas: predictions of each level, (N, R_l, C) and (N, R_l, 4).
            gt_labels, gt_boxes: (N, R) and (N, R, 4).

        Returns:
            ``loss_cls`` and ``loss_box_reg``.
        """
        positives = self.gather_positives(anchors, gt_labels, gt_boxes, pred_anchor_deltas)
        divisor = self.normalizer(len(positives), positives.deltas)
        losses = self.criterion(
            torch.cat(pred_logits, dim=1).flatten(0, 1),
            self.sample_labels(gt_labels).flatten(),
            positives,
            cls_normalizer=divisor,
            box_normalizer=divisor * self.numbers_per_box(),
        )
        names = {"cls": "loss_cls", "box": "loss_box_reg"}
        return {names.get(k, f"loss_{k}"): v for k, v in losses.items()}
