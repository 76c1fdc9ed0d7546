"""What the dense detectors share: targets, positives, normalisers and decoding.

Shapes: N images, R anchors or points of all levels, M = N * R samples, K of them positive,
C classes.
"""

from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import get_event_storage
from torch import nn

from d2ext.config import arguments, validate

from ..assigners import Priors
from ..losses.box_losses import SmoothL1Loss
from ..losses.build import build_criterion
from ..losses.guided import sampling_free_on
from ..losses.normalizers import NORMALIZER_REGISTRY
from ..losses.positives import Positives
from ..sampling_free import OptimalBias, SamplingFreeOptions
from ..targets import pack_targets

__all__ = [
    "ExtDenseMixin",
    "best_of_level",
    "build_dense_normalizer",
    "dense_arguments",
    "dense_slots",
]


def build_dense_normalizer(cfg: Any, *, kind: str, sync: bool, initial: float) -> nn.Module:
    """The normaliser of a dense detector; ``kind`` and ``sync`` hold where the keys are silent."""
    node = cfg.MODEL.DENSE
    validate(cfg, "MODEL.DENSE.NORMALIZER_SYNC")
    choices = {"auto": sync, "on": True, "off": False}
    name = node.NORMALIZER or kind
    if sampling_free_on(cfg, "dense") and cfg.MODEL.SAMPLING_FREE.REG_NORM == "fg":
        # A running mean would change the size of the box loss, and through the guide of all losses,
        # over the first steps.
        name = "positives"
    cls = NORMALIZER_REGISTRY.get(name)
    return cls(sync=choices[node.NORMALIZER_SYNC], initial=initial)


def dense_slots(
    cfg: Any, *, box_loss: str, alpha: float, gamma: float, num_classes: int, **kwargs
) -> Dict[str, Any]:
    """Arguments of :func:`build_criterion` for a dense detector whose own choices are given."""
    cls_loss = cfg.MODEL.DENSE.CLS_LOSS
    if cls_loss == "focal" and sampling_free_on(cfg, "dense"):
        cls_loss = "bce"  # focal loss is a soft form of sampling
    return {
        "place": "dense",
        "cls_loss": cls_loss,
        "box_loss": cfg.MODEL.DENSE.BOX_LOSS or box_loss,
        "num_classes": num_classes,
        "alpha": alpha,
        "gamma": gamma,
        **kwargs,
    }


def dense_arguments(cfg: Any, section: str, guides: Sequence[str]) -> Dict[str, Any]:
    """Arguments that FCOS and ATSS take from the config alike, and those of their sections.

    Args:
        cfg: the config.
        section: the detector's, "MODEL.FCOS" or "MODEL.ATSS".
        guides: losses that guide the class loss if there is no sampling.
    """
    own = arguments(cfg, section)
    slots = dense_slots(
        cfg,
        box_loss="giou",
        num_classes=own["num_classes"],
        guides=guides,
        **arguments(cfg, section, "loss"),
    )
    return {
        **own,
        "criterion": build_criterion(cfg, **slots),
        "sampling_free": SamplingFreeOptions.from_cfg(cfg, "dense"),
        "max_detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        "pixel_mean": cfg.MODEL.PIXEL_MEAN,
        "pixel_std": cfg.MODEL.PIXEL_STD,
    }


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
    keep = best > (threshold[classes] if of_classes else threshold)
    prior = torch.div(index, num_classes, rounding_mode="floor")
    if rows is not None:
        prior = rows[prior]
    return prior[keep], classes[keep], best[keep]


class ExtDenseMixin(OptimalBias):
    """Assignment, positives and decoding for a subclass of Detectron2's ``DenseDetector``.

    The detector has ``assigner``, ``criterion``, ``normalizer``, ``box2box_transform``,
    ``num_classes`` and, for inference, the ``test_*`` attributes of RetinaNet and FCOS.
    """

    @torch.no_grad()
    def label_anchors(
        self, anchors: List[Boxes], gt_instances: List[Instances]
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        """Labels (N, R) and matched boxes (N, R, 4), for the whole batch at once."""
        targets = pack_targets(gt_instances)
        assignment = self.assigner(Priors.from_boxes(anchors), targets, self.num_classes)
        return assignment.labels, assignment.matched_boxes(targets)

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
        labels, _ = self.label_anchors(self.anchor_generator(features), gt_instances)
        return self.sample_labels(labels)

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
        """Pick the positive samples: the one place of a training step where the host waits.

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

    def _decode_per_level_predictions(
        self, anchors, pred_scores, pred_deltas, score_thresh, topk_candidates, image_size
    ) -> Instances:
        """The best ``topk_candidates`` (anchor, class) pairs of a level above the threshold."""
        anchor_index, classes, scores = best_of_level(
            pred_scores, self.score_thresholds(score_thresh), topk_candidates
        )
        boxes = self.box2box_transform.apply_deltas(
            pred_deltas[anchor_index], anchors.tensor[anchor_index]
        )
        return Instances(image_size, pred_boxes=Boxes(boxes), scores=scores, pred_classes=classes)
