"""Which detection finds which object, and what is wrong with the others.

The kinds of error are those of Bolya et al., TIDE: A General Toolbox for Identifying Object
Detection Errors, ECCV 2020. The matching is COCO's.

Shapes: D detections, G objects, K pairs of a detection and an object of its image.
"""

import dataclasses
from typing import Iterator, NamedTuple, Optional, Tuple

import numpy as np

from .backends import Detections
from .boxes import paired_iou
from .ground_truth import GroundTruth

__all__ = ["FALSE_KINDS", "MAX_DETECTIONS", "Verdict", "assign_greedily", "image_pairs", "match"]

#: Kinds of wrong detections, and what each of them is.
FALSE_KINDS = {
    "class": "right place, wrong class",
    "location": "right class, box too far off",
    "both": "wrong class and box too far off",
    "duplicate": "the object has a better detection",
    "background": "there is nothing",
}
#: How many detections count: of an image and class in COCO's form, of an image in LVIS'.
MAX_DETECTIONS = {"coco": 100, "lvis": 300}
# Pairs that are worked on at once; more take memory and no less time.
_PAIRS_AT_ONCE = 1_000_000


@dataclasses.dataclass
class Verdict:
    """Detections and objects of a data set, by image and falling score.

    Attributes:
        image: (D,) ids of images.
        category: (D,) ids of categories.
        score: (D,).
        box: (D, 4), x y width height.
        kind: (D,) "right", "ignored" (in a crowd, or of a class not annotated in its image), or a
            key of :data:`FALSE_KINDS`.
        iou: (D,) with its object, or the highest with an object of its class.
        best_iou: (D,) the highest with an object of its class, also where that one has a better
            detection.
        target: (D,) index of the object it finds or should have found; -1: none.
        gt_image, gt_category, gt_box, gt_area: (G,), (G,), (G, 4) and (G,), without crowds.
        gt_found: (G,) bool, by a right detection.
        gt_missed: (G,) bool: no detection comes near enough to be corrected.
        iou_threshold: from which IoU on a detection was right.
    """

    image: np.ndarray
    category: np.ndarray
    score: np.ndarray
    box: np.ndarray
    kind: np.ndarray
    iou: np.ndarray
    best_iou: np.ndarray
    target: np.ndarray
    gt_image: np.ndarray
    gt_category: np.ndarray
    gt_box: np.ndarray
    gt_area: np.ndarray
    gt_found: np.ndarray
    gt_missed: np.ndarray
    iou_threshold: float = 0.5


def match(
    truth: GroundTruth,
    detections: Detections,
    *,
    style: str = "coco",
    iou_threshold: float = 0.5,
    background_iou: float = 0.1,
    min_score: float = 0.0,
    max_detections: Optional[int] = None,
) -> Verdict:
    """Say of each detection whether it is right, and what is wrong with it otherwise.

    Args:
        truth: the annotations.
        detections: of any of its images and categories, boxes of any float type.
        style: "coco" or "lvis", whose images are annotated for some classes only.
        iou_threshold: from which IoU on a detection finds an object.
        background_iou: below which IoU there is nothing.
        min_score: detections below it are left out.
        max_detections: as many are kept, best first; by default :data:`MAX_DETECTIONS`.
    """
    found = _best(detections, style, min_score, max_detections)
    # lvis sees nothing that has no area.
    seen = truth.area > 0 if style == "lvis" else np.ones(len(truth), dtype=bool)
    index = np.flatnonzero(seen & ~truth.crowd)
    gt_image, gt_category = truth.image[index], truth.category[index]
    all_boxes = np.asarray(truth.boxes, dtype=np.float64).reshape(-1, 4)
    gt_box, box = all_boxes[index], found.boxes.astype(np.float64)

    taken, own, other = _pair_up(found, box, gt_image, gt_category, gt_box, iou_threshold)
    right = taken.object >= 0
    kind = _false_kinds(own.iou, other.iou, iou_threshold, background_iou)
    kind[right] = "right"
    ignored = _in_crowds(truth, seen, found, box, all_boxes, iou_threshold)
    if style == "lvis":
        ignored |= ~_judged(truth, gt_image, gt_category, found)
    kind[ignored & ~right] = "ignored"
    target = np.full(len(found), -1)
    for name, pairs in (("right", taken), ("class", other), ("location", own), ("duplicate", own)):
        target = np.where(kind == name, pairs.object, target)
    gt_found, gt_near = np.zeros(len(index), dtype=bool), np.zeros(len(index), dtype=bool)
    gt_found[taken.object[right]] = True
    gt_near[target[np.isin(kind, ("class", "location"))]] = True
    images, categories = np.array(truth.image_ids), np.array(truth.category_ids)
    return Verdict(
        image=images[found.image],
        category=categories[found.category],
        score=found.scores.astype(np.float64),
        box=box,
        kind=kind,
        iou=np.where(right, taken.iou, own.iou),
        best_iou=own.iou,
        target=target,
        gt_image=images[gt_image],
        gt_category=categories[gt_category],
        gt_box=gt_box,
        gt_area=truth.area[index],
        gt_found=gt_found,
        gt_missed=~gt_found & ~gt_near,
        iou_threshold=iou_threshold,
    )


