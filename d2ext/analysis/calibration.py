"""How far a score can be taken at its word: calibration errors of detections.

Shapes: D detections, B bins.
"""

from typing import Any, Dict, Sequence

import numpy as np

__all__ = ["calibrate", "expected_error"]


def expected_error(score: np.ndarray, target: np.ndarray, bins: int = 10) -> Dict[str, Any]:
    """Expected calibration error: mean distance of score and target over bins of the score.

    Args:
        score: (D,), 0 to 1.
        target: (D,) what the score should say: whether the detection is right, or its IoU.
        bins: number of bins of equal width, each weighted by its detections.

    Returns:
        ``error``, and by bin ``count``, ``score`` and ``target``, the means; NaN in empty bins.
    """
    index = np.minimum((score * bins).astype(int), bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid="ignore"):
        mean_score = np.bincount(index, score, minlength=bins) / count
        mean_target = np.bincount(index, target, minlength=bins) / count
    gap = np.nansum(np.abs(mean_score - mean_target) * count)
    error = float(gap / len(score)) if len(score) else float("nan")
    return {"error": error, "count": count, "score": mean_score, "target": mean_target}


def calibrate(
    score: np.ndarray,
    iou: np.ndarray,
    thresholds: Sequence[float] = (0.5, 0.75, 0.9),
    bins: int = 10,
) -> Dict[str, Any]:
    """Calibration against precision at several IoUs, and against the IoU itself.

    Args:
        score, iou: (D,), as :func:`d2ext.analysis.consistency.best_ious` returns them.
        thresholds: from which IoU on a detection counts as right.
        bins: of the score.

    Returns:
        :func:`expected_error` as ``right at IoU 0.5`` and so on, and as ``IoU``
    """
    found = {
        f"right at IoU {t:g}": expected_error(score, (iou >= t).astype(float), bins)
        for t in thresholds
    }
    return {**found, "IoU": expected_error(score, iou, bins)}
