"""From the predictions of a dense detector to its detections.

Shapes: N images, R anchors or points of all levels, R_l of a level, C classes.
"""

from typing import Any, List, Optional, Tuple, Union

import torch
from detectron2.structures import Boxes, Instances

from ..sampling_free import OptimalBias

__all__ = ["DenseDecoding", "best_of_level", "clip_boxes"]


def best_of_level(
    scores: torch.Tensor, threshold: Union[float, torch.Tensor], limit: int
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The best (prior, class) pairs of a level whose score is above a threshold.

    Upstream lists the indices of all scores above the threshold before it takes the best: at
    threshold 0 with 1203 classes that list alone needs 670 MB on the largest level. Taking the
    best first gives the same pairs and needs memory for them only. On a CPU ``topk`` too lists
    every score it is given with its index, so it is given few: a row that is not among the
    ``limit`` rows of highest maxima has none of the ``limit`` best pairs.

    Args:
        scores: (R, C).
        threshold: one number, or (C,).
        limit: how many pairs at most.

    Returns:
        Prior, class and score of each pair, best first.
    """
    num_priors, num_classes = scores.shape
    of_classes = isinstance(threshold, torch.Tensor) and threshold.dim() > 0
    if of_classes:
        # A score below its own class' threshold must not take the place of one above another's.
        scores = scores.masked_fill(scores <= threshold, -1.0)
    rows = None
    if num_classes > 1 and num_priors > limit:
        # In the order of the level, so that equal scores are met in the same order.
        rows = scores.amax(dim=1).topk(limit).indices.sort().values
        scores = scores[rows]
    best, index = scores.flatten().topk(min(limit, scores.numel()))
    classes = index % num_classes
    least: Any = threshold
    keep = best > (least[classes] if of_classes else least)
    prior = torch.div(index, num_classes, rounding_mode="floor")
    if rows is not None:
        prior = rows[prior]
    return prior[keep], classes[keep], best[keep]


def clip_boxes(boxes: torch.Tensor, image_size: Tuple[int, int]) -> torch.Tensor:
    """(R, 4) clipped to (height, width). ``Boxes.clip`` is a host-device sync by its assertion."""
    limits = boxes.new_tensor([image_size[1], image_size[0]] * 2)
    return torch.minimum(boxes.clamp(min=0), limits)


class DenseDecoding(OptimalBias):
    """The inference of a subclass of Detectron2's ``DenseDetector``.

    Attributes:
        score_power: scores are class scores, times those of a third branch, to this power.
        clip_before_nms: whether boxes are clipped to the image before NMS, not after it.
        drop_empty: whether boxes that have no area in the image are left out before the best of a
            level are taken.
        cap_by_anchors: whether no more (anchor, class) pairs of a level are taken than it has
            anchors, or boxes that are not left out.
        threshold_on_class: whether the threshold is compared with the class' part of the score.
    """

    # Detectron2's, whose classes are not typed, and those of the detector.
    anchors_and_priors: Any
    box2box_transform: Any
    inference_single_image: Any
    test_score_thresh: float
    transpose: Any

    clip_before_nms = False
    drop_empty = False
    cap_by_anchors = False
    threshold_on_class = False

    def forward_inference(self, images, features, predictions) -> List[Instances]:
        """Detections of each image; a third branch's score is a factor of the classes'."""
        logits, deltas, *quality = self.transpose(predictions)
        _, priors = self.anchors_and_priors(features)
        scores = [self._scores(*level) for level in zip(logits, *quality)]
        return [
            self.inference_single_image(
                priors, [s[i] for s in scores], [d[i] for d in deltas], image_size
            )
            for i, image_size in enumerate(images.image_sizes)
        ]

    def _scores(self, logits: torch.Tensor, quality: Optional[torch.Tensor] = None) -> torch.Tensor:
        """Scores of a level (N, R_l, C), below 0 where the class' own is not enough."""
        classes = logits.sigmoid()
        scores = classes if quality is None else classes * quality.sigmoid()
        if self.score_power == 0.5:
            scores = scores.sqrt()
        if self.threshold_on_class:
            least = self.score_thresholds(self.test_score_thresh)
            scores = scores.masked_fill(classes <= least, -1.0)
        return scores

    @property
    def threshold_power(self) -> float:
        return 1.0 if self.threshold_on_class else self.score_power

    def _decode_per_level_predictions(
        self, anchors, pred_scores, pred_deltas, score_thresh, topk_candidates, image_size
    ) -> Instances:
        """The best ``topk_candidates`` (anchor, class) pairs of a level above the threshold."""
        apply_deltas = self.box2box_transform.apply_deltas
        boxes, limit = None, topk_candidates
        if self.cap_by_anchors:
            limit = min(limit, len(pred_deltas))
        if self.drop_empty:
            boxes = clip_boxes(apply_deltas(pred_deltas, anchors.tensor), image_size)
            real = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
            pred_scores = pred_scores.masked_fill(~real[:, None], -1.0)
            limit = min(limit, int(real.sum())) if self.cap_by_anchors else limit
        least = -0.5 if self.threshold_on_class else self.score_thresholds(score_thresh)
        index, classes, scores = best_of_level(pred_scores, least, limit)
        if boxes is not None:
            boxes = boxes[index]
        else:
            boxes = apply_deltas(pred_deltas[index], anchors.tensor[index])
            boxes = clip_boxes(boxes, image_size) if self.clip_before_nms else boxes
        return Instances(image_size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
