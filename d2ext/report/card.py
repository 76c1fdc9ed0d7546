"""The card of a model: data, figures, thresholds, limits, licences, from the files of its run."""

import json
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from d2ext._text import printable

from .evaluation import AnnotatedSet, Evaluation
from .page import collect
from .run import load_run
from .summary import advice

__all__ = ["make_card"]

# A class with fewer objects to learn from is named.
_FEW = 50


def make_card(about: Dict[str, Any], run: Optional[Path], weights: Path, licence: str = "") -> str:
    """The card as Markdown, with the YAML header that the Hugging Face hub reads.

    Args:
        about: what the exported detector says about itself.
        run: the output folder of its training; None: the card says what is not known.
        weights: what was exported.
        licence: of the weights, as the hub abbreviates it.
    """
    sets: List[Tuple[str, AnnotatedSet]] = []
    evaluations: List[Evaluation] = []
    if run is not None:
        sets, (evaluations,) = collect([load_run(run)])
    title = f"{about['detector']} for {_and(about['class_names'][:5])}"
    if len(about["class_names"]) > 5:
        title += f" and {len(about['class_names']) - 5} more classes"
    sections = {
        "Use": _use(),
        "Data": _data(sets),
        "Figures": _figures(evaluations, weights),
        "Thresholds and calibration": _thresholds(about),
        "Limits": _limits(about, sets, evaluations),
        "Licence": _licence(sets, licence),
        "Where it comes from": _origin(about, weights),
    }
    text = [_header(licence), f"# {title}"]
    text += [f"## {name}\n\n{part}" for name, part in sections.items()]
    return "\n\n".join(text) + "\n"


def _header(licence: str) -> str:
    lines = ["library_name: d2ext", "pipeline_tag: object-detection", "tags: [detectron2, d2ext]"]
    return "\n".join(["---", *([f"license: {licence}"] if licence else []), *lines, "---"])


def _use() -> str:
    return (
        "```python\nimport d2ext\n\n"
        'predictor = d2ext.Predictor(None, "FOLDER_OR_FILE", score_thresh="auto")\n'
        'found = predictor("photo.jpg")["instances"]\n```'
    )


def _data(sets: Sequence[Tuple[str, AnnotatedSet]]) -> str:
    if not sets:
        return "The run names no data set that could be read."
    # Not "test": the run says so of what it was evaluated on, which may be a validation split.
    use = {"train": "training", "test": "evaluation"}
    rows = [
        (
            use.get(split, split),
            _shown(data.name),
            str(len(data.data["images"])),
            str(len(data.truth)),
        )
        for split, data in sets
    ]
    train = next((data for split, data in sets if split == "train"), sets[0][1])
    counts = _objects(train)
    classes = ", ".join(f"{_shown(name)} {count}" for name, count in counts.items())
    table = _table(("used for", "data set", "images", "objects"), rows)
    return f"{table}\n\nObjects in {_shown(train.name)}: {classes}."


def _objects(data: AnnotatedSet) -> Dict[str, int]:
    names = data.truth.category_names
    counts = np.bincount(data.truth.category[~data.truth.crowd], minlength=len(names))
    return dict(zip(names, counts.tolist()))


def _figures(evaluations: Sequence[Evaluation], weights: Path) -> str:
    rows = []
    for e in evaluations:
        of = _weights_of(e) or "the last step"
        values = [e.figures[key] for key in ("AP", "AP50", "AP75")]
        values.append(e.figures["sizes"]["small"]["AP"])
        rows.append((_shown(e.data.name), of, *map(_number, values)))
        rows += [
            (f"- {_shown(row['name'])}", of, _number(row["AP"]), "", "", "")
            for row in e.figures["classes"]
        ]
    if not rows:
        return "There is no evaluation in the run's folder; `d2ext val` makes one."
    head = ("images", "weights", "AP", "AP50", "AP75", "AP, small")
    return f"COCO's average precision, in percent.\n\n{_table(head, rows)}"


