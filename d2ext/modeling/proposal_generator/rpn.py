"""Detectron2's RPN with the shared criterion.

Shapes: N images, R anchors of all levels, M = N * R samples, K of them positive.
"""

from typing import Any, Dict, List, Optional, Tuple

import torch
from detectron2.config import configurable
from detectron2.modeling import PROPOSAL_GENERATOR_REGISTRY
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator.proposal_utils import find_top_rpn_proposals
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import nn

from d2ext.combinations import check, present
from d2ext.config import arguments

from ..assigners import IoUAssigner
from ..losses import Criterion, Positives, build_criterion
from ..roi_heads.ohem import hardest_of_rows, loss_of_samples
from ..sampling_free import OptimalBias, SamplingFreeOptions
from ..targets import PackedTargets, Priors, pack_targets
from .sampling import SampledLabels, index_of_true, subsample_rows

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
        post_nms_per_batch: bool = False,
        **kwargs,
    ):
        """
        Args:
            criterion: objectness (one class) and box loss of all anchors.
            sampling_free: how to learn from all anchors instead of a random sample; None: not.
            ohem: learn from the anchors of largest loss instead of a random sample.
            post_nms_per_batch: in training keep the best proposals of all images of the rank, as
                many on average as otherwise of each.
            kwargs: arguments of Detectron2's ``RPN``. Its box loss type is not used: the
                criterion holds its own. Of its ``anchor_matcher`` the thresholds are used; a
                subclass of ``Matcher`` is called itself, image by image.
        """
        super().__init__(**kwargs)
        check("rpn", *present(ohem=ohem, sampling_free=sampling_free is not None))
        self.criterion = criterion
        self.ohem = ohem
        self.post_nms_per_batch = post_nms_per_batch
        self.assigner: Any = _assigner_like(self.anchor_matcher)
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
        args.update(arguments(cfg, "MODEL.RPN"))
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

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: List[Boxes], gt_instances: List[Instances]
    ) -> Tuple[List[torch.Tensor], List[torch.Tensor]]:
        """What upstream returns, for the whole batch at once.

        Returns:
            For each image (R,) labels, 1 object, 0 background, -1 not sampled; and (R, 4), the
            matched box of each anchor, which means nothing where the label is not 1.
        """
        samples = self.sampling_free is None and not self.ohem
        own_sampling = type(self)._subsample_labels is not ExtRPN._subsample_labels
        if self.assigner is None or (samples and own_sampling):
            return super().label_and_sample_anchors(anchors, gt_instances)
        labels, boxes = self._label_anchors(Priors.from_boxes(anchors), pack_targets(gt_instances))
        if not samples:
            return list(labels.unbind()), list(boxes.unbind())
        sampled = subsample_rows(labels, self.batch_size_per_image, self.positive_fraction)
        return sampled, list(boxes.unbind())

    def _label_anchors(
        self, priors: Priors, targets: PackedTargets
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Labels before sampling (N, R), int8, and matched boxes (N, R, 4)."""
        assignment = self.assigner(priors, targets.class_agnostic(), 1)
        labels = torch.where(assignment.labels < 0, -1, 1 - assignment.labels).to(torch.int8)
        boxes = assignment.matched_boxes(targets)
        if 0 in targets.counts:
            empty = torch.tensor(targets.counts) == 0
            empty = empty.to(labels.device, non_blocking=True)[:, None]
            boxes.masked_fill_(empty[..., None], 0.0)
            # To upstream's RPN, unlike its RetinaNet, no object is an IoU of 0 with everything.
            labels.masked_fill_(empty, self.assigner.labels[0])
        if self.anchor_boundary_thresh >= 0:
            labels.masked_fill_(~self._inside(priors.boxes, targets.image_sizes), -1)
        return labels, boxes

    def _inside(self, anchors: torch.Tensor, image_sizes) -> torch.Tensor:
        """(N, R), whether an anchor leaves an image by no more than the threshold."""
        limit = self.anchor_boundary_thresh
        sizes = torch.tensor(image_sizes, dtype=anchors.dtype) + limit
        height, width = sizes.to(anchors.device, non_blocking=True).t()[..., None]
        x0, y0, x1, y1 = anchors.unbind(dim=1)
        return ((x0 >= -limit) & (y0 >= -limit)) & ((x1 < width) & (y1 < height))

    def _subsample_labels(self, label: torch.Tensor) -> torch.Tensor:
        # Only called by upstream's loop over images.
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
        rpn_labels = torch.stack(list(gt_labels)).flatten()
        if self.ohem:
            rpn_labels = self._hard_labels(
                anchors, pred_objectness_logits, rpn_labels, pred_anchor_deltas, gt_boxes
            )
        if isinstance(gt_labels, SampledLabels) and not self.ohem:
            index, num_negatives = gt_labels.positives, gt_labels.num_negatives
        else:
            index, num_negatives = _find_samples(rpn_labels)
        positives = self._gather_positives(anchors, index, gt_boxes, pred_anchor_deltas)
        storage = get_event_storage()
        storage.put_scalar("rpn/num_pos_anchors", len(positives) / num_images)
        storage.put_scalar("rpn/num_neg_anchors", num_negatives / num_images)

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
        # What a coupling adds is about scores, and weighs as the class loss does.
        other = self.loss_weight.get("loss_rpn_cls", 1.0)
        return {k: v * self.loss_weight.get(k, other) for k, v in losses.items()}

    @torch.no_grad()
    def _hard_labels(self, anchors, logits, rpn_labels, deltas, gt_boxes) -> torch.Tensor:
        """The labels with all but the anchors of largest loss of each image ignored: (M,)."""
        index, _ = _find_samples(rpn_labels)
        positives = self._gather_positives(anchors, index, gt_boxes, deltas)
        logits = torch.cat(logits, dim=1)
        loss = loss_of_samples(
            self.criterion, logits.flatten()[:, None], _common_labels(rpn_labels), positives
        )
        labels = rpn_labels.view(logits.shape)
        return hardest_of_rows(loss.view_as(labels), labels, self.batch_size_per_image).flatten()

    @torch.no_grad()
    def predict_proposals(
        self,
        anchors: List[Boxes],
        pred_objectness_logits: List[torch.Tensor],
        pred_anchor_deltas: List[torch.Tensor],
        image_sizes: List[Tuple[int, int]],
    ) -> List[Instances]:
        """As upstream's, or with the best of the batch instead of each image."""
        if not (self.post_nms_per_batch and self.training):
            return super().predict_proposals(
                anchors, pred_objectness_logits, pred_anchor_deltas, image_sizes
            )
        found = find_top_rpn_proposals(
            self._decode_proposals(anchors, pred_anchor_deltas),
            pred_objectness_logits,
            image_sizes,
            self.nms_thresh,
            self.pre_nms_topk[True],
            post_nms_topk=sum(len(x) for x in anchors),
            min_box_size=self.min_box_size,
            training=True,
        )
        return _best_of_batch(found, self.post_nms_topk[True] * len(found))

    def _gather_positives(self, anchors, index, gt_boxes, pred_deltas) -> Positives:
        priors = Boxes.cat(anchors).tensor
        return Positives(
            index=index,
            deltas=torch.cat(pred_deltas, dim=1).flatten(0, 1)[index],
            priors=priors[index % len(priors)],
            boxes=torch.cat(gt_boxes)[index],
            transform=self.box2box_transform,
        )


def _best_of_batch(proposals: List[Instances], limit: int) -> List[Instances]:
    """Of all images' proposals together the ``limit`` of highest score, in the order they had."""
    scores = torch.cat([p.objectness_logits for p in proposals])
    chosen = scores.topk(min(limit, len(scores))).indices
    keep = torch.zeros_like(scores, dtype=torch.bool).index_fill_(0, chosen, True)
    return [p[k] for p, k in zip(proposals, keep.split([len(p) for p in proposals]))]


def _assigner_like(matcher: Matcher) -> Optional[IoUAssigner]:
    """What works as a matcher does, but on a batch; None for a matcher that may work otherwise."""
    if type(matcher) is not Matcher:
        return None
    # The first and the last threshold are infinite.
    return IoUAssigner(matcher.thresholds[1:-1], matcher.labels, matcher.allow_low_quality_matches)


def _find_samples(rpn_labels: torch.Tensor) -> Tuple[torch.Tensor, int]:
    """Where the positives are, (K,), and how many negatives, in one host-device sync."""
    is_pos = rpn_labels == 1
    num_pos, num_neg = torch.stack([is_pos, rpn_labels == 0]).sum(dim=1).tolist()
    return index_of_true(is_pos, num_pos), num_neg


def _common_labels(rpn_labels: torch.Tensor) -> torch.Tensor:
    """From the RPN's own labels to the common ones: object 1 -> 0, background 0 -> C = 1."""
    return torch.where(rpn_labels < 0, rpn_labels, 1 - rpn_labels).long()
