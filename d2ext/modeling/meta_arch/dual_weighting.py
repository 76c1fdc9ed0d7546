"""DualWeightingFCOS: a detector trained with positive and negative weights instead of labels.

Li, He, Li, Zhang: "A Dual Weighting Label Assignment Scheme for Object Detection", CVPR 2022.

Shapes: N images, P points of all levels, C classes.
"""

from typing import Any, Dict, List, Optional, Tuple

import torch
from detectron2.config import configurable
from detectron2.modeling import META_ARCH_REGISTRY, build_backbone
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.box_regression import Box2BoxTransformLinear
from detectron2.modeling.meta_arch.fcos import FCOS
from detectron2.structures import Boxes, ImageList, Instances
from torch import nn

from d2ext.combinations import changed, check
from d2ext.config import construct
from d2ext.ops.dual_weighting import DualWeightingConstants, dual_weighting_losses
from d2ext.ops.precision import full_precision
from d2ext.ops.reduce import reduce_mean

from ..losses.criterion import put_record, record_is_due
from .build import dense_arguments, select_features
from .decoding import best_of_level, clip_boxes
from .dual_weighting_head import DualWeightingHead

__all__ = ["DualWeightingFCOS"]


@META_ARCH_REGISTRY.register()
class DualWeightingFCOS(FCOS):
    """DW on FCOS: no point is labelled, each (point, object) pair gets two weights.

    See :mod:`d2ext.ops.dual_weighting` for the loss and
    :class:`~d2ext.modeling.meta_arch.dual_weighting_head.DualWeightingHead` for the predictions.
    """

    @configurable
    def __init__(
        self,
        *,
        backbone: Backbone,
        head: nn.Module,
        head_in_features: List[str],
        num_classes: int,
        constants: Optional[DualWeightingConstants] = None,
        test_score_thresh: float = 0.05,
        test_topk_candidates: int = 1000,
        test_nms_thresh: float = 0.6,
        max_detections_per_image: int = 100,
        pixel_mean: Tuple[float, ...],
        pixel_std: Tuple[float, ...],
        log_period: int = 20,
    ):
        """
        Args:
            head: gives class logits, distances in pixels and objectness logits of each level.
            constants: all constants of the weights and losses; the authors' by default.
            test_score_thresh: compared with class score times objectness.
            log_period: iterations between two records of the losses' divisors; 0: none.

            The other arguments are those of Detectron2's ``FCOS``.
        """
        super().__init__(
            backbone=backbone,
            head=head,
            head_in_features=head_in_features,
            box2box_transform=Box2BoxTransformLinear(normalize_by_size=False),
            num_classes=num_classes,
            test_score_thresh=test_score_thresh,
            test_topk_candidates=test_topk_candidates,
            test_nms_thresh=test_nms_thresh,
            max_detections_per_image=max_detections_per_image,
            pixel_mean=pixel_mean,
            pixel_std=pixel_std,
        )
        self.constants = constants or DualWeightingConstants()
        self.log_period = log_period

    @classmethod
    def from_config(cls, cfg) -> Dict[str, Any]:
        for key in changed(cfg, "dense"):
            check("own losses", key=key)
        node = cfg.MODEL.DW
        backbone = build_backbone(cfg)
        shapes = select_features(backbone, node.IN_FEATURES, "MODEL.DW.IN_FEATURES")
        head = construct(
            DualWeightingHead,
            cfg,
            "MODEL.DW",
            part="head",
            input_shape=shapes,
            num_classes=node.NUM_CLASSES,
            conv_dims=[shapes[0].channels] * node.NUM_CONVS,
        )
        return {
            **dense_arguments(cfg, "MODEL.DW"),
            "backbone": backbone,
            "head": head,
            "constants": construct(DualWeightingConstants, cfg, "MODEL.DW", part="constants"),
            "log_period": cfg.ENGINE.LOG_PERIOD,
        }

    def weighting_inputs(
        self,
        features: List[torch.Tensor],
        predictions: List[List[torch.Tensor]],
        gt_instances: List[Instances],
    ) -> Dict[str, Any]:
        """Arguments of :func:`dual_weighting_losses` and :func:`dual_weights` for a batch.

        Args:
            features: maps of the head's levels, of which only the sizes matter.
            predictions: what the head gives.
            gt_instances: the objects of each image.
        """
        logits, ltrb, objectness = (
            torch.cat(p, dim=1)
            for p in self._transpose_dense_predictions(predictions, [self.num_classes, 4, 1])
        )
        anchors = Boxes.cat(self.anchor_generator(features))
        points = anchors.get_centers()  # (P, 2)
        ltrb = full_precision(ltrb)
        return {
            "points": points,
            # FCOS' anchors are squares whose side is the level's stride.
            "strides": anchors.tensor[:, 2] - anchors.tensor[:, 0],
            "cls_logits": logits,
            "obj_logits": objectness.squeeze(dim=2),
            "pred_boxes": torch.cat((points - ltrb[..., :2], points + ltrb[..., 2:]), dim=-1),
            "gt_boxes": [x.gt_boxes.tensor for x in gt_instances],
            "gt_classes": [x.gt_classes for x in gt_instances],
        }

    def forward_training(
        self,
        images: ImageList,
        features: List[torch.Tensor],
        predictions: List[List[torch.Tensor]],
        gt_instances: List[Instances],
    ) -> Dict[str, torch.Tensor]:
        """``loss_cls_pos``, ``loss_cls_neg`` and ``loss_loc``, ready to be summed."""
        inputs = self.weighting_inputs(features, predictions, gt_instances)
        return self.losses(**inputs)

    def losses(self, **inputs: Any) -> Dict[str, torch.Tensor]:
        """The losses of what :meth:`weighting_inputs` returns, divided by their normalisers."""
        out = dual_weighting_losses(**inputs, **vars(self.constants))
        # The mean over ranks comes before the floor of 1, and in one message.
        sums = torch.stack((out["num_gt"], out["neg_norm"]))
        divisors = reduce_mean(sums).clamp(min=1)
        if record_is_due(self):
            # loss_cls_neg rises and falls with its divisor, so it says little without it.
            put_record({"dw/num_gt": divisors[0], "dw/neg_norm": divisors[1]})
        num_gt, neg_norm = divisors.unbind()
        return {
            "loss_cls_pos": out["loss_cls_pos"] / num_gt,
            "loss_cls_neg": out["loss_cls_neg"] / neg_norm,
            "loss_loc": out["loss_loc"] / num_gt,
        }

    def forward_inference(
        self,
        images: ImageList,
        features: List[torch.Tensor],
        predictions: List[List[torch.Tensor]],
    ) -> List[Instances]:
        """Detections of each image, in network-input pixels."""
        logits, ltrb, objectness = self._transpose_dense_predictions(
            predictions, [self.num_classes, 4, 1]
        )
        anchors = self.anchor_generator(features)
        # FCOS takes the square root of the product, and thresholds accordingly.
        scores = [x.float().sigmoid() * y.float().sigmoid() for x, y in zip(logits, objectness)]
        return [
            self.inference_single_image(
                anchors, [s[i] for s in scores], [d[i] for d in ltrb], image_size
            )
            for i, image_size in enumerate(images.image_sizes)
        ]

    def _decode_per_level_predictions(
        self, anchors, pred_scores, pred_deltas, score_thresh, topk_candidates, image_size
    ) -> Instances:
        """The best pairs of a level, clipped to the image.

        Detectron2 clips after NMS. Overlaps of boxes that reach beyond the image are others then,
        so NMS keeps others.
        """
        point, classes, scores = best_of_level(pred_scores, score_thresh, topk_candidates)
        boxes = self.box2box_transform.apply_deltas(pred_deltas[point], anchors.tensor[point])
        boxes = Boxes(clip_boxes(boxes, image_size))
        return Instances(image_size, pred_boxes=boxes, scores=scores, pred_classes=classes)
