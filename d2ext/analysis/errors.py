"""What is wrong with detections: kinds of error, and how much AP each of them costs.

The kinds are those of Bolya et al., TIDE: A General Toolbox for Identifying Object Detection
Errors, ECCV 2020. Works on any results in COCO's format.

Shapes: D detections, G objects, C classes.
"""

import dataclasses
from collections import defaultdict
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from d2ext.data.checks.json_file import guess_form

from .coco_data import annotations_of, area_of, best_detections, judged_classes

__all__ = [
    "FALSE_KINDS",
    "Verdict",
    "average_precision",
    "error_costs",
    "judge",
    "mean_ap",
    "pairwise_iou",
]

#: Kinds of wrong detections, and what each of them is.
FALSE_KINDS = {
    "class": "right place, wrong class",
    "location": "right class, box too far off",
    "both": "wrong class and box too far off",
    "duplicate": "the object has a better detection",
    "background": "there is nothing",
}


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
        target: (D,) index of the object it finds or should have found; -1: none.
        gt_image, gt_category, gt_box, gt_area: (G,), (G,), (G, 4) and (G,), without crowds.
        gt_found: (G,) bool, by a right detection.
        gt_missed: (G,) bool: no detection comes near enough to be corrected.
    """

    image: np.ndarray
    category: np.ndarray
    score: np.ndarray
    box: np.ndarray
    kind: np.ndarray
    iou: np.ndarray
    target: np.ndarray
    gt_image: np.ndarray
    gt_category: np.ndarray
    gt_box: np.ndarray
    gt_area: np.ndarray
    gt_found: np.ndarray
    gt_missed: np.ndarray


def pairwise_iou(boxes: np.ndarray, others: np.ndarray, crowd: bool = False) -> np.ndarray:
    """(D, G) IoUs of boxes (x, y, width, height); the covered share of ``boxes`` with crowds."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum((boxes[:, :2] + boxes[:, 2:])[:, None], (others[:, :2] + others[:, 2:])[None])
    both = np.clip(high - low, 0, None).prod(axis=2)
    area = boxes[:, 2:].prod(axis=1)[:, None]
    whole = area if crowd else area + others[:, 2:].prod(axis=1)[None] - both
    return both / np.maximum(whole, 1e-12)


def judge(
    results: Sequence[Dict[str, Any]],
    data: Dict[str, Any],
    *,
    iou_threshold: float = 0.5,
    background_iou: float = 0.1,
    min_score: float = 0.0,
    max_detections: Optional[int] = None,
) -> Verdict:
    """Say of each detection whether it is right, and what is wrong with it otherwise.

    Args:
        results: detections in COCO's results format.
        data: a COCO or LVIS data set with ``images``, ``annotations`` and ``categories``. What
            belongs to none of its images is left out.
        iou_threshold: from which IoU on a detection finds an object.
        background_iou: below which IoU there is nothing.
        min_score: detections below it are left out.
        max_detections: as many are kept, best first: of an image and class, or of an image in
            LVIS' form. By default 100, and 300 in LVIS' form.
    """
    form, annotations = guess_form(data), annotations_of(data)
    if form == "lvis":  # lvis sees nothing that has no area
        annotations = [a for a in annotations if area_of(a) > 0]
    objects = [a for a in annotations if not a.get("iscrowd")]
    crowds = [a for a in annotations if a.get("iscrowd")]
    by_image: Dict[Any, List[int]] = defaultdict(list)
    for index, item in enumerate(objects):
        by_image[item["image_id"]].append(index)
    crowds_of: Dict[Any, List[Dict]] = defaultdict(list)
    for item in crowds:
        crowds_of[item["image_id"]].append(item)
    found: Dict[Any, List[Dict]] = defaultdict(list)
    for item in results:
        if item["score"] >= min_score:
            found[item["image_id"]].append(item)
    verdict = _Builder(objects, iou_threshold, background_iou)
    # By their ids, as COCO's: the order decides between equal scores.
    for image in sorted(data["images"], key=lambda image: image["id"]):
        key = image["id"]
        items = best_detections(found.get(key, ()), form, max_detections)
        verdict.add(image, items, by_image.get(key, []), crowds_of.get(key, []))
    return verdict.build()


