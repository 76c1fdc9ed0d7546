"""Detectron2's RPN with the shared criterion.

Shapes: N images, R anchors of all levels, M = N * R samples, K of them positive.
"""

from typing import Dict, List, Optional

import torch
from detectron2.config import configurable
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import nn

from ..losses.build import build_criterion
from ..losses.criterion import Criterion
from ..losses.positives import Positives
from ..roi_heads.ohem import hardest_of_rows, loss_of_samples
from ..sampling_free import OptimalBias, SamplingFreeOptions

__all__ = ["ExtRPN"]


@PROPOSAL_GENERATOR_REGISTRY.register()
class ExtRPN(OptimalBias, RPN):
    """Region proposal network whose losses are slots.

    With the default config it computes what upstream computes, draws the same random samples and
    has the same state-dict keys.
    """

    @configurable
    def __init__(
        self,
        *,
        criterion: Criterion,
        sampling_free: Optional[SamplingFreeOptions] = None,
        ohem: bool = False,
        **kwargs,
    ):
        """
        Args:
            criterion: objectness (one class) and box loss of all anchors.
            sampling_free: how to learn from all anchors instead of a random sample; None: not.
            ohem: learn from the anchors of largest loss instead of a random sample.
            kwargs: arguments of Detectron2's ``RPN``. Its box loss type is not used: the
                criterion holds its own.
        """
        super().__init__(**kwargs)
        if ohem and sampling_free is not None:
            raise ValueError(
                "MODEL.OHEM.ON_RPN and MODEL.SAMPLING_FREE.ON_RPN exclude each other: one selects "
                "anchors, the other takes all; set one of them to False."
            )
        self.criterion = criterion
        self.ohem = ohem
        self.enable_optimal_bias(sampling_free, 1)

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
        args["sampling_free"] = SamplingFreeOptions.from_cfg(cfg, "rpn")
        args["ohem"] = cfg.MODEL.OHEM.ON_RPN
        return args

    @property
    def classifier(self) -> nn.Module:
        return self.rpn_head.objectness_logits

    @property
    def sample_features(self) -> List[str]:
        return list(self.in_features)

    def label_samples(
        self, features: List[torch.Tensor], gt_instances: List[Instances]
    ) -> torch.Tensor:
        labels, _ = self.label_and_sample_anchors(self.anchor_generator(features), gt_instances)
        return _common_labels(torch.stack(labels))

    def _subsample_labels(self, label: torch.Tensor) -> torch.Tensor:
        if self.sampling_free is not None or self.ohem:
            return label
        return super()._subsample_labels(label)

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
        if self.ohem:
            rpn_labels = self._hard_labels(
                anchors, pred_objectness_logits, rpn_labels, pred_anchor_deltas, gt_boxes
            )
        positives = self._gather_positives(anchors, rpn_labels, gt_boxes, pred_anchor_deltas)
        storage = get_event_storage()
        num_valid = (rpn_labels >= 0).sum()
        storage.put_scalar("rpn/num_pos_anchors", len(positives) / num_images)
        storage.put_scalar("rpn/num_neg_anchors", (num_valid - len(positives)) / num_images)

        cls_normalizer = box_normalizer = self.batch_size_per_image * num_images
        if self.sampling_free is not None and self.sampling_free.reg_norm == "fg":
            cls_normalizer = max(len(positives), 1)
            box_normalizer = 8 * cls_normalizer
        losses = self.criterion(
            torch.cat(pred_objectness_logits, dim=1).flatten()[:, None],
            _common_labels(rpn_labels),
            positives,
            cls_normalizer=cls_normalizer,
            box_normalizer=box_normalizer,
        )
        names = {"cls": "loss_rpn_cls", "box": "loss_rpn_loc"}
        losses = {names.get(k, f"loss_rpn_{k}"): v for k, v in losses.items()}
        return {k: v * self.loss_weight.get(k, 1.0) for k, v in losses.items()}

    @torch.no_grad()
    def _hard_labels(self, anchors, logits, rpn_labels, deltas, gt_boxes) -> torch.Tensor:
        """The labels with all but the anchors of largest loss of each image ignored: (M,)."""
        positives = self._gather_positives(anchors, rpn_labels, gt_boxes, deltas)
        logits = torch.cat(logits, dim=1)
        loss = loss_of_samples(
            self.criterion, logits.flatten()[:, None], _common_labels(rpn_labels), positives
        )
        labels = rpn_labels.view(logits.shape)
        return hardest_of_rows(loss.view_as(labels), labels, self.batch_size_per_image).flatten()

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


def _common_labels(rpn_labels: torch.Tensor) -> torch.Tensor:
    """From the RPN's own labels to everybody's: object 1 -> 0, background 0 -> C = 1."""
    return torch.where(rpn_labels < 0, rpn_labels, 1 - rpn_labels).long()
