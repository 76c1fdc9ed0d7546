"""Precision, recall and F1 by score, and the scores from which on detections are worth showing.

Shapes: D detections, C classes, S scores.
"""

import dataclasses
import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Union

import numpy as np

from d2ext._files import RunError, atomic_write

from .matching import Verdict

__all__ = [
    "ScoreCurves",
    "Thresholds",
    "best_thresholds",
    "figures_at",
    "find_thresholds",
    "score_curves",
    "thresholds_of",
]

FILE_NAME = "thresholds.json"


@dataclasses.dataclass
class ScoreCurves:
    """Figures of the detections above each score, of each class and of all together.

    Attributes:
        scores: (S,), ascending.
        precision: (C + 1, S); 1 where nothing is detected. The last row has all classes.
        recall: (C + 1, S); NaN for a class without objects.
        f1: (C + 1, S) likewise.
    """

    scores: np.ndarray
    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray


def score_curves(
    verdict: Verdict, category_ids: Sequence[int], scores: Optional[np.ndarray] = None
) -> ScoreCurves:
    """Precision, recall and F1 by score.

    Raising the lowest score takes detections away and changes nothing about the others, because
    COCO's matching goes by falling score; so one matching serves for all scores.

    Args:
        verdict: from :func:`~d2ext.evaluation.matching.match`.
        category_ids: C ids.
        scores: (S,) ascending; 0, 0.01, ..., 1 by default.
    """
    scores = np.linspace(0, 1, 101) if scores is None else np.asarray(scores, dtype=np.float64)
    counted = verdict.kind != "ignored"
    right = verdict.kind == "right"
    rows = []
    for key in (*category_ids, None):
        mine = counted if key is None else counted & (verdict.category == key)
        objects = len(verdict.gt_category)
        if key is not None:
            objects = int((verdict.gt_category == key).sum())
        rows.append(_curve(verdict.score[mine], right[mine], objects, scores))
    precision, recall, f1 = (np.stack(column) for column in zip(*rows))
    return ScoreCurves(scores, precision, recall, f1)


def _curve(score: np.ndarray, right: np.ndarray, objects: int, scores: np.ndarray) -> tuple:
    order = np.argsort(score, kind="stable")
    start = np.searchsorted(score[order], scores, side="left")
    shown = len(score) - start
    hits = np.concatenate([np.cumsum(right[order][::-1])[::-1], [0]])[start].astype(np.float64)
    precision = np.where(shown > 0, hits / np.maximum(shown, 1), 1.0)
    if objects == 0:
        return precision, np.full(len(scores), np.nan), np.full(len(scores), np.nan)
    return precision, hits / objects, 2 * hits / (shown + objects)


def figures_at(
    verdict: Verdict, category_ids: Sequence[int], least: Sequence[float]
) -> List[Dict[str, float]]:
    """What the detections from a score on show, class by class.

    The localisation recall precision error (Oksuz et al., Localization Recall Precision, ECCV 2018)
    counts what is missing and what is wrong as 1 and a right box by how far it is off, between 0
    and 1; it is the mean over objects and wrong detections.

    Args:
        verdict: from :func:`~d2ext.evaluation.matching.match`.
        category_ids: C ids.
        least: C scores.

    Returns:
        For each class ``precision``, ``recall``, ``f1`` and ``lrp``, NaN without objects.
    """
    rows = []
    for key, score in zip(category_ids, least):
        mine = (verdict.category == key) & (verdict.kind != "ignored") & (verdict.score >= score)
        right = verdict.kind[mine] == "right"
        objects = int((verdict.gt_category == key).sum())
        figures = _curve(verdict.score[mine], right, objects, np.array([score]))
        row = dict(zip(("precision", "recall", "f1"), (float(f[0]) for f in figures)))
        off = (1 - verdict.iou[mine][right]) / (1 - verdict.iou_threshold)
        others = len(right) - len(off) + objects - len(off)
        row["lrp"] = float((off.sum() + others) / (len(off) + others)) if objects else float("nan")
        rows.append(row)
    return rows


