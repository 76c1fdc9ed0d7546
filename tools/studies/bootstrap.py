"""How much an AP owes to the choice of test images: AP on images that are drawn again and again.

Shapes: D detections of a class by falling score, N images.
"""

from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from d2ext.evaluation.results import judge

__all__ = ["DRAWS", "image_bootstrap"]

#: How many times the images are drawn: enough for the ends of a 95 % interval.
DRAWS = 400
_THRESHOLDS = np.arange(10) * 0.05 + 0.5
_RECALLS = np.linspace(0.0, 1.0, 101)


def image_bootstrap(
    results: Sequence[Dict[str, Any]],
    data: Dict[str, Any],
    draws: int = DRAWS,
    weights: Optional[np.ndarray] = None,
) -> List[float]:
    """COCO's AP, in percent, on as many images as there are, drawn with replacement.

    Two detectors get the same draws, so that what they find can be compared draw by draw.

    Args:
        results: detections in COCO's results format.
        data: the data set in COCO's form.
        draws: how many times.
        weights: (draws, N) how often each image counts, instead of drawing.
    """
    images = sorted(image["id"] for image in data["images"])
    if weights is None:
        chance = np.full(len(images), 1 / len(images))
        weights = np.random.default_rng(0).multinomial(len(images), chance, size=draws)
    total, classes = np.zeros(len(weights)), np.zeros(len(weights))
    for threshold in _THRESHOLDS:
        # What is ignored counts neither as right nor as wrong.
        verdict = judge(results, data, iou_threshold=threshold)
        counts = verdict.kind != "ignored"
        row, gt_row = (np.searchsorted(images, ids) for ids in (verdict.image, verdict.gt_image))
        for category in np.unique(verdict.gt_category):
            found = np.flatnonzero(counts & (verdict.category == category))
            found = found[np.argsort(-verdict.score[found], kind="stable")]
            objects = weights[:, gt_row[verdict.gt_category == category]].sum(1)
            right = verdict.kind[found] == "right"
            for k in np.flatnonzero(objects):
                weight = weights[k, row[found]]
                total[k] += _average_precision(weight, right, objects[k])
                classes[k] += 1
    return list(100 * total / np.maximum(classes, 1))


def _average_precision(weight: np.ndarray, right: np.ndarray, objects: int) -> float:
    """COCO's mean precision at 101 recalls, every detection as often as its image was drawn.

    Args:
        weight: (D,) how often.
        right: (D,) bool.
        objects: how many there are in the images that were drawn.
    """
    hits, seen = np.cumsum(weight * right), np.cumsum(weight)
    precision = hits / np.maximum(seen, 1)
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    place = np.searchsorted(hits / objects, _RECALLS, side="left")
    return float(np.where(place < len(hits), np.append(precision, 0.0)[place], 0.0).mean())
