"""ATSS (Zhang et al., CVPR 2020), also in the form that EFL's paper calls its improved baseline.

Shapes: N images, R anchors of all levels, M = N * R samples, K of them positive, C classes.
"""

from typing import Any, Dict, List, Optional

import torch
from detectron2.config import configurable
from detectron2.layers import batched_nms
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.modeling.box_regression import Box2BoxTransform, Box2BoxTransformLinear
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.structures import Boxes, Instances
from torch import nn
from torch.nn import functional as F

from d2ext.config import arguments, construct, names_keys, validate

from ..assigners import ATSSAssigner
from ..losses.criterion import Criterion
from ..losses.normalizers import divisor_and_mean
from ..losses.positives import Positives
from ..sampling_free import SamplingFreeOptions
from .atss_head import QualityHead
from .dense import ExtDenseMixin, build_dense_normalizer, dense_arguments
from .fcos import centerness_targets, select_features

__all__ = ["ATSS"]


@META_ARCH_REGISTRY.register()
class ATSS(ExtDenseMixin, DenseDetector):
    """A dense detector whose positives are found by the statistics of their overlaps.

    Boxes are predicted relative to anchors or as distances from points; the third branch predicts
    centerness or IoU, whose target also weighs the box loss.
    """

    @names_keys("MODEL.ATSS")
    @configurable
    def __init__(
        self,
        *,
        backbone: nn.Module,
        head: nn.Module,
        head_in_features: List[str],
        anchor_generator: nn.Module,
        box2box_transform: Any,
        point_generator: Optional[nn.Module] = None,
        criterion: Criterion,
        assigner: ATSSAssigner,
        normalizer: nn.Module,
        sampling_free: Optional[SamplingFreeOptions] = None,
        num_classes: int,
        quality: str = "centerness",
        box_loss_weight: float = 2.0,
        score: str = "sqrt",
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.6,
        max_detections_per_image: int = 100,
        pixel_mean: List[float],
        pixel_std: List[float],
        input_format: str = "BGR",
    ):
        """
        Args:
            anchor_generator: the anchors that are assigned to objects.
            box2box_transform: relates deltas, priors and boxes.
            point_generator: boxes of a stride's size, which the deltas are relative to; None: the
                anchors themselves.
            criterion: class and box loss of all anchors.
            assigner: who is responsible for which object.
            normalizer: called with the number of positives, gives the divisor of the class and
                the quality loss.
            sampling_free: how to train without sampling; None: not at all.
            quality: what the third branch predicts, "centerness" or "iou".
            box_loss_weight: constant weight of the box loss.
            score: "sqrt" (geometric mean of class score and quality) or "product".
            Other arguments mean the same as in Detectron2's ``RetinaNet``.
        """
        super().__init__(
            backbone, head, head_in_features, pixel_mean=pixel_mean, pixel_std=pixel_std
        )
        for key, value, allowed in (
            ("quality", quality, ("centerness", "iou")),
            ("score", score, ("sqrt", "product")),
        ):
            if value not in allowed:
                raise ValueError(f"{key} must be {' or '.join(allowed)}, not '{value}'.")
        self.num_classes = num_classes
        self.anchor_generator = anchor_generator
        self.point_generator = point_generator
        self.box2box_transform = box2box_transform
        self.criterion = criterion
        self.assigner = assigner
        self.normalizer = normalizer
        self.quality = quality
        self.box_loss_weight = box_loss_weight
        self.score = score
        self.score_power = 0.5 if score == "sqrt" else 1.0
        self.test_score_thresh = test_score_thresh
        self.test_topk_candidates = test_topk_candidates
        self.test_nms_thresh = test_nms_thresh
        self.max_detections_per_image = max_detections_per_image
        self.input_format = input_format
        self.enable_optimal_bias(sampling_free, num_classes)

    @classmethod
    def from_config(cls, cfg):
        validate(cfg, "MODEL.ATSS")
        node = cfg.MODEL.ATSS
        backbone = build_backbone(cfg)
        shapes = select_features(backbone, node.IN_FEATURES, "MODEL.ATSS.IN_FEATURES")
        strides = [shape.stride for shape in shapes]
        return {
            **dense_arguments(cfg, "MODEL.ATSS", guides=("box", "quality")),
            "backbone": backbone,
            "head": construct(
                QualityHead,
                cfg,
                "MODEL.ATSS",
                part="head",
                input_shape=shapes,
                num_classes=node.NUM_CLASSES,
                num_anchors=len(node.ANCHOR_SCALES),
                conv_dims=[shapes[0].channels] * node.NUM_CONVS,
            ),
            **cls._geometry(node, strides),
            "assigner": ATSSAssigner(
                topk=node.TOPK * len(node.ANCHOR_SCALES),
                **arguments(cfg, "MODEL.ATSS", "assigner"),
            ),
            "normalizer": build_dense_normalizer(cfg, kind="positives", sync=True, initial=100),
            "input_format": cfg.INPUT.FORMAT,
        }

    @staticmethod
    def _geometry(node: Any, strides: List[int]) -> Dict[str, Any]:
        """Anchors, and what the box branch is relative to."""
        generate = {"aspect_ratios": [1.0], "strides": strides, "offset": node.ANCHOR_OFFSET}
        anchors = DefaultAnchorGenerator(
            sizes=[[scale * s for scale in node.ANCHOR_SCALES] for s in strides], **generate
        )
        if node.REGRESSION == "anchor":
            transform = Box2BoxTransform(weights=tuple(node.BBOX_REG_WEIGHTS))
            return {"anchor_generator": anchors, "box2box_transform": transform}
        points = DefaultAnchorGenerator(
            sizes=[[s] * len(node.ANCHOR_SCALES) for s in strides], **generate
        )
        return {
            "anchor_generator": anchors,
            "point_generator": points,
            "box2box_transform": Box2BoxTransformLinear(normalize_by_size=True),
        }

    def forward_training(self, images, features, predictions, gt_instances):
        pred_logits, pred_deltas, pred_quality = self._transpose_dense_predictions(
            predictions, [self.num_classes, 4, 1]
        )
        anchors = self.anchor_generator(features)
        gt_labels, gt_boxes = self.label_anchors(anchors, gt_instances)
        priors = self.point_generator(features) if self.point_generator else anchors
        return self.losses(priors, pred_logits, gt_labels, pred_deltas, gt_boxes, pred_quality)

    def losses(
        self,
        priors: List[Boxes],
        pred_logits: List[torch.Tensor],
        gt_labels: torch.Tensor,
        pred_deltas: List[torch.Tensor],
        gt_boxes: torch.Tensor,
        pred_quality: List[torch.Tensor],
    ) -> Dict[str, torch.Tensor]:
        """
        Args:
            priors: what the deltas are relative to, for each level, R in all.
            pred_logits, pred_deltas, pred_quality: predictions of each level, (N, R_l, C),
                (N, R_l, 4) and (N, R_l, 1).
            gt_labels, gt_boxes: (N, R) and (N, R, 4).

        Returns:
            ``loss_cls``, ``loss_box_reg`` and ``loss_quality``.
        """
        positives = self.gather_positives(priors, gt_labels, gt_boxes, pred_deltas)
        target = self.quality_targets(positives)
        divisor, target_sum = divisor_and_mean(
            self.normalizer, len(positives), positives.deltas, target.sum()
        )
        quality = torch.cat(pred_quality, dim=1).flatten()[positives.index].float()
        quality_loss = F.binary_cross_entropy_with_logits(quality, target, reduction="sum")
        losses = self.criterion(
            torch.cat(pred_logits, dim=1).flatten(0, 1),
            self.sample_labels(gt_labels).flatten(),
            positives,
            cls_normalizer=divisor,
            # The weights' own sum, so that the box loss is their weighted mean.
            box_normalizer=target_sum.clamp(min=1),
            box_weights=target,
            box_scale=self.box_loss_weight,
            others={"quality": quality_loss / divisor},
        )
        names = {"cls": "loss_cls", "box": "loss_box_reg"}
        return {names.get(k, f"loss_{k}"): v for k, v in losses.items()}

    @torch.no_grad()
    def quality_targets(self, positives: Positives) -> torch.Tensor:
        """What the third branch should say for each positive: (K,), without graph."""
        if self.quality == "iou":
            return positives.iou.detach().float()
        priors, boxes = positives.priors, positives.boxes
        center = (priors[:, :2] + priors[:, 2:]) / 2
        ltrb = torch.cat([center - boxes[:, :2], boxes[:, 2:] - center], dim=1)
        return centerness_targets(ltrb)

    def forward_inference(self, images, features, predictions) -> List[Instances]:
        pred_logits, pred_deltas, pred_quality = self._transpose_dense_predictions(
            predictions, [self.num_classes, 4, 1]
        )
        priors = (self.point_generator or self.anchor_generator)(features)
        scores = [x.sigmoid() * q.sigmoid() for x, q in zip(pred_logits, pred_quality)]
        if self.score == "sqrt":
            scores = [s.sqrt() for s in scores]
        return [
            self.inference_single_image(
                priors, [s[i] for s in scores], [d[i] for d in pred_deltas], image_size
            )
            for i, image_size in enumerate(images.image_sizes)
        ]

    def inference_single_image(self, priors, scores, deltas, image_size) -> Instances:
        """Boxes of one image: threshold, best of each level, one class-wise NMS over all levels."""
        pred = self._decode_multi_level_predictions(
            priors, scores, deltas, self.test_score_thresh, self.test_topk_candidates, image_size
        )
        keep = batched_nms(
            pred.pred_boxes.tensor, pred.scores, pred.pred_classes, self.test_nms_thresh
        )
        return pred[keep[: self.max_detections_per_image]]