@dataclasses.dataclass
class Thresholds:
    """The lowest score worth showing, of each class and of all classes together.

    Attributes:
        overall: for classes that are not named here.
        classes: by class name; None where a class had no object to choose with.
        figures: precision, recall and f1 at the thresholds, by class name, and of all classes at
            ``overall`` under "".
        source: what they were chosen on.
    """

    overall: float
    classes: Dict[str, Optional[float]]
    figures: Dict[str, Dict[str, Optional[float]]] = dataclasses.field(default_factory=dict)
    source: str = ""

    def of(self, names: Sequence[str]) -> List[float]:
        """One threshold a class, ``overall`` for classes without their own."""
        found = (self.classes.get(name) for name in names)
        return [self.overall if value is None else value for value in found]

    def save(self, path: Union[str, Path]) -> Path:
        """Write them as JSON."""
        path = Path(path)
        with atomic_write(str(path)) as stream:
            stream.write(self.to_json())
        return path

    def to_json(self) -> bytes:
        """The content of their file."""
        return (json.dumps(dataclasses.asdict(self), indent=1) + "\n").encode()

    @classmethod
    def load(cls, path: Union[str, Path]) -> "Thresholds":
        """Read what :meth:`save` wrote."""
        from d2ext.data.checks.json_text import read_json

        values = read_json(str(path))
        try:
            overall, classes = values["overall"], values["classes"]
            good = _is_score(overall) and all(v is None or _is_score(v) for v in classes.values())
        except (TypeError, KeyError, AttributeError):
            good = False
        if not good:
            raise RunError(
                f"{path} holds no thresholds: 'overall' is a score and 'classes' has one for each "
                "class name; write it again with d2ext val or d2ext analyze."
            )
        return cls(
            float(overall), dict(classes), values.get("figures") or {}, values.get("source") or ""
        )


def _is_score(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def best_thresholds(
    verdict: Verdict, category_ids: Sequence[int], names: Sequence[str], source: str = ""
) -> Thresholds:
    """The scores with the highest F1: of each class, and one for the pooled detections of all.

    Of scores with equal F1 the highest is chosen: the same quality with fewer detections.

    Args:
        verdict: from :func:`~d2ext.evaluation.matching.match`, at the IoU that counts.
        category_ids, names: C each.
        source: what the detections are of.
    """
    classes: Dict[str, Optional[float]] = {}
    figures: Dict[str, Dict[str, Optional[float]]] = {}
    counted = verdict.kind != "ignored"
    overall = 0.5
    for key, name in (*zip(category_ids, names), (None, "")):
        mine = counted if key is None else counted & (verdict.category == key)
        objects = verdict.gt_category if key is None else verdict.gt_category == key
        count = len(objects) if key is None else int(objects.sum())
        score, right = verdict.score[mine], verdict.kind[mine] == "right"
        best: Optional[float] = None
        if count and right.any():
            tried = np.unique(score)
            precision, recall, f1 = _curve(score, right, count, tried)
            k = len(f1) - 1 - int(f1[::-1].argmax())
            best = float(tried[k])
            row = {"precision": precision[k], "recall": recall[k], "f1": f1[k]}
            figures[name] = {title: float(value) for title, value in row.items()}
        if key is None:
            overall = overall if best is None else best
        else:
            classes[name] = best
    return Thresholds(min(overall, 1.0), classes, figures, source)


def find_thresholds(weights: Union[str, Path]) -> Path:
    """The thresholds that belong to a checkpoint: beside it, or of its run's last evaluation.

    Args:
        weights: a checkpoint ``<name>.pth``. Looked for are ``<name>.thresholds.json`` and
            ``thresholds.json`` in its folder and, for the final checkpoint of a run, the newest
            of ``inference/*/thresholds.json``, which the evaluation after the last step wrote.

    Raises:
        RunError: if there are none
    """
    weights = Path(weights)
    places = [weights.with_suffix(f".{FILE_NAME}"), weights.parent / FILE_NAME]
    if weights.stem == "model_final":
        written = weights.parent.glob(f"inference/*/{FILE_NAME}")
        places += sorted(written, key=lambda p: p.stat().st_mtime, reverse=True)
    for place in places:
        if place.is_file():
            return place
    raise RunError(
        f"There are no thresholds for {weights}: neither {places[0].name} nor {FILE_NAME} lies "
        "beside it; make them with 'd2ext val --weights', or give a number with --threshold."
    )


def thresholds_of(
    weights: Union[str, Path], about: Dict[str, Any], names: Sequence[str]
) -> Thresholds:
    """Those that :func:`find_thresholds` finds, else those that a file holds.

    Args:
        weights: a checkpoint or an exported detector.
        about: what it says about itself.
        names: of the classes.
    """
    try:
        return Thresholds.load(find_thresholds(weights))
    except RunError:
        if "thresholds" not in about:
            raise
    return Thresholds(0.5, dict(zip(names, about["thresholds"])), source=about.get("chosen_on", ""))
