"""Detectron2's RPN with the shared criterion.

Shapes: N images, R anchors of all levels, M = N * R samples, K of them positive.
"""

from typing import Dict, List

import torch
from detectron2.config import configurable
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.structures import Boxes
from detectron2.utils.events import get_event_storage

from ..losses.build import build_criterion
from ..losses.criterion import Criterion
from ..losses.positives import Positives

__all__ = ["ExtRPN"]


@PROPOSAL_GENERATOR_REGISTRY.register()
class ExtRPN(RPN):
    """Region proposal network whose losses are slots.

    With the default config it computes what upstream computes, draws the same random samples and
    has the same state-dict keys.
    """

    @configurable
    def __init__(self, *, criterion: Criterion, **kwargs):
        """
        Args:
            criterion: objectness (one class) and box loss of all anchors.
            kwargs: arguments of Detectron2's ``RPN``. Its box loss type is not used: the
                criterion holds its own.
        """
        super().__init__(**kwargs)
        self.criterion = criterion

    @classmethod
    def from_config(cls, cfg, input_shape):
        args = super().from_config(cfg, input_shape)
        args["criterion"] = build_criterion(
            cfg,
            place="rpn",
            cls_loss="bce",
            box_loss=cfg.MODEL.RPN.BBOX_REG_LOSS_TYPE,
            num_classes=1,
            smooth_l1_beta=cfg.MODEL.RPN.SMOOTH_L1_BETA,
        )
        return args

    def losses(
        self,
        anchors: List[Boxes],
        pred_objectness_logits: List[torch.Tensor],
        gt_labels: List[torch.Tensor],
        pred_anchor_deltas: List[torch.Tensor],
        gt_boxes: List[torch.Tensor],
    ) -> Dict[str, torch.Tensor]:
        """
        Args:
            anchors: boxes of each level, R in all.
            pred_objectness_logits, pred_anchor_deltas: predictions of each level, (N, R_l) and
                (N, R_l, 4).
            gt_labels, gt_boxes: for each image (R,), 1 object, 0 background, -1 not sampled; and
                (R, 4).

        Returns:
            ``loss_rpn_cls`` and ``loss_rpn_loc``.
        """
        num_images = len(gt_labels)
        rpn_labels = torch.stack(gt_labels).flatten()
        positives = self._gather_positives(anchors, rpn_labels, gt_boxes, pred_anchor_deltas)
        storage = get_event_storage()
        num_valid = (rpn_labels >= 0).sum()
        storage.put_scalar("rpn/num_pos_anchors", len(positives) / num_images)
        storage.put_scalar("rpn/num_neg_anchors", (num_valid - len(positives)) / num_images)

        normalizer = self.batch_size_per_image * num_images
        losses = self.criterion(
            torch.cat(pred_objectness_logits, dim=1).flatten()[:, None],
            # Of the RPN's own labels to everybody's: object 1 -> 0, background 0 -> C = 1.
            torch.where(rpn_labels < 0, rpn_labels, 1 - rpn_labels).long(),
            positives,
            cls_normalizer=normalizer,
            box_normalizer=normalizer,
        )
        names = {"cls": "loss_rpn_cls", "box": "loss_rpn_loc"}
        losses = {names.get(k, f"loss_rpn_{k}"): v for k, v in losses.items()}
        return {k: v * self.loss_weight.get(k, 1.0) for k, v in losses.items()}

    def _gather_positives(self, anchors, rpn_labels, gt_boxes, pred_deltas) -> Positives:
        index = (rpn_labels == 1).nonzero().squeeze(1)
        priors = Boxes.cat(anchors).tensor
        return Positives(
            index=index,
            deltas=torch.cat(pred_deltas, dim=1).flatten(0, 1)[index],
            priors=priors[index % len(priors)],
            boxes=torch.cat(gt_boxes)[index],
            transform=self.box2box_transform,
        )
