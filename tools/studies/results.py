"""Finished runs: one JSON line each, kept in the study's folder and, on demand, beside its file."""

import json
import math
from pathlib import Path
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

from d2ext._files import atomic_write, writing
from d2ext.report.run import evaluated_figure, is_evaluated

from .bootstrap import image_bootstrap
from .definition import Run, Study
from .versions import versions as versions_now

__all__ = ["FROM_DETECTIONS", "Results", "last_figures", "learning_curves"]

#: What ``measure`` takes from the last detections; its other words are beginnings of names.
FROM_DETECTIONS = ("consistency", "bootstrap")


class Results:
    """The results file of a study.

    Args:
        study: the study.
        file: one JSON line a finished run.
    """

    def __init__(self, study: Study, file: Path):
        self.study = study
        self.file = Path(file)
        self.fingerprints = {run.key: run.fingerprint() for run in study.runs}

    def all(self) -> List[Dict[str, Any]]:
        """Every line, of old configs too."""
        return _read(self.file)

    def finished(self) -> List[Dict[str, Any]]:
        """The last line of every run whose config is still that of the study, in its order."""
        found: Dict[Tuple[str, int], Dict[str, Any]] = {}
        for record in self.all():
            key = record["name"], record["seed"]
            if self.fingerprints.get(key) == record["config"]:
                found[key] = record
        return [found[run.key] for run in self.study.runs if run.key in found]

    def missing(self) -> List[Run]:
        """Runs that have no result of their present config."""
        done = {(record["name"], record["seed"]) for record in self.finished()}
        return [run for run in self.study.runs if run.key not in done]

    def changed(self) -> List[Run]:
        """Runs that were finished with another config than they have now."""
        missing = {run.key: run for run in self.missing()}
        old = {(record["name"], record["seed"]) for record in self.all()}
        return [run for key, run in missing.items() if key in old]

    def add(
        self,
        run: Run,
        *,
        seconds: float,
        output: Path,
        resumed: bool,
        versions: Optional[Dict[str, str]] = None,
    ) -> str:
        """Append what a finished run's ``metrics.json`` says.

        Args:
            run: the run.
            seconds: wall time of its last start.
            output: its folder.
            resumed: whether an earlier start had done a part of it.
            versions: those it was started with. By default those of now without the commit, which
                may be another one than at the start.

        Returns:
            what was to be measured and could not be, in a sentence, or nothing.
        """
        metrics = output / "metrics.json"
        figures = last_figures(metrics)
        if not figures:
            raise ValueError(f"{metrics} has no evaluation; name a data set in DATASETS.TEST.")
        prefixes = tuple(word for word in self.study.measure if word not in FROM_DETECTIONS)
        if prefixes:
            figures.update(last_figures(metrics, prefixes))
        missing, beside = "", {}
        for word in FROM_DETECTIONS:
            if word not in self.study.measure:
                continue
            try:
                if word == "consistency":
                    figures.update(consistency(run, output))
                else:
                    beside[word] = bootstrap(run, output)
            except (OSError, ValueError, KeyError) as error:
                # Hours of training are not thrown away because one figure is missing.
                missing = f"its {word} cannot be measured, all else is kept: {error}"
        if versions is None:
            versions = {key: v for key, v in versions_now().items() if key != "commit"}
        record = {
            "name": run.name,
            "seed": run.seed,
            "config": self.fingerprints[run.key],
            "seconds": round(seconds, 1),
            "versions": versions,
            "figures": figures,
            "output": output.name,
            **beside,
        }
        if resumed:
            record["resumed"] = True
        curves = learning_curves(metrics)
        if curves:
            record["curves"] = curves
        self._append([record])
        return missing

    def take_over(self, file: Path) -> int:
        """Add lines of another results file that are finished runs here; returns how many."""
        other = Results(self.study, file).finished()
        missing = {run.key for run in self.missing()}
        new = [r for r in other if (r["name"], r["seed"]) in missing]
        if new:
            self._append(new)
        return len(new)

    def borrow(self, files: Iterable[Path]) -> int:
        """Add what other studies have finished of the same config and seed; returns how much.

        Their runs may have other names. A result that lacks what this study measures is no use.
        """
        records = [record for file in files for record in _read(file)]
        known = {record["config"]: record for record in records if self._is_measured(record)}
        prints = [(run, self.fingerprints[run.key]) for run in self.missing()]
        new = [{**known[config], "name": run.name} for run, config in prints if config in known]
        if new:
            self._append(new)
        return len(new)

    def _is_measured(self, record: Dict[str, Any]) -> bool:
        kept = [*record["figures"], *(word for word in FROM_DETECTIONS if word in record)]
        return all(any(key.startswith(word) for key in kept) for word in self.study.measure)

    def _append(self, records: Sequence[Dict[str, Any]]) -> None:
        text = "".join(map(_line, records))
        with writing(self.file):
            self.file.parent.mkdir(parents=True, exist_ok=True)
            if self.file.exists() and not self.file.read_bytes().endswith((b"\n",)):
                text = "\n" + text  # the last line was cut short
            # One write, so that lines of several processes do not mix.
            with open(self.file, "a") as stream:
                stream.write(text)

    def export(self, file: Path) -> int:
        """Write the finished runs, in the study's order, to ``file``; returns how many."""
        records = self.finished()
        with writing(file), atomic_write(str(file)) as stream:
            stream.writelines(_line(record).encode() for record in records)
        return len(records)


