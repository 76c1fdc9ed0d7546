"""Detectors without anything but inference, in operations that every exporter knows.

Shapes: N images, R anchors or points of all levels, C classes, D detections of an image,
P proposals of an image at most.
"""

from typing import Any, Dict, List, Tuple

import torch
from detectron2.modeling.meta_arch import GeneralizedRCNN
from detectron2.modeling.roi_heads import CascadeROIHeads, StandardROIHeads
from torch import nn

from d2ext.modeling.meta_arch import ATSS, YOLOX, DualWeightingFCOS, ExtFCOS, ExtRetinaNet

from .images import Prepared, PrepareImages
from .selection import NOTHING, Detections, best_of, clip_boxes, finish, round_down, select, take

__all__ = ["EXPORTABLE", "DenseGraph", "InferenceGraph", "TwoStageGraph", "graph_of"]

DENSE = (ExtRetinaNet, ExtFCOS, ATSS, YOLOX, DualWeightingFCOS)
EXPORTABLE = (*DENSE, GeneralizedRCNN)

# (proposal, class) pairs of an image that may go into NMS: Detectron2 takes all above the
# threshold, ONNX needs a constant.
_PAIRS = 2000


def graph_of(model: nn.Module, **kwargs: Any) -> "InferenceGraph":
    """The graph of a detector; see :class:`InferenceGraph` for the arguments."""
    if isinstance(model, DENSE):
        return DenseGraph(model, **kwargs)
    if isinstance(model, GeneralizedRCNN):
        return TwoStageGraph(model, **kwargs)
    raise TypeError(
        f"{type(model).__name__} cannot be exported; "
        f"{', '.join(kind.__name__ for kind in EXPORTABLE)} can."
    )


class InferenceGraph(nn.Module):
    """Takes a batch of images of one size, gives tensors; holds the detector's weights, but no
    loss and no assigner.

    Args:
        model: a detector.
        with_nms: whether to select detections. Without, a dense detector gives all boxes (N, R, 4)
            and scores (N, R, C), as they go into the threshold and NMS.
        inputs, channel_order, sizes: see :class:`PrepareImages`.
    """

    outputs: Tuple[str, ...] = ("boxes", "scores", "classes", "count")

    def __init__(self, model: Any, *, with_nms: bool = True, **images: Any):
        super().__init__()
        self.prepare = PrepareImages(model, **images)
        self.backbone = model.backbone
        self.with_nms = with_nms
        if not with_nms:
            self.outputs = ("boxes", "scores")

    def forward(self, images: torch.Tensor) -> Tuple[torch.Tensor, ...]:
        """See :class:`PrepareImages` for the input; the outputs are those of :class:`Detections`,
        in pixels of the images as they came."""
        prepared = self.prepare(images)
        maps = self.backbone(prepared.tensor)
        boxes, *rest = self.detect(maps, prepared)
        return (boxes * prepared.scale, *rest)

    def detect(self, maps: Dict[str, torch.Tensor], prepared: Prepared) -> Tuple[Any, ...]:
        raise NotImplementedError(f"{type(self).__name__} must define detect.")


