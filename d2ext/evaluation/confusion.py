"""Which class is taken for which: a confusion matrix of detections.

Shapes: D detections, G objects, C classes.
"""

from typing import Sequence

import numpy as np

from .boxes import paired_iou
from .matching import Verdict, assign_greedily, image_pairs

__all__ = ["confusion_matrix"]


def confusion_matrix(
    verdict: Verdict, category_ids: Sequence[int], min_score: float = 0.0
) -> np.ndarray:
    """Count objects by their class and the class they are taken for.

    Detections that find an object of their class, as COCO's matching has it, are on the diagonal,
    so that it agrees with precision and recall. Of what is left, the best detection first, each
    takes the object of another class that it overlaps most, by the verdict's IoU at least.

    Args:
        verdict: from :func:`~d2ext.evaluation.matching.match`, whose IoU counts.
        category_ids: C ids, in the order of rows and columns.
        min_score: detections below it are left out.

    Returns:
        (C + 1, C + 1) int64: true class in rows, predicted class in columns. The last row are
        detections of nothing and duplicates, the last column objects that are not found.
    """
    v, count = verdict, len(category_ids)
    rank = {key: k for k, key in enumerate(category_ids)}
    gt = np.array([rank[c] for c in v.gt_category.tolist()], dtype=np.int64)
    predicted = np.array([rank[c] for c in v.category.tolist()], dtype=np.int64)
    shown = v.score >= min_score
    taken = np.full(len(v.score), -1)
    hit = shown & (v.kind == "right")
    taken[hit] = v.target[hit]

    free = np.ones(len(gt), dtype=bool)
    free[taken[hit]] = False
    # Of an object that is found already, another detection is a duplicate whatever its class.
    left = np.flatnonzero(shown & ~np.isin(v.kind, ("right", "ignored")))
    objects = np.flatnonzero(free)
    ids, image = np.unique(np.concatenate([v.image, v.gt_image]), return_inverse=True)
    image, gt_image = image[: len(v.image)], image[len(v.image) :]
    left = left[np.lexsort((-v.score[left], image[left]))]
    for d, g in image_pairs(image[left], gt_image[objects]):
        row, column = left[d], objects[g]
        value = paired_iou(v.box[row], v.gt_box[column])
        near = (value >= v.iou_threshold) & (predicted[row] != gt[column])
        rows, found, _ = assign_greedily(d[near], column[near], value[near])
        taken[left[rows]] = found
        free[found] = False

    matrix = np.zeros((count + 1, count + 1), dtype=np.int64)
    counted = np.flatnonzero(shown & (v.kind != "ignored"))
    true = np.where(taken[counted] >= 0, gt[taken[counted]] if len(gt) else count, count)
    np.add.at(matrix, (true, predicted[counted]), 1)
    missed = free.copy()
    missed[taken[taken >= 0]] = False
    np.add.at(matrix, (gt[missed], np.full_like(gt[missed], count)), 1)
    return matrix
