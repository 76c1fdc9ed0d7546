"""What the dense detectors share: training, from labels to losses.

Shapes: N images, R anchors or points of all levels, M = N * R samples, K of them positive,
C classes.
"""

from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from detectron2.config import configurable
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import get_event_storage
from torch import nn
from torch.nn import functional as F

from d2ext.ops.precision import full_precision

from ..assigners import Priors, needs_predictions
from ..losses import Levels
from ..losses.box_losses import SmoothL1Loss
from ..losses.criterion import Criterion
from ..losses.normalizers import divisor_and_mean
from ..losses.positives import Positives
from ..sampling_free import SamplingFreeOptions
from ..targets import Predictions, SoftTargets, pack_targets
from .decoding import DenseDecoding, best_of_level, clip_boxes

__all__ = ["ExtDenseMixin", "best_of_level", "clip_boxes"]


class ExtDenseMixin(DenseDecoding):
    """The training of a subclass of Detectron2's ``DenseDetector``, whose parts are slots.

    The detector has ``anchor_generator``, ``box2box_transform``, ``num_classes`` and, for
    inference, the ``test_*`` attributes of RetinaNet and FCOS. A head with a third branch gives
    logits (N, A, H, W) beside those of classes and boxes.

    Attributes:
        loss_prefix, loss_names: a loss that the criterion calls ``x`` is returned as the prefix
            and ``loss_names.get(x, x)``.
        quality_loss: what the criterion calls the loss of the third branch.
        quality_weighs_boxes: whether the third branch's targets weigh the box losses, which are
            then divided by the targets' sum.
        box_loss_weight: constant weight of the box loss.
        least_weight: floor of that sum.
        point_extent: for priors that are points, the sides in strides of the squares that stand
            for them where overlaps are compared; 0: they are anchors.
    """

    # Detectron2's, whose classes are not typed.
    anchor_generator: Any
    head: Any
    head_in_features: Sequence[str]
    num_classes: int
    _transpose_dense_predictions: Any

    loss_prefix = "loss_"
    loss_names: Mapping[str, str] = {"box": "box_reg"}
    quality_loss = "quality"
    quality_weighs_boxes = False
    least_weight = 1.0
    box_loss_weight = 1.0
    point_extent = 0.0

    @configurable
    def __init__(
        self,
        *,
        criterion: Criterion,
        assigner: Any,
        normalizer: nn.Module,
        sampling_free: Optional[SamplingFreeOptions] = None,
        clip_before_nms: bool = False,
        topk_per_level_cap: str = "none",
        score_thresh_on: str = "score",
        **kwargs,
    ):
        """
        Args:
            criterion: class and box loss of all priors.
            assigner: who is responsible for which object, see :mod:`d2ext.modeling.assigners`.
            normalizer: called with the number of positives, gives the divisor of the losses.
            sampling_free: how to train without sampling; None: not at all.
            clip_before_nms: clip boxes to the image before NMS, not after it.
            topk_per_level_cap: "anchors": take no more (anchor, class) pairs of a level than it
                has anchors, or boxes that are not left out.
            score_thresh_on: what the threshold is compared with, "score" or, where a third branch
                is part of the score, "class" alone.
            kwargs: arguments of the Detectron2 detector. Its own matcher and loss parameters are
                not used: assigner and criterion hold theirs.
        """
        for name, value, allowed in (
            ("topk_per_level_cap", topk_per_level_cap, ("none", "anchors")),
            ("score_thresh_on", score_thresh_on, ("score", "class")),
        ):
            if value not in allowed:
                raise ValueError(f"{name} must be {' or '.join(allowed)}, not '{value}'.")
        super().__init__(**kwargs)
        self.clip_before_nms = clip_before_nms
        self.cap_by_anchors = topk_per_level_cap == "anchors"
        self.threshold_on_class = score_thresh_on == "class"
        self.criterion = criterion
        self.assigner = assigner
        self.normalizer = normalizer
        self.enable_optimal_bias(sampling_free, self.num_classes)

    def forward_training(
        self,
        images: ImageList,
        features: List[torch.Tensor],
        predictions: List[List[torch.Tensor]],
        gt_instances: List[Instances],
    ) -> Dict[str, torch.Tensor]:
        """Label the anchors, looking at the predictions if the assigner needs it; losses."""
        # Any: the third branch's place in the call of losses depends on the detector.
        parts: List[Any] = self.transpose(predictions)
        logits, deltas, *quality = parts
        priors, (labels, boxes, *soft) = self._label(features, parts, gt_instances)
        extra: Dict[str, Any] = {"soft": soft[0]} if soft else {}
        if self.criterion.box_loss.needs_image_sizes:
            extra["image_sizes"] = images.image_sizes
        return self.losses(priors, logits, labels, deltas, boxes, *quality, **extra)

    def transpose(self, predictions: List[List[torch.Tensor]]) -> List[List[torch.Tensor]]:
        """What the head gives, by level (N, R_l, C), (N, R_l, 4) and, from a third branch, 1."""
        channels = [self.num_classes, 4, 1][: len(predictions)]
        return self._transpose_dense_predictions(predictions, channels)

    def label_features(
        self, features: List[torch.Tensor], gt_instances: List[Instances]
    ) -> Tuple[torch.Tensor, ...]:
        """What :meth:`label_anchors` returns, with all that the assigner needs from features."""
        return self._label(features, None, gt_instances)[1]

    def _label(
        self,
        features: List[torch.Tensor],
        predictions: Optional[List[List[torch.Tensor]]],
        gt_instances: List[Instances],
    ) -> Tuple[List[Boxes], Tuple[Any, ...]]:
        """What the predicted boxes are relative to, by level, and the labels."""
        anchors, priors = self.anchors_and_priors(features)
        seen: Tuple[Predictions, ...] = ()
        if needs_predictions(self.assigner):
            with torch.no_grad():
                predictions = predictions or self.transpose(self.head(features))
            seen = (self.seen_predictions(priors, *predictions),)
        return priors, self.label_anchors(anchors, gt_instances, *seen)

    def anchors_and_priors(self, features: List[torch.Tensor]) -> Tuple[List[Boxes], List[Boxes]]:
        """What is assigned to objects, and what the predicted boxes are relative to, by level."""
        anchors = self.anchor_generator(features)
        return anchors, anchors

    @torch.no_grad()
    def seen_predictions(
        self,
        priors: List[Boxes],
        pred_logits: List[torch.Tensor],
        pred_deltas: List[torch.Tensor],
        pred_quality: Optional[List[torch.Tensor]] = None,
    ) -> Predictions:
        """What an assigner sees of the predictions of each level."""
        deltas = full_precision(torch.cat([x.detach() for x in pred_deltas], dim=1))
        boxes = Boxes.cat(priors).tensor.repeat(len(deltas), 1)
        boxes = self.box2box_transform.apply_deltas(deltas.flatten(0, 1), boxes)
        logits = torch.cat([x.detach() for x in pred_logits], dim=1)
        return Predictions(logits, boxes.view_as(deltas))

    @torch.no_grad()
    def label_anchors(
        self,
        anchors: List[Boxes],
        gt_instances: List[Instances],
        predictions: Optional[Predictions] = None,
    ) -> Union[Tuple[torch.Tensor, torch.Tensor], Tuple[torch.Tensor, torch.Tensor, SoftTargets]]:
        """
        Args:
            anchors: boxes of each level, R in all.
            gt_instances: objects of each of N images.
            predictions: for an assigner that needs them.

        Returns:
            Labels (N, R) and matched boxes (N, R, 4) of the whole batch at once. Third, only if
            the assigner gives such, soft targets.
        """
        targets = pack_targets(gt_instances)
        priors = Priors.from_boxes(anchors, getattr(self.anchor_generator, "strides", None))
        seen: Tuple[Predictions, ...] = ()
        if needs_predictions(self.assigner):
            if predictions is None:
                raise ValueError(
                    f"{type(self.assigner).__name__} assigns by predictions, and label_anchors was "
                    "given none; pass what seen_predictions returns."
                )
            seen = (predictions,)
        assignment = self.assigner(self.assigned_priors(priors), targets, self.num_classes, *seen)
        labelled = assignment.labels, assignment.matched_boxes(targets)
        return labelled if assignment.soft is None else (*labelled, assignment.soft)

    def assigned_priors(self, priors: Priors) -> Priors:
        """The priors as the assigner is to see them: points have a size where overlaps count."""
        if self.point_extent and getattr(self.assigner, "needs_extent", False):
            return priors.widened(self.point_extent)
        return priors

    def losses(
        self,
        anchors: List[Boxes],
        pred_logits: List[torch.Tensor],
        gt_labels: torch.Tensor,
        pred_anchor_deltas: List[torch.Tensor],
        gt_boxes: torch.Tensor,
        pred_quality: Optional[List[torch.Tensor]] = None,
        soft: Optional[SoftTargets] = None,
        image_sizes: Sequence[Tuple[int, int]] = (),
    ) -> Dict[str, torch.Tensor]:
        """
        Args:
            anchors: what the deltas are relative to, for each level, R in all.
            pred_logits, pred_anchor_deltas, pred_quality: predictions of each level,
                (N, R_l, C), (N, R_l, 4) and, if the head has a third branch, (N, R_l, 1).
            gt_labels, gt_boxes: (N, R) and (N, R, 4).
            soft: what the assigner adds to that.
            image_sizes: (height, width) of N images, if the box loss needs them.

        Returns:
            The criterion's losses under the detector's own names.
        """
        positives = self.gather_positives(anchors, gt_labels, gt_boxes, pred_anchor_deltas)
        if image_sizes:
            sizes = torch.tensor(image_sizes).to(positives.index.device, non_blocking=True)
            image = torch.div(positives.index, gt_labels.shape[1], rounding_mode="floor")
            positives.image_sizes = sizes[image]
        levels = self._levels([len(x) for x in anchors], positives, len(gt_labels))
        quality = None if pred_quality is None else self.quality_targets(positives)
        soft = soft or SoftTargets()
        weights, divisor, box_divisor = self._weigh(positives, quality, soft.weights)
        others = self.further_losses(positives, divisor)
        if pred_quality is not None and quality is not None:
            logits = full_precision(torch.cat(pred_quality, dim=1).flatten())
            others[self.quality_loss] = self.quality_loss_sum(logits, positives, quality) / divisor
        losses = self.criterion(
            torch.cat(pred_logits, dim=1).flatten(0, 1),
            self.sample_labels(gt_labels).flatten(),
            positives,
            cls_normalizer=divisor,
            box_normalizer=box_divisor,
            box_weights=weights,
            box_scale=self.box_loss_weight,
            others=others,
            target=None if soft.target is None else soft.target.flatten(),
            levels=levels,
        )
        return {self.loss_prefix + self.loss_names.get(k, k): v for k, v in losses.items()}

    def _levels(self, sizes: List[int], positives: Positives, num_images: int) -> Optional[Levels]:
        """The level of each of M samples, if a loss counts by level; positives are told theirs."""
        parts = self.criterion.cls_loss, self.criterion.box_loss
        if not any(part.needs_levels for part in parts):
            return None
        of_image = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        of = of_image.to(positives.index.device, non_blocking=True).repeat(num_images)
        positives.levels = Levels(of[positives.index], len(sizes))
        return Levels(of, len(sizes))

    def _weigh(
        self,
        positives: Positives,
        quality: Optional[torch.Tensor],
        soft_weights: Optional[torch.Tensor],
    ) -> Tuple[Optional[torch.Tensor], Any, Any]:
        """Weights of the box losses, (K,) or None for 1, and the divisors of class and box loss."""
        if soft_weights is not None:
            weights = soft_weights.flatten()[positives.index]
            divisor = self.normalizer(weights.sum(), positives.deltas)
        elif self.quality_weighs_boxes:
            assert quality is not None
            divisor, total = divisor_and_mean(
                self.normalizer, len(positives), positives.deltas, quality.sum()
            )
            # The weights' own sum, so that the box loss is their weighted mean.
            return quality, divisor, total.clamp(min=self.least_weight)
        else:
            weights, divisor = None, self.normalizer(len(positives), positives.deltas)
        return weights, divisor, divisor * self.numbers_per_box()

    def quality_targets(self, positives: Positives) -> torch.Tensor:
        """What the third branch should say of each positive: (K,), without graph."""
        raise NotImplementedError(f"{type(self).__name__} must define quality_targets.")

    def quality_loss_sum(
        self, logits: torch.Tensor, positives: Positives, quality: torch.Tensor
    ) -> torch.Tensor:
        """Sum of the third branch's losses.

        Args:
            logits: (M,), of all samples.
            positives: K of them.
            quality: (K,) targets.
        """
        logits = logits[positives.index]
        return F.binary_cross_entropy_with_logits(logits, quality.to(logits), reduction="sum")

    def further_losses(self, positives: Positives, divisor: Any) -> Dict[str, torch.Tensor]:
        """Losses beyond those of class, box and third branch, ready to be summed.

        Args:
            positives: K samples.
            divisor: the class loss's.
        """
        return {}

    @property
    def classifier(self) -> nn.Module:
        return self.head.cls_score

    @property
    def sample_features(self) -> List[str]:
        return list(self.head_in_features)

    def numbers_per_box(self) -> int:
        """4 where the box loss is to be the mean over the numbers of all positives, else 1."""
        options = self.sampling_free
        mean = options is not None and options.reg_norm == "fg"
        return 4 if mean and isinstance(self.criterion.box_loss, SmoothL1Loss) else 1

    def label_samples(
        self, features: List[torch.Tensor], gt_instances: List[Instances]
    ) -> torch.Tensor:
        anchors, _ = self.anchors_and_priors(features)
        return self.sample_labels(self.label_anchors(anchors, gt_instances)[0])

    def sample_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """The labels that the class loss sees, of any shape."""
        if self.sampling_free is None or not self.sampling_free.ignore_as_negative:
            return labels
        return labels.masked_fill(labels < 0, self.num_classes)

    def gather_positives(
        self,
        anchors: List[Boxes],
        labels: torch.Tensor,
        matched_boxes: torch.Tensor,
        pred_deltas: List[torch.Tensor],
        transform: Optional[Any] = None,
    ) -> Positives:
        """Pick the positive samples: the one host-device sync of a training step.

        Args:
            anchors: boxes of each level, R in all.
            labels: (N, R).
            matched_boxes: (N, R, 4).
            pred_deltas: predictions of each level, (N, R_l, 4).
        """
        labels = labels.flatten()
        index = ((labels >= 0) & (labels < self.num_classes)).nonzero().squeeze(1)
        priors = Boxes.cat(anchors).tensor
        positives = Positives(
            index=index,
            deltas=torch.cat(pred_deltas, dim=1).flatten(0, 1)[index],
            priors=priors[index % len(priors)],
            boxes=matched_boxes.flatten(0, 1)[index],
            transform=transform or self.box2box_transform,
        )
        storage = get_event_storage()
        storage.put_scalar("num_pos_anchors", len(positives) / matched_boxes.shape[0])
        return positives