class DenseGraph(InferenceGraph):
    """An ExtRetinaNet, ExtFCOS, ATSS, YOLOX or DualWeightingFCOS."""

    threshold: torch.Tensor

    def __init__(self, model: Any, **kwargs: Any):
        super().__init__(model, **kwargs)
        self.head = model.head
        points = getattr(model, "point_generator", None)
        self.anchor_generator = model.anchor_generator if points is None else points
        self.box2box_transform = model.box2box_transform
        self.features = list(model.head_in_features)
        self.num_classes = model.num_classes
        self.has_quality = not isinstance(model, ExtRetinaNet)
        self.square_root = getattr(model, "score_power", 1.0) == 0.5
        # Dual weighting clips boxes before NMS, the others after it unless a key says otherwise.
        self.clip_first = getattr(model, "clip_before_nms", isinstance(model, DualWeightingFCOS))
        self.drop_empty = getattr(model, "drop_empty", False)
        self.cap_by_anchors = getattr(model, "cap_by_anchors", False)
        self.threshold_on_class = getattr(model, "threshold_on_class", False)
        threshold = model.test_score_thresh
        if hasattr(model, "score_thresholds"):
            threshold = model.score_thresholds(threshold)
        self.register_buffer("threshold", torch.as_tensor(threshold).float().reshape(-1))
        self.topk = model.test_topk_candidates
        self.nms_threshold = round_down(model.test_nms_thresh)
        self.limit = model.max_detections_per_image
        self.eval()

    def detect(self, maps: Dict[str, torch.Tensor], prepared: Prepared) -> Tuple[Any, ...]:
        boxes, scores = self.predict(maps)
        if self.clip_first:
            boxes = [clip_boxes(b, prepared.height, prepared.width) for b in boxes]
        if not self.with_nms:
            return torch.cat(boxes, dim=1), torch.cat(scores, dim=1)
        picked = [self._best(b, s) for b, s in zip(boxes, scores)]
        box, score, label = (torch.cat(parts, dim=1) for parts in zip(*picked))
        kept, place = select(
            box,
            score,
            label,
            num_classes=self.num_classes,
            iou=self.nms_threshold,
            limit=self.limit,
        )
        box = clip_boxes(take(box, place), prepared.height, prepared.width)
        return tuple(finish(box, kept, take(label, place))[0])

    def predict(
        self, maps: Dict[str, torch.Tensor]
    ) -> Tuple[List[torch.Tensor], List[torch.Tensor]]:
        """Boxes (N, R_l, 4) and scores (N, R_l, C) of each level."""
        features = [maps[name] for name in self.features]
        predictions = self.head(features)
        boxes, scores = [], []
        for level, prior in enumerate(self.anchor_generator(features)):
            of_class = score = _sigmoid(_rows(predictions[0][level], self.num_classes))
            if self.has_quality:
                score = score * _sigmoid(_rows(predictions[2][level], 1))
            score = score.sqrt() if self.square_root else score
            if self.threshold_on_class:
                score = score.masked_fill(of_class <= self.threshold, NOTHING)
            scores.append(score)
            deltas = _rows(predictions[1][level], 4).float()
            boxes.append(_decode(self.box2box_transform, deltas, prior.tensor))
        return boxes, scores

    def _best(
        self, boxes: torch.Tensor, scores: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """The best (prior, class) pairs of a level, as ``best_of_level`` takes them."""
        # One threshold a class has to come before the best are taken; one for all may.
        if not self.threshold_on_class:
            scores = scores.masked_fill(scores <= self.threshold, NOTHING)
        real = (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
        if self.drop_empty:
            scores = scores.masked_fill(~real[..., None], NOTHING)
        best, index = best_of(scores.flatten(1), self.topk)
        if self.cap_by_anchors:
            counted = real if self.drop_empty else torch.ones_like(real)
            rank = torch.arange(self.topk, device=best.device)
            best = best.masked_fill(rank >= counted.sum(dim=1, keepdim=True), NOTHING)
        prior, label = _divide(index, self.num_classes)
        return take(boxes, prior), best, label


class TwoStageGraph(InferenceGraph):
    """A Faster, Mask or Cascade R-CNN on a feature pyramid.

    With masks there is a fifth output, ``masks`` (N, D, s, s): probabilities inside each box.
    """

    def __init__(self, model: Any, **kwargs: Any):
        super().__init__(model, **kwargs)
        heads = model.roi_heads
        if not self.with_nms:
            raise ValueError("A two-stage detector cannot be exported without NMS.")
        if not isinstance(heads, StandardROIHeads) or getattr(heads, "keypoint_on", False):
            raise ValueError(
                f"{type(heads).__name__} cannot be exported; StandardROIHeads and CascadeROIHeads "
                "without key points can."
            )
        self.rpn, self.heads = model.proposal_generator, heads
        self.is_cascade = isinstance(heads, CascadeROIHeads)
        self.box_heads = list(heads.box_head) if self.is_cascade else [heads.box_head]
        predictors = list(heads.box_predictor) if self.is_cascade else [heads.box_predictor]
        self.predictors = predictors
        self.num_classes = heads.num_classes
        self.threshold = predictors[-1].test_score_thresh
        self.nms_threshold = round_down(predictors[-1].test_nms_thresh)
        self.limit = predictors[-1].test_topk_per_image
        if heads.mask_on:
            self.outputs = (*self.outputs, "masks")
        self.eval()

    def detect(self, maps: Dict[str, torch.Tensor], prepared: Prepared) -> Tuple[Any, ...]:
        proposals, valid = self.propose(maps, prepared)
        features = [maps[name] for name in self.heads.box_in_features]
        shape = proposals.shape[:2]
        boxes = proposals.flatten(0, 1)
        stages = []
        for k, (head, predictor) in enumerate(zip(self.box_heads, self.predictors)):
            if k > 0:
                boxes = clip_boxes(boxes, prepared.height, prepared.width)
            pooled = self.pool(self.heads.box_pooler, features, boxes.view(*shape, 4))
            logits, deltas = predictor(head(pooled))
            stages.append(_class_scores(predictor, logits))
            boxes = predictor.box2box_transform.apply_deltas(deltas, boxes)
        scores: Any = sum(stages) / len(stages)
        found, _ = self._select(boxes, scores, valid, prepared)
        if not self.heads.mask_on:
            return tuple(found)
        return (*found, self.masks(maps, found))

    def propose(
        self, maps: Dict[str, torch.Tensor], prepared: Prepared
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Proposals (N, P, 4), and which of them are only padding (N, P)."""
        rpn = self.rpn
        features = [maps[name] for name in rpn.in_features]
        logits, deltas = rpn.rpn_head(features)
        picked = []
        for level, prior in enumerate(rpn.anchor_generator(features)):
            best, index = best_of(_rows(logits[level], 1).flatten(1), rpn.pre_nms_topk[False])
            boxes = _decode(rpn.box2box_transform, _rows(deltas[level], 4).float(), prior.tensor)
            boxes = clip_boxes(take(boxes, index), prepared.height, prepared.width)
            sides = boxes[..., 2:] - boxes[..., :2]
            best = best.masked_fill((sides <= rpn.min_box_size).any(dim=-1), NOTHING)
            picked.append((boxes, best, torch.full_like(index, level)))
        box, score, label = (torch.cat(parts, dim=1) for parts in zip(*picked))
        kept, place = select(
            box,
            score,
            label,
            num_classes=len(picked),
            iou=round_down(rpn.nms_thresh),
            limit=rpn.post_nms_topk[False],
        )
        return take(box, place), kept > NOTHING / 2

    def pool(self, pooler: Any, features: List[torch.Tensor], boxes: torch.Tensor) -> torch.Tensor:
        """Features of boxes (N, P, 4), each from the level of its size: (N * P, C, s, s)."""
        images = torch.arange(boxes.shape[0], device=boxes.device, dtype=boxes.dtype)
        images = images[:, None, None].expand(-1, boxes.shape[1], 1)
        regions = torch.cat((images, boxes), dim=2).flatten(0, 1)
        area = (regions[:, 3] - regions[:, 1]) * (regions[:, 4] - regions[:, 2])
        level = torch.floor(
            pooler.canonical_level
            + torch.log2(area.clamp(min=0).sqrt() / pooler.canonical_box_size + 1e-8)
        )
        level = level.clamp(min=pooler.min_level, max=pooler.max_level) - pooler.min_level
        out: Any = None
        for k, (feature, single) in enumerate(zip(features, pooler.level_poolers)):
            rows = (level == k).nonzero()[:, 0]
            part = single(feature, regions[rows])
            if out is None:
                shape = (regions.shape[0], part.shape[1], part.shape[2], part.shape[3])
                out = part.new_zeros(shape)
            out = out.index_put((rows,), part)
        return out

    def _select(
        self, boxes: torch.Tensor, scores: torch.Tensor, valid: torch.Tensor, prepared: Prepared
    ) -> Tuple[Detections, torch.Tensor]:
        num_classes = self.num_classes
        of_class = boxes.shape[1] // 4  # boxes of each class, or one for all
        scores = scores.view(*valid.shape, num_classes)
        nothing = (scores <= self.threshold) | ~valid[..., None]
        best, index = best_of(scores.masked_fill(nothing, NOTHING).flatten(1), _PAIRS)
        proposal, label = _divide(index, num_classes)
        boxes = boxes.view(valid.shape[0], -1, 4)
        place = proposal * of_class + (label if of_class > 1 else 0)
        box = clip_boxes(take(boxes, place), prepared.height, prepared.width)
        kept, place = select(
            box,
            best,
            label,
            num_classes=num_classes,
            iou=self.nms_threshold,
            limit=self.limit,
        )
        return finish(take(box, place), kept, take(label, place))

    def masks(self, maps: Dict[str, torch.Tensor], found: Detections) -> torch.Tensor:
        """(N, D, s, s) probabilities of the detections' own classes."""
        heads = self.heads
        features = [maps[name] for name in heads.mask_in_features]
        logits = heads.mask_head.layers(self.pool(heads.mask_pooler, features, found.boxes))
        side = logits.shape[-1]
        if logits.shape[1] > 1:
            label = found.classes.clamp(min=0).view(-1, 1, 1, 1).expand(-1, 1, side, side)
            logits = logits.gather(1, label)
        shape = (found.boxes.shape[0], found.boxes.shape[1], side, side)
        return _sigmoid(logits).reshape(shape)


def _class_scores(predictor: Any, logits: torch.Tensor) -> torch.Tensor:
    """(N * P, C) without the background, as ``predict_probs`` gives them."""
    loss = getattr(getattr(predictor, "criterion", None), "cls_loss", None)
    if loss is not None and loss.objectness:
        return loss.scores(logits)
    if predictor.use_sigmoid_ce:
        return _sigmoid(logits)[:, :-1]
    return logits.softmax(dim=1)[:, :-1]


def _divide(index: torch.Tensor, number: int) -> Tuple[torch.Tensor, torch.Tensor]:
    """Quotient and remainder, the latter without an operator that not every runtime has."""
    quotient = torch.div(index, number, rounding_mode="trunc")
    return quotient, index - quotient * number


def _sigmoid(logits: torch.Tensor) -> torch.Tensor:
    """Not ``torch.sigmoid``: onnxruntime's gives 0 below -18, where FCOS' root is still 1e-4."""
    one = torch.ones((), device=logits.device)
    return one / (one + torch.exp(-logits.float()))


def _rows(maps: torch.Tensor, numbers: int) -> torch.Tensor:
    """(N, A * K, h, w) to (N, h * w * A, K)."""
    num_images, _, height, width = maps.shape
    maps = maps.reshape(num_images, -1, numbers, height, width).permute(0, 3, 4, 1, 2)
    return maps.reshape(num_images, -1, numbers)


def _decode(transform: Any, deltas: torch.Tensor, priors: torch.Tensor) -> torch.Tensor:
    """Boxes of deltas (N, R, 4) on the same priors (R, 4) in each image."""
    priors = priors[None].expand(deltas.shape[0], -1, -1).reshape(-1, 4)
    return transform.apply_deltas(deltas.reshape(-1, 4), priors).view_as(deltas)
