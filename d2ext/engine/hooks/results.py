"""What the evaluations of a run have given: a table, the best of them, and where everything is."""

import csv
import io
import json
import logging
import os
import shlex
import time
from datetime import timedelta
from typing import Any, Dict, List

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils import comm

from d2ext._files import atomic_write, writing

from .base import HookBase
from .evaluate import BestCheckpointer, figures_of, main_figure

__all__ = ["SUMMARY", "ResultsTable", "read_summary", "tell_results"]

logger = logging.getLogger(__name__)

#: The file in the output folder that says what a finished run gave.
SUMMARY = "summary.json"


class ResultsTable(HookBase):
    """Keeps ``results.csv``, a line an evaluation, and tells at the end what there is.

    The lines are part of the trainer's state: the file of a resumed run is that of a run that was
    never interrupted. Figures of single classes are left to ``metrics.json``.

    Args:
        folder: where the file goes; "" for none.
    """

    def __init__(self, folder: str):
        self._folder = folder
        self.rows: List[Dict[str, float]] = []
        self._began = time.monotonic()

    def after_step(self) -> None:
        figures = {k: v for k, v in figures_of(self.trainer).items() if "AP-" not in k}
        if not figures:
            return
        self.trainer.flush_metrics()
        newest = self.trainer.storage.latest()
        row: Dict[str, float] = {"step": self.trainer.iter + 1}
        for name in ("total_loss", "lr"):
            if name in newest:
                row[name] = newest[name][0]
        # A run that was killed after an evaluation repeats it.
        self.rows = [r for r in self.rows if r["step"] < row["step"]]
        self.rows.append({**row, **figures})
        self._write()

    def _write(self) -> None:
        if not (self._folder and comm.is_main_process()):
            return
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        path = os.path.join(self._folder, "results.csv")
        with writing(path), atomic_write(path) as stream:
            stream.write(text.getvalue().encode())

    def tell(self) -> None:
        """Say and write, on rank 0 of a finished run, what came out and what to do next."""
        if not (self.trainer.finished and comm.is_main_process()):
            return
        summary = self.summary()
        if self._folder:
            path = os.path.join(self._folder, SUMMARY)
            with writing(path), atomic_write(path) as stream:
                stream.write(json.dumps(summary, indent=1).encode())
        logger.info("\n".join(_sentences(summary, time.monotonic() - self._began)))

    def summary(self) -> Dict[str, Any]:
        """The best evaluation, and the files of the run that are there."""
        folder = self._folder
        found = [h for h in self.trainer.all_hooks if isinstance(h, BestCheckpointer)]
        last = self.rows[-1] if self.rows else {}
        metric = main_figure(last)
        value, step = last.get(metric or ""), self.trainer.completed_steps
        for hook in found[:1]:
            if hook.best is not None and hook.best_iter is not None:
                metric, value, step = hook.metric, hook.best, hook.best_iter + 1
        files = {
            "best_checkpoint": "model_best.pth",
            "last_checkpoint": "model_final.pth",
            "average": "model_final_ema.pth",
            "results": "results.csv",
            "metrics": "metrics.json",
            "log": "log.txt",
            "config": "config.yaml",
        }
        there = {key: os.path.join(folder, name) for key, name in files.items()}
        return {
            "steps": self.trainer.completed_steps,
            "metric": metric,
            "best": value,
            "best_step": step,
            "folder": folder,
            "files": {k: path for k, path in there.items() if folder and os.path.isfile(path)},
            "unwatched": _unwatched(getattr(self.trainer, "cfg", None)),
        }

    def state_dict(self) -> Dict[str, Any]:
        return {"rows": [dict(row) for row in self.rows]}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        self.rows = [dict(row) for row in state_dict["rows"]]


def _sentences(summary: Dict[str, Any], seconds: float) -> List[str]:
    files, folder = summary["files"], summary["folder"]
    lines = [
        f"Done: {summary['steps']} steps; this process took {timedelta(seconds=int(seconds))}."
    ]
    if summary["best"] is not None:
        lines.append(
            f"Best: {summary['metric']} {summary['best']:.4g} at step {summary['best_step']}."
        )
    names = {
        "best_checkpoint": "best checkpoint",
        "last_checkpoint": "last checkpoint",
        "average": "averaged weights",
        "results": "evaluations",
        "metrics": "all figures",
        "log": "log",
    }
    lines += [f"  {text:<17}{files[key]}" for key, text in names.items() if key in files]
    weights = files.get("best_checkpoint", files.get("last_checkpoint"))
    if weights:
        lines += [
            "Next:",
            f"  d2ext report {folder}",
            f"  d2ext predict --weights {weights} IMAGES",
        ]
        if summary["unwatched"]:
            data = shlex.quote(summary["unwatched"])
            lines.append(f"  d2ext val --weights {weights} --data {data} --split test")
    return lines


def _unwatched(cfg: Any) -> str:
    """The user's data whose test split the training has not evaluated on; "": none."""
    path = cfg.DATASETS.DATA if cfg is not None else ""
    for name in DatasetCatalog.list() if path else ():
        about = MetadataCatalog.get(name)
        is_test = os.path.basename(about.get("json_file") or "") == "test.json"
        if is_test and about.get("own_data") == path and name not in cfg.DATASETS.TEST:
            return str(path)
    return ""


def read_summary(folder: str) -> Dict[str, Any]:
    """What :meth:`ResultsTable.tell` wrote into a run's folder; empty if it did not."""
    try:
        with open(os.path.join(folder, SUMMARY)) as stream:
            return json.load(stream)
    except (OSError, ValueError):
        return {}


def tell_results(trainer: Any) -> None:
    """:meth:`ResultsTable.tell` of a trainer that has one."""
    for hook in trainer.all_hooks:
        if isinstance(hook, ResultsTable):
            hook.tell()
