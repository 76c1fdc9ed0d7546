"""The last evaluation of a run on a data set, read from what the evaluator wrote.

Shapes: C classes.
"""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any, Dict, List, Optional

import numpy as np

from d2ext._text import as_json, printable
from d2ext.analysis.results_report import analyze, class_images
from d2ext.data.checks.json_file import file_name, guess_form
from d2ext.data.checks.json_text import read_json
from d2ext.evaluation.ground_truth import GroundTruth
from d2ext.evaluation.matching import Verdict, match
from d2ext.evaluation.predictions import Predictions
from d2ext.evaluation.results import detections_of_predictions, truth_of
from d2ext.evaluation.sources import annotation_source
from d2ext.run_index import describe_set, read_index

__all__ = ["AnnotatedSet", "Evaluation", "annotated_set", "find_evaluations"]

logger = logging.getLogger(__name__)


@dataclasses.dataclass
class AnnotatedSet:
    """A data set whose annotations could be read.

    Attributes:
        name: as it was registered.
        data: the content of its file, in COCO's or LVIS' form.
        truth: the same as arrays.
        image_root: folder of the images.
        style: "coco" or "lvis".
    """

    name: str
    data: Dict[str, Any]
    truth: GroundTruth
    image_root: Path
    style: str

    def files(self) -> Dict[Any, Path]:
        """Image id -> file."""
        images = self.data["images"]
        return {i["id"]: self.image_root / file_name(i, self.style) for i in images}


@dataclasses.dataclass
class Evaluation:
    """Detections of a run on a data set, and all figures of them.

    Attributes:
        folder: where the evaluator wrote.
        data: what was evaluated on.
        figures: of :func:`~d2ext.analysis.results_report.analyze`.
        verdict: each detection judged, at IoU 0.5.
    """

    folder: Path
    data: AnnotatedSet
    figures: Dict[str, Any]
    verdict: Verdict


def annotated_set(
    about: Dict[str, Any], folder: Path, known: Dict[str, AnnotatedSet]
) -> Optional[AnnotatedSet]:
    """Read the annotations that an index or an evaluation names; None, and a warning, if it fails.

    Args:
        about: ``name``, ``json_file`` and ``image_root``.
        folder: what a relative ``json_file`` is relative to.
        known: sets by file, which are not read again; filled.
    """
    name = str(about.get("name", ""))
    try:
        source = folder / about["json_file"] if about.get("json_file") else None
        key = str(source or name)
        if key not in known:
            if source is not None:
                data = read_json(str(source))
            else:
                data = annotation_source(name)
            known[key] = AnnotatedSet(name, data, truth_of(data), Path(), guess_form(data))
        root = Path(str(about.get("image_root") or "."))
        return dataclasses.replace(known[key], name=name, image_root=root)
    # Files of unknown origin, which were moved or cut off since.
    except Exception as error:
        said = printable((str(error) or type(error).__name__).splitlines()[0])
        logger.warning(f"The annotations of {printable(name)!r} are left out: {said}")
        return None


def find_evaluations(
    run: Path, known: Dict[str, AnnotatedSet], train_images: Optional[Dict[str, int]] = None
) -> List[Evaluation]:
    """The evaluations in a run's folder, and those that its index names.

    Args:
        run: the output folder.
        known: see :func:`annotated_set`.
        train_images: training images by class name; by default those of the evaluated set.
    """
    folders = sorted(path.parent for path in run.glob("inference*/*/instances_predictions.npz"))
    folders += [run / e["path"] for e in read_index(run) if e["kind"] == "evaluation"]
    found = []
    for folder in dict.fromkeys(folders):
        evaluation = _read_evaluation(folder, known, train_images)
        if evaluation is not None:
            found.append(evaluation)
    return found


def _read_evaluation(
    folder: Path, known: Dict[str, AnnotatedSet], train_images: Optional[Dict[str, int]]
) -> Optional[Evaluation]:
    try:
        if (folder / "evaluation.json").is_file():
            about = read_json(str(folder / "evaluation.json"))
        else:  # written before evaluators did, into a folder with the name of the set
            about = describe_set(folder.name)
        data = annotated_set(about, folder, known)
        if data is None:
            return None
        predictions = Predictions.load(str(folder / "instances_predictions.npz"))
        ids = np.asarray(about.get("category_ids") or data.truth.category_ids, dtype=np.int64)
        detections = detections_of_predictions(predictions, data.truth, ids[predictions.classes])
        images = class_images(data.truth)
        if train_images is not None:
            images = np.array([train_images.get(n, 0) for n in data.truth.category_names])
        style = str(about.get("style", data.style))
        figures = analyze(data.truth, detections, images, style=style)
        verdict = match(data.truth, detections, style=style)
    except Exception as error:  # as above
        said = printable((str(error) or type(error).__name__).splitlines()[0])
        logger.warning(f"The evaluation in {printable(folder)} is left out: {said}")
        return None
    return Evaluation(folder, data, figures, verdict)


def shown_json(value: Any) -> str:
    """JSON that can stand inside a ``<script>`` element: no text of it can end the element."""
    text = json.dumps(as_json(value), separators=(",", ":"), ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