class _Pairs(NamedTuple):
    """An object of each detection, -1 for none, and their IoU, 0 then: (D,) each."""

    object: np.ndarray
    iou: np.ndarray


def _pair_up(
    found: Detections,
    box: np.ndarray,
    gt_image: np.ndarray,
    gt_category: np.ndarray,
    gt_box: np.ndarray,
    iou_threshold: float,
) -> Tuple[_Pairs, _Pairs, _Pairs]:
    """What each detection finds, and the nearest object of its class and of any other."""
    count = len(found)
    taken, own, other = (_Pairs(np.full(count, -1), np.zeros(count)) for _ in range(3))
    for d, g in image_pairs(found.image, gt_image):
        value = paired_iou(box[d], gt_box[g])
        same = found.category[d] == gt_category[g]
        for nearest, kept in ((own, same), (other, ~same)):
            _keep_largest(nearest.iou, nearest.object, d[kept], g[kept], value[kept])
        near = same & (value >= iou_threshold)
        rows, objects, fits = assign_greedily(d[near], g[near], value[near])
        taken.object[rows], taken.iou[rows] = objects, fits
    return taken, own, other


def _false_kinds(
    own: np.ndarray, other: np.ndarray, iou_threshold: float, background_iou: float
) -> np.ndarray:
    """(D,) what is wrong with detections, from their highest IoU with their class and any other."""
    kind = np.full(len(own), "both", dtype="<U10")
    kind[np.maximum(own, other) < background_iou] = "background"
    # In the order of TIDE's rules, the last one wins.
    kind[own >= iou_threshold] = "duplicate"
    kind[other >= iou_threshold] = "class"
    kind[(own >= background_iou) & (own < iou_threshold)] = "location"
    return kind


def _best(detections: Detections, style: str, min_score: float, limit: Optional[int]) -> Detections:
    """The detections that count, by image and falling score; equal scores keep their order."""
    limit = MAX_DETECTIONS[style] if limit is None else limit
    kept = np.flatnonzero(detections.scores >= min_score)
    kept = kept[np.lexsort((-detections.scores[kept], detections.image[kept]))]
    image, category = detections.image[kept], detections.category[kept]
    cell = image if style == "lvis" else image * (category.max(initial=0) + 1) + category
    order = np.argsort(cell, kind="stable")
    rank = np.empty(len(kept), dtype=np.int64)
    rank[order] = np.arange(len(kept)) - np.searchsorted(cell[order], cell[order], side="left")
    kept = kept[rank < limit]
    if style == "lvis":
        # In lvis' order: what has no area takes a place before it is left out.
        kept = kept[detections.boxes[kept, 2] * detections.boxes[kept, 3] > 0]
    return detections.select(kept)


