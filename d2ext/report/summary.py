"""What to look at first, in a few sentences: the page's figures put into words."""

from typing import Any, Dict, List, Optional, Sequence

from d2ext._text import printable
from d2ext.evaluation.matching import FALSE_KINDS

from .evaluation import Evaluation

__all__ = ["advice"]

# What each kind of error asks for.
_REMEDIES = {
    "class": "look at the confusion matrix: the classes that are taken for each other need more "
    "examples, or are not told apart by their labels",
    "location": "boxes are found and do not fit: a finer level, a stronger box loss or tidier "
    "boxes in the training data help",
    "both": "neither class nor place is right: mostly too short a training",
    "duplicate": "several boxes stay on one object: lower the IoU of NMS",
    "background": "something without a label looks like an object: it may be one that was not "
    "annotated; see these images in the gallery",
    "missed": "nothing comes near these objects: see in the gallery whether they are small, cut "
    "off or rare",
}


def advice(name: str, row: Sequence[Optional[Evaluation]], runs: Sequence[str]) -> Dict[str, Any]:
    """Sentences about a data set's evaluations.

    Args:
        name: of the data set.
        row: each run's evaluation; None for a run that has none.
        runs: their names.
    """
    own = [(runs[k], e.figures) for k, e in enumerate(row) if e is not None]
    lines: List[str] = []
    if len(own) > 1:
        lines += _comparison(own)
    run, figures = max(own, key=lambda pair: pair[1]["AP"])
    which = f" of {run}" if len(own) > 1 else ""
    lines += [*_errors(figures, which), *_classes(figures), *_scores(figures)]
    return {"name": printable(name, 60), "lines": lines}


def _comparison(own: Sequence[Any]) -> List[str]:
    ranked = sorted(own, key=lambda pair: -pair[1]["AP"])
    text = ", ".join(f"{run} {figures['AP']:.1f}" for run, figures in ranked[:5])
    lines = [f"AP: {text}."]
    (best, a), (other, b) = ranked[0], ranked[1]
    second = {row["name"]: row["AP"] for row in b["classes"]}
    gaps = [
        (row["AP"] - second[row["name"]], row["name"])
        for row in a["classes"]
        if row["AP"] is not None and second.get(row["name"]) is not None
    ]
    if len(gaps) > 1:
        most, least = max(gaps), min(gaps)
        lines.append(
            f"{best} is ahead of {other} most on {printable(most[1], 40)} ({most[0]:+.1f} AP) and "
            f"least on {printable(least[1], 40)} ({least[0]:+.1f})."
        )
    return lines


def _errors(figures: Dict[str, Any], which: str) -> List[str]:
    cost = figures["errors"]["cost"]
    ranked = sorted((k for k in cost if cost[k] > 0.1), key=lambda k: -cost[k])
    lines = []
    for place, kind in enumerate(ranked[:2]):
        said = FALSE_KINDS.get(kind, "objects that no detection comes near")
        start = f"Most AP50{which} is lost to" if place == 0 else "Then to"
        lines.append(f"{start} “{kind}” ({said}): {cost[kind]:.1f} points; {_REMEDIES[kind]}.")
    return lines


def _classes(figures: Dict[str, Any]) -> List[str]:
    known = [row for row in figures["classes"] if row["AP"] is not None]
    if len(known) < 2:
        return []
    worst, best = min(known, key=lambda r: r["AP"]), max(known, key=lambda r: r["AP"])
    return [
        f"The weakest class is {printable(worst['name'], 40)} (AP {worst['AP']:.1f}, "
        f"{worst['images']} images, {worst['objects']} objects), the strongest "
        f"{printable(best['name'], 40)} (AP {best['AP']:.1f})."
    ]


def _scores(figures: Dict[str, Any]) -> List[str]:
    best, right = figures["thresholds"], figures["calibration"]["right at IoU 0.5"]
    lines = []
    if "f1" in best:
        lines.append(
            f"Show detections from score {best['overall']:.2f} on: F1 is highest there, "
            f"{best['f1']:.2f} (precision {best['precision']:.2f}, recall {best['recall']:.2f})."
        )
    if right["error"] > 0.1:
        gap = sum(
            c * (s - t) for c, s, t in zip(right["count"], right["score"], right["target"]) if c > 0
        )
        side = "higher" if gap > 0 else "lower"
        lines.append(
            f"Scores are not probabilities: they are {side} than the share of right detections, "
            f"by {right['error']:.2f} on average."
        )
    return lines
