"""Detectron2's box predictor with the shared criterion.

Shapes: R proposals of all images, K of them positive, C classes; class logits are (R, C + 1) with
the background last.
"""

import math
from typing import Any, Dict, List, Optional, Tuple

import torch
from detectron2.config import configurable
from detectron2.layers import cat
from detectron2.modeling.roi_heads.fast_rcnn import (
    FastRCNNOutputLayers,
    _log_classification_stats,
)
from detectron2.structures import Instances
from torch import nn

from d2ext.combinations import check, present
from d2ext.losses import EffectiveClassMarginLoss, GradientBalancedLoss, SoftmaxLoss

from ..losses import Criterion, Positives, build_criterion
from ..sampling_free import SamplingFreeOptions, set_prior_bias, set_softmax_bias
from .logit_norm import LogitNorm
from .ohem import hard_proposals, loss_of_samples

__all__ = ["ExtFastRCNNOutputLayers"]


class ExtFastRCNNOutputLayers(FastRCNNOutputLayers):
    """Box predictor whose losses are slots.

    With the default config it computes what upstream computes and has its state-dict keys.
    """

    @configurable
    def __init__(
        self,
        input_shape: Any,
        *,
        criterion: Criterion,
        prior_prob: float = 0.0,
        background_prior: bool = False,
        sampling_free: Optional[SamplingFreeOptions] = None,
        bias_fg_ratio: float = 0.0,
        num_hard: int = 0,
        hard_nms_thresh: float = 0.7,
        logit_norm: Optional[LogitNorm] = None,
        **kwargs,
    ):
        """
        Args:
            input_shape: shape of the features of a region.
            criterion: class and box loss of all proposals.
            prior_prob: score of every class at the start, for losses with independent classes;
                0 leaves the bias at 0.
            background_prior: a column of objectness starts there too, not at a score of 0.5.
            sampling_free: how to learn from all proposals without sampling; None: not.
            bias_fg_ratio: share of foreground proposals for which to set the classifier's bias to
                its optimum; 0: leave it.
            num_hard: learn from that many proposals of each image, those of largest loss; 0: all.
            hard_nms_thresh: of those that overlap more, only the one of larger loss counts.
            logit_norm: standardises the logits of a softmax at inference; None: nothing does.
            kwargs: arguments of Detectron2's ``FastRCNNOutputLayers``. Its box loss type is not
                used: the criterion holds its own. ``use_sigmoid_ce`` follows the class loss.
        """
        sigmoid = criterion.cls_loss.sigmoid
        check(
            "roi",
            *present(
                one_softmax=not sigmoid,
                class_statistics=isinstance(criterion.cls_loss, GradientBalancedLoss),
                class_weights=criterion.cls_loss.class_weights is not None,
                class_margins=isinstance(criterion.cls_loss, EffectiveClassMarginLoss),
                adaptive_threshold=sampling_free is not None
                and sampling_free.score_thresh == "class_adaptive",
                federated=kwargs.get("use_fed_loss"),
                ohem=num_hard,
                sampling_free=sampling_free is not None,
                logit_norm=logit_norm is not None,
                no_plain_softmax=type(criterion.cls_loss) is not SoftmaxLoss,
            ),
        )
        super().__init__(input_shape, **{**kwargs, "use_sigmoid_ce": sigmoid})
        self.criterion = criterion
        self.sampling_free = sampling_free
        self.num_hard = num_hard
        self.hard_nms_thresh = hard_nms_thresh
        self.logit_norm = logit_norm
        self._init_bias(prior_prob, bias_fg_ratio, background_prior)

    @classmethod
    def from_config(cls, cfg, input_shape):
        args = super().from_config(cfg, input_shape)
        node = cfg.MODEL.ROI_BOX_HEAD
        cls_loss = node.CLS_LOSS
        if node.USE_SIGMOID_CE and cls_loss == "softmax":
            cls_loss = "bce"  # a config written for Detectron2
        args["criterion"] = build_criterion(
            cfg,
            place="roi",
            cls_loss=cls_loss,
            box_loss=node.BBOX_REG_LOSS_TYPE,
            num_classes=cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            alpha=node.FOCAL_LOSS_ALPHA,
            gamma=node.FOCAL_LOSS_GAMMA,
            smooth_l1_beta=node.SMOOTH_L1_BETA,
        )
        args["prior_prob"] = node.PRIOR_PROB
        args["background_prior"] = cfg.MODEL.EQLV2.BACKGROUND_PRIOR
        if node.LOGIT_NORM.ENABLED:
            args["logit_norm"] = LogitNorm(cfg.MODEL.ROI_HEADS.NUM_CLASSES)
        if cfg.MODEL.OHEM.ON_ROI:
            args["num_hard"] = cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
            args["hard_nms_thresh"] = cfg.MODEL.OHEM.NMS_THRESH
        args["sampling_free"] = SamplingFreeOptions.from_cfg(cfg, "roi")
        if args["sampling_free"] is not None:
            node = cfg.MODEL.SAMPLING_FREE
            args["bias_fg_ratio"] = node.ROI_FOREGROUND_RATIO if node.ROI_BIAS_INIT else 0.0
            if node.SCORE_THRESH != "fixed" and node.ROI_SCORE_THRESH > 0:
                args["test_score_thresh"] = node.ROI_SCORE_THRESH
        return args

    def _init_bias(self, prior_prob: float, bias_fg_ratio: float, background: bool) -> None:
        sigmoid = self.criterion.cls_loss.sigmoid
        if prior_prob:
            if not 0 < prior_prob < 1 or not sigmoid:
                raise ValueError(
                    "MODEL.ROI_BOX_HEAD.PRIOR_PROB must lie between 0 and 1 and needs a CLS_LOSS "
                    "with independent classes (bce, focal, efl, eqlv2)."
                )
            nn.init.constant_(self.cls_score.bias, -math.log((1 - prior_prob) / prior_prob))
            if self.criterion.cls_loss.objectness and not background:
                # Most proposals are background: no reason to begin with the opposite.
                with torch.no_grad():
                    self.cls_score.bias[-1] = 0.0
        if bias_fg_ratio and sigmoid:
            set_prior_bias(self.cls_score, bias_fg_ratio / self.num_classes)
            if self.criterion.cls_loss.objectness:
                with torch.no_grad():
                    self.cls_score.bias[-1] = math.log((1 - bias_fg_ratio) / bias_fg_ratio)
        elif bias_fg_ratio:
            set_softmax_bias(self.cls_score, bias_fg_ratio)

    def losses(
        self, predictions: Tuple[torch.Tensor, torch.Tensor], proposals: List[Instances]
    ) -> Dict[str, torch.Tensor]:
        """
        Args:
            predictions: class logits (R, C + 1) and deltas (R, 4 C) or (R, 4).
            proposals: of each image, with ``proposal_boxes``, ``gt_classes`` and, unless the
                image has no object, ``gt_boxes``.

        Returns:
            ``loss_cls`` and ``loss_box_reg``.
        """
        logits, deltas = predictions
        if self.logit_norm is not None:
            self.logit_norm.collect(logits)
        labels = (
            cat([p.gt_classes for p in proposals], dim=0)
            if len(proposals)
            else torch.empty(0, dtype=torch.long, device=logits.device)
        )
        _log_classification_stats(logits, labels)
        positives = self._gather_positives(deltas, labels, proposals)
        count = labels.numel()
        if self.num_hard and count:
            hard = self._hard_rows(logits, labels, positives, proposals)
            labels = torch.full_like(labels, -1).scatter(0, hard, labels[hard])
            positives = self._gather_positives(deltas, labels, proposals)
            count = len(hard)
        # All proposals, not the positive ones, so that each positive counts the same whether it
        # is alone in its batch or one of a hundred.
        cls_normalizer = box_normalizer = max(count, 1.0)
        if self.sampling_free is not None and self.sampling_free.reg_norm == "fg":
            # Of all proposals a tenth is foreground, of a random sample a quarter.
            box_normalizer = 4 * max(len(positives), 1)
        losses = self.criterion(
            *self._columns(logits, labels),
            positives,
            cls_normalizer=cls_normalizer,
            box_normalizer=box_normalizer,
        )
        names = {"cls": "loss_cls", "box": "loss_box_reg"}
        losses = {names.get(k, f"loss_{k}"): v for k, v in losses.items()}
        return {k: v * self.loss_weight.get(k, 1.0) for k, v in losses.items()}

    def _hard_rows(self, logits, labels, positives, proposals) -> torch.Tensor:
        """The proposals of largest loss in each image, as rows of the logits."""
        logits, labels = self._columns(logits, labels)
        return hard_proposals(
            loss_of_samples(self.criterion, logits, labels, positives),
            cat([p.proposal_boxes.tensor for p in proposals]),
            [len(p) for p in proposals],
            self.num_hard,
            self.hard_nms_thresh,
        )

    def predict_probs(
        self, predictions: Tuple[torch.Tensor, torch.Tensor], proposals: List[Instances]
    ) -> Tuple[torch.Tensor, ...]:
        """Scores of the classes, and of the background as the last, for each image."""
        cls_loss: Any = self.criterion.cls_loss
        if self.logit_norm is not None:
            predictions = self.logit_norm(predictions[0]), predictions[1]
        if not cls_loss.objectness:
            return super().predict_probs(predictions, proposals)
        logits, _ = predictions
        scores = torch.cat([cls_loss.scores(logits), logits[:, -1:].sigmoid()], dim=1)
        return scores.split([len(p) for p in proposals])

    def _gather_positives(self, deltas, labels, proposals: List[Instances]) -> Positives:
        index = ((labels >= 0) & (labels < self.num_classes)).nonzero().squeeze(1)
        if len(proposals):
            priors = cat([p.proposal_boxes.tensor for p in proposals], dim=0)
            # An image without objects has no gt_boxes; its proposals are all negative, and their
            # own boxes fill the place, which is not read.
            boxes = cat(
                [(p.gt_boxes if p.has("gt_boxes") else p.proposal_boxes).tensor for p in proposals]
            )
        else:
            priors = boxes = deltas.new_empty((0, 4))
        if deltas.shape[1] == 4:
            fg_deltas = deltas[index]
        else:
            fg_deltas = deltas.view(-1, self.num_classes, 4)[index, labels[index]]
        wants_sizes = self.criterion.box_loss.needs_image_sizes
        return Positives(
            index=index,
            deltas=fg_deltas,
            priors=priors[index],
            boxes=boxes[index],
            transform=self.box2box_transform,
            image_sizes=self._image_sizes(proposals)[index] if wants_sizes else None,
        )

    @staticmethod
    def _image_sizes(proposals: List[Instances]) -> torch.Tensor:
        """(R, 2), height and width of each proposal's image."""
        rows = [size for p in proposals for size in [p.image_size] * len(p)]
        sizes = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)
        device = proposals[0].proposal_boxes.device if proposals else sizes.device
        return sizes.to(device, non_blocking=True)

    def _columns(self, logits, labels) -> Tuple[torch.Tensor, torch.Tensor]:
        """Logits and labels for the class loss: all classes, or those of a federated loss."""
        cls_loss = self.criterion.cls_loss
        if cls_loss.objectness or not cls_loss.sigmoid:
            return logits, labels
        logits = logits[:, :-1]
        if not self.use_fed_loss or logits.numel() == 0:
            return logits, labels
        chosen = self.get_fed_loss_classes(
            labels,
            num_fed_loss_classes=self.fed_loss_num_classes,
            num_classes=self.num_classes,
            weight=self.fed_loss_cls_weights,
        )
        # The background may be among them; it has no column and stays the last label.
        chosen = chosen[chosen < self.num_classes]
        new_label = labels.new_full((self.num_classes + 1,), len(chosen))
        new_label[chosen] = torch.arange(len(chosen), device=labels.device)
        return logits[:, chosen], torch.where(labels < 0, labels, new_label[labels.clamp(min=0)])
