"""How much AP each kind of error costs.

The kinds are those of Bolya et al., TIDE: A General Toolbox for Identifying Object Detection
Errors, ECCV 2020. Works on any results in COCO's format.

Shapes: D detections.
"""

from typing import Any, Dict

import numpy as np

from d2ext.evaluation.matching import FALSE_KINDS, Verdict

__all__ = ["average_precision", "error_costs"]


def average_precision(
    category: np.ndarray, score: np.ndarray, right: np.ndarray, objects: Dict[int, int]
) -> Dict[int, float]:
    """COCO's AP of each class, precision at 101 recalls, of detections that are judged already.

    An evaluation has its back end; this is for verdicts in which an error has been corrected.

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