def _read(file: Path) -> List[Dict[str, Any]]:
    """The lines of a results file. One that a full disk cut short is left out."""
    found = []
    if file.exists():
        for line in file.read_text().splitlines():
            try:
                found.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return found


def _line(record: Dict[str, Any]) -> str:
    return json.dumps(_without_nan(record), allow_nan=False) + "\n"


def _without_nan(value: Any) -> Any:
    """JSON knows no NaN and no infinity: a figure that is one is null."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _evaluations(
    metrics: Path, prefixes: Optional[Tuple[str, ...]] = None
) -> List[Tuple[int, Dict[str, float]]]:
    """Iteration and figures of every line of a ``metrics.json`` that has some."""
    found = []
    if metrics.exists():
        for line in metrics.read_text().splitlines():
            values = json.loads(line)
            figures = {
                key: value
                for key, value in values.items()
                if (key.startswith(prefixes) if prefixes else evaluated_figure(key))
                and isinstance(value, (int, float))
            }
            if figures:
                found.append((int(values.get("iteration", 0)), figures))
    return found


def last_figures(metrics: Path, prefixes: Optional[Tuple[str, ...]] = None) -> Dict[str, float]:
    """The last value of every figure of such a beginning in a ``metrics.json``.

    Without beginnings those of evaluations, of whichever data set and task.
    """
    found: Dict[str, float] = {}
    for _, figures in _evaluations(metrics, prefixes):
        found.update(figures)
    return found


def consistency(run: Run, output: Path) -> Dict[str, float]:
    """How far the scores of a run's last detections follow their IoUs, as ``consistency/...``."""
    from d2ext.analysis.consistency import score_iou_consistency

    summary = score_iou_consistency(*_last_detections(run, output))
    return {f"consistency/{k}": v for k, v in summary.items()}


def bootstrap(run: Run, output: Path) -> List[float]:
    """AP of a run's last detections on test images that are drawn again and again."""
    aps = image_bootstrap(*(_load(file) for file in _last_detections(run, output)))
    return [round(ap, 2) for ap in aps]


def _load(file: Path) -> Any:
    return json.loads(Path(file).read_text(encoding="utf-8"))


def _last_detections(run: Run, output: Path) -> Tuple[Path, Path]:
    """The files of a run's last detections and of the annotations; the first data set counts."""
    from d2ext.analysis.consistency import annotation_file

    names = run.resolve().DATASETS.TEST
    if not names:
        raise ValueError("DATASETS.TEST names no data set.")
    detections = output / "inference" / names[0] / "coco_instances_results.json"
    return detections, annotation_file(names[0])


def learning_curves(metrics: Path) -> Dict[str, List[Sequence[float]]]:
    """(iteration, value) pairs of each figure that was evaluated several times.

    Figures of single classes are left out: there are too many of them for a results file.
    """
    curves: Dict[str, Dict[int, float]] = {}
    for iteration, figures in _evaluations(metrics):
        for key, value in figures.items():
            if is_evaluated(key):
                # A resumed run may repeat an evaluation: the last counts.
                curves.setdefault(key, {})[iteration] = value
    return {key: sorted(points.items()) for key, points in curves.items() if len(points) > 1}