class _Builder:
    """Collects the verdict image by image."""

    def __init__(self, objects: List[Dict[str, Any]], threshold: float, background: float):
        self.threshold, self.background = threshold, background
        self.gt_image = np.array([a["image_id"] for a in objects])
        self.gt_category = np.array([a["category_id"] for a in objects], dtype=np.int64)
        self.gt_box = np.array([a["bbox"] for a in objects], dtype=np.float64).reshape(-1, 4)
        self.gt_area = np.array([area_of(a) for a in objects], dtype=np.float64)
        self.found = np.zeros(len(objects), dtype=bool)
        self.near = np.zeros(len(objects), dtype=bool)
        self.rows: List[Tuple] = []

    def add(self, image: Dict, items: List[Dict], gt: List[int], crowds: List[Dict]) -> None:
        if not items:
            return
        gt_index = np.array(gt, dtype=np.int64)
        box = np.array([d["bbox"] for d in items], dtype=np.float64).reshape(-1, 4)
        category = np.array([d["category_id"] for d in items], dtype=np.int64)
        iou = pairwise_iou(box, self.gt_box[gt_index])
        same = category[:, None] == self.gt_category[gt_index][None]
        taken = np.full(len(items), -1)
        used = np.zeros(len(gt), dtype=bool)
        candidates = (iou >= self.threshold) & same
        for k in np.flatnonzero(candidates.any(axis=1)):
            free = np.where(candidates[k] & ~used, iou[k], -1)
            if free.max() >= 0:
                # Of equals the last, as COCO's matching has it.
                taken[k] = len(free) - 1 - free[::-1].argmax()
                used[taken[k]] = True
        self.found[gt_index[used]] = True
        ignored = self._ignored(image, category, box, gt_index, crowds)
        for k, item in enumerate(items):
            kind, target = self._kind(iou[k], same[k], taken[k])
            if kind != "right" and ignored[k]:
                kind, target = "ignored", -1
            target = int(gt_index[target]) if target >= 0 else -1
            if kind in ("class", "location"):
                self.near[target] = True
            own = iou[k][same[k]].max(initial=0) if kind != "right" else iou[k][taken[k]]
            self.rows.append(
                (image["id"], item["category_id"], item["score"], item["bbox"], kind, own, target)
            )

    def _kind(self, iou: np.ndarray, same: np.ndarray, taken: int) -> Tuple[str, int]:
        """Kind of one detection and the position of its object, in the order of TIDE's rules."""
        if taken >= 0:
            return "right", int(taken)
        own, other = np.where(same, iou, 0), np.where(same, 0, iou)
        best_own, best_other = own.max(initial=0), other.max(initial=0)
        if self.background <= best_own < self.threshold:
            return "location", int(own.argmax())
        if best_other >= self.threshold:
            return "class", int(other.argmax())
        if best_own >= self.threshold:
            return "duplicate", int(own.argmax())
        return ("background" if max(best_own, best_other) < self.background else "both"), -1

    def _ignored(
        self, image: Dict, category: np.ndarray, box: np.ndarray, gt: np.ndarray, crowds: List[Dict]
    ) -> np.ndarray:
        """(D,) whether a detection that is not right counts as nothing at all."""
        ignored = np.zeros(len(category), dtype=bool)
        for crowd in crowds:
            covered = pairwise_iou(box, np.array([crowd["bbox"]], dtype=np.float64), crowd=True)
            ignored |= (category == crowd["category_id"]) & (covered[:, 0] >= self.threshold)
        judged = judged_classes(image, self.gt_category[gt].tolist())
        if judged is not None:
            ignored |= ~np.isin(category, list(judged))
        return ignored

    def build(self) -> Verdict:
        columns = list(zip(*self.rows)) or [()] * 7
        return Verdict(
            image=np.array(columns[0]),
            category=np.array(columns[1], dtype=np.int64),
            score=np.array(columns[2], dtype=np.float64),
            box=np.array(columns[3], dtype=np.float64).reshape(-1, 4),
            kind=np.array(columns[4], dtype="<U10"),
            iou=np.array(columns[5], dtype=np.float64),
            target=np.array(columns[6], dtype=np.int64),
            gt_image=self.gt_image,
            gt_category=self.gt_category,
            gt_box=self.gt_box,
            gt_area=self.gt_area,
            gt_found=self.found,
            gt_missed=~self.found & ~self.near,
        )