def _weights_of(evaluation: Evaluation) -> str:
    """The weights that ``d2ext val`` evaluated; "" for an evaluation of the training."""
    path = evaluation.folder.parents[1] / "figures.json"
    try:
        return Path(json.loads(path.read_text())["weights"]).name
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _thresholds(about: Dict[str, Any]) -> str:
    lines = []
    if "thresholds" in about:
        pairs = zip(about["class_names"], about["thresholds"])
        each = ", ".join(f"{_shown(name)} {score:.2f}" for name, score in pairs)
        where = about.get("chosen_on") or "an evaluation"
        lines.append(f"Scores with the highest F1 on {_shown(where)}: {each}.")
    else:
        lines.append("No thresholds were chosen.")
    found = about.get("calibration")
    if found:
        lines.append(
            f"Scores can be made probabilities (`calibrated=True`): {found['method']}, fitted on "
            f"{_shown(found['source'])}."
        )
    else:
        lines.append("Scores are no probabilities.")
    return "\n".join(lines)


def _limits(
    about: Dict[str, Any],
    sets: Sequence[Tuple[str, AnnotatedSet]],
    evaluations: Sequence[Evaluation],
) -> str:
    lines = [
        "It knows the classes above alone, and photographs like those it was trained on; with "
        "others it was not tried."
    ]
    train = next((data for split, data in sets if split == "train"), None)
    if train is not None:
        rare = [name for name, count in _objects(train).items() if count < _FEW]
        if rare:
            lines.append(f"Fewer than {_FEW} objects to learn from: {_and(rare)}.")
        sides = np.sqrt(np.asarray(train.truth.area, dtype=float))
        if len(sides):
            least = np.percentile(sides, 5)
            lines.append(f"95 % of the objects it learnt from are larger than {least:.0f} pixels.")
    for e in evaluations:
        own = advice(e.data.name, [e], [""])["lines"]
        # What could be done about it is for those who train.
        told = [_plain(line.split(";")[0]).rstrip(".") for line in own if line[:4] != "Show"]
        lines += [f"{_shown(e.data.name)}: {line}." for line in told]
    return "\n".join(f"* {line}" for line in lines)


def _licence(sets: Sequence[Tuple[str, AnnotatedSet]], licence: str) -> str:
    lines = [f"Weights: {licence or 'not decided; whoever publishes them says it'}."]
    for name, said in {data.name: _licence_of(data) for _, data in sets}.items():
        lines.append(f"{_shown(name)}: {said or 'no licence beside the data'}.")
    return "\n".join(f"* {line}" for line in [*lines, "d2ext, which runs it: Apache-2.0."])


def _licence_of(data: AnnotatedSet) -> str:
    """What the annotation file names, else the first line of a licence near the images."""
    rows = data.data.get("licenses")
    named = [str(row.get("name", "")) for row in rows or [] if isinstance(row, dict)]
    if any(named):
        return _plain(printable(", ".join(filter(None, named)), 200))
    for folder in (data.image_root, *data.image_root.parents[:2]):
        for path in sorted(folder.glob("LICEN[CS]E*")):
            lines = path.read_text(errors="replace").strip().splitlines() if path.is_file() else []
            if lines:
                return f"{_shown(lines[0].strip())} ({path.name})"
    return ""


def _origin(about: Dict[str, Any], weights: Path) -> str:
    digest = about.get("checkpoint_sha256")
    of = f" of {weights.name} (SHA-256 {digest})" if digest else ""
    return f"Written by d2ext {about['version']}{of}. The config is beside or inside the file."


def _number(value: Optional[float]) -> str:
    return "" if value is None or not np.isfinite(value) else f"{value:.1f}"


def _shown(name: Any) -> str:
    return _plain(printable(name, 60))


def _plain(text: str) -> str:
    """Text that is neither HTML nor a table."""
    return text.replace("<", "&lt;").replace("|", "\\|")


def _and(names: Sequence[str]) -> str:
    names = [_shown(name) for name in names]
    return " and ".join([", ".join(names[:-1]), names[-1]]) if len(names) > 1 else names[0]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
