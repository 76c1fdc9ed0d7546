"""What a training left in its output folder, read for a report.

Shapes: T rows of ``metrics.json``, C classes.
"""

import json
import logging
import math
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import numpy as np

from d2ext._text import printable

__all__ = ["Run", "differences", "evaluated_figure", "is_evaluated", "is_loss", "load_run"]

logger = logging.getLogger(__name__)

# What is larger cannot be drawn; a config has some 600 keys, and lists of some 20 numbers.
_LARGEST = 1e300
_MOST_KEYS, _MOST_PARTS = 5000, 2000

# What evaluators call their tasks, Detectron2's own ones too.
_TASKS = {"bbox", "segm", "keypoints", "box_proposals", "sem_seg", "panoptic_seg"}


def evaluated_figure(name: str) -> Optional[Tuple[str, str]]:
    """Task and figure of an evaluation: ("bbox", "AP50"); None for what else is logged.

    Before the task is "ema" for the model's average, and the data set if DATASETS.TEST has several:
    ("ema/x_val/bbox", "AP50"). A "-" is in figures of single classes alone.
    """
    words = name.split("/")
    for k, word in enumerate(words[:-1]):
        if word in _TASKS:
            return "/".join(words[: k + 1]), "/".join(words[k + 1 :])
    return ("ema", "/".join(words[1:])) if words[0] == "ema" and len(words) > 1 else None


def is_evaluated(name: str) -> bool:
    """Whether a name is a figure of an evaluation, and not that of a single class."""
    figure = evaluated_figure(name)
    return figure is not None and "-" not in figure[1]


def is_loss(name: str) -> bool:
    """Whether a figure is a loss of the training."""
    return (
        name == "total_loss" or name.rsplit("/", 1)[-1].startswith("loss_") and "val/" not in name
    )


class Run:
    """One output folder.

    Attributes:
        name: what the run is called in the report.
        folder: the output folder.
        rows: what ``metrics.json`` has, in order of ``iteration``.
        config: what ``config.yaml`` says, by dotted names; empty if there is none.
    """

    def __init__(self, name: str, folder: Path, rows: List[Dict], config: Dict[str, Any]):
        self.name, self.folder, self.rows, self.config = name, folder, rows, config
        self._state: Optional[Dict[str, np.ndarray]] = None
        self._series: Optional[Dict[str, Tuple[np.ndarray, np.ndarray]]] = None

    def names(self) -> List[str]:
        """All figures that were logged, in order of their first row."""
        return list(self._all_series())

    def series(self, name: str) -> Tuple[np.ndarray, np.ndarray]:
        """Iterations and values of a figure: (T,) each."""
        return self._all_series().get(name, (np.zeros(0), np.zeros(0)))

    def _all_series(self) -> Dict[str, Tuple[np.ndarray, np.ndarray]]:
        if self._series is None:
            columns: Dict[str, Tuple[list, list]] = {}
            for row in self.rows:
                for key, value in row.items():
                    steps, values = columns.setdefault(key, ([], []))
                    if _is_number(value):
                        steps.append(row["iteration"])
                        values.append(value)
            self._series = {
                key: (np.array(steps, dtype=float), np.array(values, dtype=float))
                for key, (steps, values) in columns.items()
            }
        return self._series

    def last(self, name: str) -> Optional[float]:
        """The last value of a figure, if it was ever logged."""
        values = self.series(name)[1]
        return float(values[-1]) if len(values) else None

    def evaluated(self) -> List[str]:
        """Names of the evaluation's figures but those of single classes."""
        return list(filter(is_evaluated, self.names()))

    def class_ap(self) -> Dict[str, Optional[float]]:
        """The last AP of each class by name; followed by the data set if there are several."""
        found = []
        for name in self.names():
            task, figure = evaluated_figure(name) or ("", "")
            data, _, task = task.rpartition("/")
            if task == "bbox" and figure.startswith("AP-") and data.split("/")[0] != "ema":
                found.append((data, figure[len("AP-") :], name))
        several = len({data for data, _, _ in found}) > 1
        return {
            f"{label} ({data})" if several else label: self.last(name)
            for data, label, name in found
        }

    def raw_loss(self, name: str) -> Optional[np.ndarray]:
        """A loss before its adaptive weight: (T,) as :meth:`series`; None if it has no such weight.

        The losses of ``metrics.json`` are the weighted ones; the weight is the last one logged.
        """
        side = self._weight_of(name)
        if side is None:
            return None
        steps, weighted = self.series(name)
        when, weights = self.series(side)
        if not len(when):
            return None
        index = np.searchsorted(when, steps, side="right") - 1
        current = np.where(index >= 0, weights[np.maximum(index, 0)], 1.0)
        return weighted / np.where(current > 0, current, np.nan)

    def _weight_of(self, name: str) -> Optional[str]:
        if not self.config.get("SOLVER.ALWA.ENABLED"):
            return None
        from d2ext.engine.hooks.loss_groups import find_groups

        losses = [k for k in self.names() if is_loss(k) and k != "total_loss"]
        try:
            groups = find_groups(tuple(self.config.get("SOLVER.ALWA.GROUPS", ())), losses)
        except (KeyError, ValueError):
            return None
        for group in groups:
            if name in group.cls:
                return f"alwa/{group.name}/w_cls"
            if name in group.box:
                return f"alwa/{group.name}/w_box"
        return None

    def state(self) -> Dict[str, np.ndarray]:
        """Statistics of class losses and of sampling-free training in the last checkpoint."""
        if self._state is None:
            self._state = _read_state(self.folder)
        return self._state

    def seconds(self) -> float:
        """Median seconds of a step; NaN if none were logged."""
        values = self.series("time")[1]
        return float(np.median(values)) if len(values) else math.nan


