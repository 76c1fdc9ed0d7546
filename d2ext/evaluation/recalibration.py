"""Scores made into probabilities of being right, by a map a class that keeps their order.

Temperature: Guo et al., On Calibration of Modern Neural Networks, ICML 2017. Isotonic regression:
Zadrozny and Elkan, Transforming Classifier Scores into Accurate Multiclass Probability Estimates,
KDD 2002. One map a class, fitted on held-out images: Kuzucu et al., On Calibration of Object
Detectors, ECCV 2024.

Shapes: D detections, K knots of a map.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from d2ext._files import RunError, atomic_write

from .matching import Verdict

__all__ = ["METHODS", "Recalibration", "fit", "isotonic", "temperature"]

METHODS = ("isotonic", "temperature")
#: What the file's name ends in, in place of the checkpoint's ".pth".
SUFFIX = ".calibration.json"

# Where isotonic regression is flat, so much of the score itself keeps the order of detections.
_SLOPE = 1e-3
# A class with fewer right or wrong detections takes the map of all classes.
_LEAST = 10

# A map: a temperature, or knots between which it is linear.
Map = Union[float, List[List[float]]]


@dataclasses.dataclass
class Recalibration:
    """A map of scores for each class.

    Attributes:
        method: one of :data:`METHODS`.
        overall: for classes that are not named.
        classes: by class name.
        source: what it was fitted on.
    """

    method: str
    overall: Map
    classes: Dict[str, Map]
    source: str = ""

    def apply(self, scores: Any, classes: Any, names: Sequence[str]) -> np.ndarray:
        """New scores (D,) in float64, in the same order within a class.

        Args:
            scores: (D,) 0 to 1.
            classes: (D,) indices into ``names``.
            names: of the classes.
        """
        scores, classes = np.asarray(scores, dtype=np.float64), np.asarray(classes)
        found = np.empty_like(scores)
        for k in np.unique(classes):
            mine = classes == k
            found[mine] = _mapped(scores[mine], self.classes.get(names[k], self.overall))
        return found

    def save(self, weights: Union[str, Path]) -> Path:
        """Write it beside weights."""
        path = Path(weights).with_suffix(SUFFIX)
        with atomic_write(str(path)) as stream:
            stream.write((json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode())
        return path

    @classmethod
    def of(cls, weights: Union[str, Path], about: Optional[Dict[str, Any]] = None) -> Any:
        """The one that belongs to weights: beside them, or in what their file says; else None."""
        from d2ext.data.checks.json_text import read_json

        path, values = Path(weights).with_suffix(SUFFIX), (about or {}).get("calibration")
        if path.is_file():
            values = read_json(str(path))
        if values is None:
            return None
        if not _is_whole(values):
            raise RunError(f"{path} holds no calibration; write it again with d2ext calibrate.")
        return cls(**values)


def fit(
    verdict: Verdict, category_ids: Sequence[int], names: Sequence[str], *, method: str, source: str
) -> Recalibration:
    """Maps from scores to the share of right detections.

    Args:
        verdict: from :func:`~d2ext.evaluation.matching.match`, of images that were not trained on.
        category_ids, names: of the classes.
        method: one of :data:`METHODS`.
        source: what the detections are of.
    """
    function: Any = {"isotonic": isotonic, "temperature": temperature}[method]
    counted = verdict.kind != "ignored"
    score, right = verdict.score[counted], verdict.kind[counted] == "right"
    if not _enough(right):
        raise RunError(
            f"{source} has {right.sum()} right and {(~right).sum()} wrong detections; a "
            f"calibration needs {_LEAST} of both."
        )
    classes: Dict[str, Map] = {}
    for key, name in zip(category_ids, names):
        mine = verdict.category[counted] == key
        if _enough(right[mine]):
            classes[name] = function(score[mine], right[mine])
    return Recalibration(method, function(score, right), classes, source)


def _enough(right: np.ndarray) -> bool:
    return min(int(right.sum()), int((~right).sum())) >= _LEAST


def temperature(score: np.ndarray, right: np.ndarray) -> float:
    """The T for which sigmoid(logit / T) has the highest likelihood.

    The likelihood is concave in 1 / T, so its derivative is halved in.

    Args:
        score: (D,) 0 to 1.
        right: (D,) whether each detection is.
    """
    logit = _logit(score)
    low, high = -6.0, 6.0  # of the logarithm of 1 / T
    for _ in range(60):
        middle = (low + high) / 2
        slope = ((_sigmoid(np.exp(middle) * logit) - right) * logit).sum()
        low, high = (low, middle) if slope > 0 else (middle, high)
    return float(np.exp(-(low + high) / 2))


def isotonic(score: np.ndarray, right: np.ndarray) -> List[List[float]]:
    """Knots (2, K) of the rising function with the least squared error, by pooling neighbours.

    Arguments as of :func:`temperature`.
    """
    value, place = np.unique(score, return_inverse=True)
    count = np.bincount(place).astype(np.float64)
    mean = np.bincount(place, right) / count
    blocks: List[Tuple[float, float, int, int]] = []  # mean, count, first and last score
    for k in range(len(value)):
        m, n, first = mean[k], count[k], k
        while blocks and blocks[-1][0] >= m:
            before, more, first, _ = blocks.pop()
            m, n = (m * n + before * more) / (n + more), n + more
        blocks.append((m, n, first, k))
    x = [value[k] for _, _, *ends in blocks for k in dict.fromkeys(ends)]
    y = [m for m, _, *ends in blocks for _ in dict.fromkeys(ends)]
    knots = {0.0: y[0], **dict(zip(map(float, x), y))}
    knots.setdefault(1.0, y[-1])
    return [[round(k, 7) for k in knots], [round(float(v), 5) for v in knots.values()]]


def _mapped(score: np.ndarray, how: Map) -> np.ndarray:
    if isinstance(how, (int, float)):
        return _sigmoid(_logit(score) / how)
    places, values = how
    return (1 - _SLOPE) * np.interp(score, places, values) + _SLOPE * score


def _logit(score: np.ndarray) -> np.ndarray:
    score = np.clip(score, 1e-9, 1 - 1e-9)
    return np.log(score) - np.log1p(-score)


def _sigmoid(logit: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-np.clip(logit, -700, 700)))


def _is_whole(values: Any) -> bool:
    try:
        maps = [values["overall"], *values["classes"].values()]
        known = {field.name for field in dataclasses.fields(Recalibration)}
        return set(values) <= known and all(np.isfinite(_mapped(np.ones(1), m)) for m in maps)
    except (TypeError, KeyError, AttributeError, ValueError):
        return False