def average_precision(
    category: np.ndarray, score: np.ndarray, right: np.ndarray, objects: Dict[int, int]
) -> Dict[int, float]:
    """COCO's AP of each class: precision at 101 recalls.

    Args:
        category, score, right: (D,), in any order.
        objects: the number of objects of each class; classes without any are left out.
    """
    result = {}
    recalls = np.linspace(0, 1, 101)
    for key, count in objects.items():
        if count <= 0:
            continue
        mine = np.flatnonzero(category == key)
        hits = right[mine[np.argsort(-score[mine], kind="stable")]]
        true = np.cumsum(hits)
        precision = true / np.arange(1, len(hits) + 1)
        precision = np.maximum.accumulate(precision[::-1])[::-1]
        index = np.searchsorted(true / count, recalls, side="left")
        result[key] = float(np.append(precision, 0.0)[np.minimum(index, len(precision))].mean())
    return result


def error_costs(verdict: Verdict) -> Dict[str, Any]:
    """AP50 of a verdict, and the AP50 that correcting one kind of error alone would add.

    Correcting "class" and "location" makes the best such detection of an object that is not found
    right and removes the others; correcting the other kinds removes them; "missed" takes the
    objects that nothing comes near out of the count.

    Returns:
        ``AP50`` and ``cost`` by kind in percent, ``count`` by kind.
    """
    v = verdict
    keep = v.kind != "ignored"
    counts = {int(c): int(n) for c, n in zip(*np.unique(v.gt_category, return_counts=True))}

    def ap(category: np.ndarray, right: np.ndarray, use: np.ndarray, objects: Dict) -> float:
        values = average_precision(category[use], v.score[use], right[use], objects)
        return 100 * float(np.mean(list(values.values()))) if values else float("nan")

    right = v.kind == "right"
    base = ap(v.category, right, keep, counts)
    costs, number = {}, {}
    for kind in FALSE_KINDS:
        wrong = v.kind == kind
        number[kind] = int(wrong.sum())
        category, fixed = v.category.copy(), right.copy()
        if kind in ("class", "location"):
            claimed = _best_claims(v, wrong)
            category[claimed] = v.gt_category[v.target[claimed]]
            fixed[claimed] = True
        costs[kind] = ap(category, fixed, keep & (~wrong | fixed), counts) - base
    number["missed"] = int(v.gt_missed.sum())
    left = dict(counts)
    for key, n in zip(*np.unique(v.gt_category[v.gt_missed], return_counts=True)):
        left[int(key)] -= int(n)
    costs["missed"] = ap(v.category, right, keep, left) - base
    return {"AP50": base, "cost": costs, "count": number}


def _best_claims(v: Verdict, wrong: np.ndarray) -> np.ndarray:
    """Indices of the wrong detections that are the best claim on an object not found."""
    order = np.flatnonzero(wrong)
    order = order[np.argsort(-v.score[order], kind="stable")]
    order = order[~v.gt_found[v.target[order]]]
    _, first = np.unique(v.target[order], return_index=True)
    return order[first]


def mean_ap(
    results: Sequence[Dict[str, Any]],
    data: Dict[str, Any],
    thresholds: Optional[Sequence[float]] = None,
    max_detections: Optional[int] = None,
) -> Dict[int, float]:
    """AP of each class in percent, by default the mean over IoU 0.5, 0.55, ..., 0.95.

    The arguments are those of :func:`judge`.
    """
    thresholds = np.linspace(0.5, 0.95, 10) if thresholds is None else thresholds
    sums: Dict[int, float] = defaultdict(float)
    for threshold in thresholds:
        v = judge(results, data, iou_threshold=threshold, max_detections=max_detections)
        keep = v.kind != "ignored"
        counts = {int(c): int(n) for c, n in zip(*np.unique(v.gt_category, return_counts=True))}
        right = (v.kind == "right")[keep]
        for key, value in average_precision(v.category[keep], v.score[keep], right, counts).items():
            sums[key] += 100 * value / len(thresholds)
    return dict(sums)