def _is_number(value: Any) -> bool:
    """Whether a value can be drawn: JSON also has NaN, Infinity and integers beyond all floats."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return -_LARGEST < value < _LARGEST


def load_run(folder: Path, name: str = "") -> Run:
    """Read an output folder, in which all files but one may be missing or damaged.

    Args:
        folder: it has to hold ``metrics.json``; ``config.yaml`` and checkpoints are optional.
        name: what to call the run; the folder's name if not given.
    """
    folder = Path(folder)
    path = folder / "metrics.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no metrics.json; give the OUTPUT_DIR of a training that has begun."
        )
    # A resumed run repeats rows: the last one of an iteration counts.
    merged: Dict[int, Dict] = {}
    for line in path.read_bytes().decode("utf-8", "replace").splitlines():
        try:
            row = json.loads(line)
        # The last line of a run that was killed while it wrote, or no line of a training.
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and _is_number(row.get("iteration")):
            merged.setdefault(row["iteration"], {}).update(row)
    rows = [merged[key] for key in sorted(merged)]
    return Run(name or folder.resolve().name, folder, rows, _read_config(folder / "config.yaml"))


def _read_config(path: Path) -> Dict[str, Any]:
    import yaml

    if not path.is_file():
        return {}
    try:
        values = yaml.safe_load(path.read_bytes().decode("utf-8", "replace"))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        logger.warning(f"{path} is not plain YAML and is left out: {str(error).splitlines()[0]}")
        return {}
    return _flat(values) if isinstance(values, dict) else {}


def _flat(values: Dict[Any, Any]) -> Dict[str, Any]:
    """Nested dictionaries as one, by dotted names; no more of it than a config has.

    In YAML a few lines that refer to each other, or to themselves, stand for any number of values.
    """
    flat: Dict[str, Any] = {}
    waiting = [("", values)]
    while waiting and len(flat) < _MOST_KEYS:
        prefix, part = waiting.pop()
        for key, value in part.items():
            name = f"{prefix}{key}"
            if isinstance(value, dict) and name.count(".") < 12:
                waiting.append((f"{name}.", value))
            else:
                flat[name] = value if _is_small(value) else "(too large to show)"
            if len(flat) + len(waiting) >= _MOST_KEYS:
                logger.warning(f"The config has more than {_MOST_KEYS} keys; the rest is left out.")
                return flat
    return flat


def _is_small(value: Any) -> bool:
    """Whether a value has at most some thousand parts, however often it refers to itself."""
    waiting, count = [value], 0
    while waiting:
        part = waiting.pop()
        count += 1
        if count > _MOST_PARTS:
            return False
        if isinstance(part, dict):
            waiting += part.values()
        elif isinstance(part, (list, tuple)):
            waiting += part[: _MOST_PARTS + 1]
    return True


def _read_state(folder: Path) -> Dict[str, np.ndarray]:
    """Buffers by name; nothing where there is no checkpoint that reads without running code."""
    import torch

    from d2ext.safe_load import load_tensors

    tag = folder / "last_checkpoint"
    name = tag.read_bytes().decode("utf-8", "replace").strip() if tag.is_file() else ""
    name = name or "model_final.pth"
    path = folder / Path(name).name
    if not path.is_file():
        return {}
    try:
        content = load_tensors(str(path))
    except Exception as error:  # a checkpoint of another program may hold anything
        said = (str(error) or type(error).__name__).splitlines()[0]
        logger.warning(f"{path} is left out: {printable(said)}")
        return {}
    model = content.get("model", {}) if isinstance(content, dict) else {}
    wanted = ("pos_neg", "prior", "fg_ratio", "class_counts")
    return {
        key: value.double().numpy()
        for key, value in model.items()
        if torch.is_tensor(value) and key.rsplit(".", 1)[-1] in wanted
    }


def differences(runs: List[Run]) -> Dict[str, List[Any]]:
    """Config keys in which runs differ, with each run's value; None where it has none."""
    keys = sorted({key for run in runs for key in run.config} - {"OUTPUT_DIR"})
    table = {key: [run.config.get(key) for run in runs] for key in keys}
    return {key: row for key, row in table.items() if any(v != row[0] for v in row)}