def image_pairs(
    image: np.ndarray, gt_image: np.ndarray, at_once: int = _PAIRS_AT_ONCE
) -> Iterator[Tuple[np.ndarray, np.ndarray]]:
    """All pairs of a detection and an object of one image, in blocks of whole detections.

    Args:
        image: (D,) ranks, ascending.
        gt_image: (G,) ranks, in any order.
        at_once: pairs of a block; a single image may have more.

    Yields:
        two arrays (K,): detections, ascending, and objects, ascending within a detection
    """
    order = np.argsort(gt_image, kind="stable")
    start = np.searchsorted(gt_image[order], image, side="left")
    count = np.searchsorted(gt_image[order], image, side="right") - start
    ends = np.cumsum(count)
    low = 0
    while low < len(image):
        before = ends[low - 1] if low else 0
        high = max(int(np.searchsorted(ends, before + at_once, side="right")), low + 1)
        high = int(np.searchsorted(image, image[high - 1], side="right"))  # images stay whole
        d = np.repeat(np.arange(low, high), count[low:high])
        within = np.arange(len(d)) - (ends - count)[d] + before
        yield d, order[start[d] + within]
        low = high


def _keep_largest(
    largest: np.ndarray, where: np.ndarray, d: np.ndarray, g: np.ndarray, value: np.ndarray
) -> None:
    """Write each detection's largest value, and the first object that has it, in place."""
    np.maximum.at(largest, d, value)
    top = np.flatnonzero((value == largest[d]) & (value > 0))
    rows, first = np.unique(d[top], return_index=True)
    where[rows] = g[top[first]]


def assign_greedily(
    d: np.ndarray, g: np.ndarray, value: np.ndarray
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One object a detection: the first detection takes the object of largest value, the next one
    the best of what is left, and so on; of equal values the last object, as in COCO's matching.

    All propose at once, an object keeps the earliest proposer, and the
    others go on to their next object. As all objects rank the detections alike, this ends with the
    same pairs.

    Args:
        d: (K,) detections, whose order is that of their numbers.
        g: (K,) objects.
        value: (K,).

    Returns:
        detections, their objects and the values, (M,) each
    """
    order = np.lexsort((-g, -value, d))
    d, g, value = d[order], g[order], value[order]
    holder = np.full(g.max(initial=-1) + 1, np.iinfo(np.int64).max)
    left = np.arange(len(d))
    while True:
        rows, first = np.unique(d[left], return_index=True)
        proposals = left[first]
        np.minimum.at(holder, g[proposals], rows)
        if (holder[g[proposals]] == rows).all():
            return rows, g[proposals], value[proposals]
        left = left[holder[g[left]] >= d[left]]  # what an earlier detection holds is gone


def _in_crowds(
    truth: GroundTruth,
    seen: np.ndarray,
    found: Detections,
    box: np.ndarray,
    all_boxes: np.ndarray,
    threshold: float,
) -> np.ndarray:
    """(D,) whether a detection lies in a crowd region of its class."""
    inside = np.zeros(len(found), dtype=bool)
    index = np.flatnonzero(seen & truth.crowd)
    for d, g in image_pairs(found.image, truth.image[index]):
        crowd = index[g]
        covered = paired_iou(box[d], all_boxes[crowd], crowd=True)
        hit = (covered >= threshold) & (found.category[d] == truth.category[crowd])
        inside[d[hit]] = True
    return inside


def _judged(
    truth: GroundTruth, gt_image: np.ndarray, gt_category: np.ndarray, found: Detections
) -> np.ndarray:
    """(D,) whether a wrong detection counts: LVIS annotates an image for some classes only.

    Those are the classes that it has and those known to be absent. Of some of the first it does
    not annotate every object.
    """
    width = len(truth.category_ids)
    judged = {*(gt_image * width + gt_category).tolist()}
    judged.update(i * width + c for i, absent in enumerate(truth.negative) for c in absent)
    judged.difference_update(i * width + c for i, part in enumerate(truth.not_exhaustive)
                             for c in part)  # fmt: skip
    cells = np.fromiter(judged, dtype=np.int64, count=len(judged))
    return np.isin(found.image * width + found.category, cells)
