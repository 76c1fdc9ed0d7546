"""A disk that is full in a random step: one sentence, and the last good checkpoint goes on."""

import random
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, List

from .compare import run_differences
from .kills import EVERYTHING, STEPS
from .record import Record, table
from .runs import Run, train

__all__ = ["KINDS", "DiskCampaign"]

KINDS = {
    "checkpoint": "a checkpoint",
    "metrics": "metrics.json",
    "predictions": "the predictions of an evaluation",
    "anything": "whatever comes first",
}
_NO_BEST = ("ENGINE.BEST_CHECKPOINT.METRIC", "")
_FILES = {
    "checkpoint": "model_",
    "metrics": "metrics.json",
    "predictions": "inference/tiny_val/",
    "anything": "",
}
# Words and steps with which that file is the first to be written behind the step.
_WORDS = {
    "checkpoint": ("TEST.EVAL_PERIOD", 0, "ENGINE.LOG_PERIOD", 100),
    "metrics": ("SOLVER.CHECKPOINT_PERIOD", 6, "TEST.EVAL_PERIOD", 6, *_NO_BEST),
    "predictions": ("SOLVER.CHECKPOINT_PERIOD", 3, "ENGINE.LOG_PERIOD", 100, *_NO_BEST),
    "anything": (),
}
_STEPS = {
    "checkpoint": range(STEPS),
    "metrics": range(4),
    "predictions": (3, 6, 7),
    "anything": range(STEPS),
}


class DiskCampaign:
    """Fills the disk, as RLIMIT_FSIZE lets a process see it, then frees it and resumes."""

    def __init__(self, data: Path, folder: Path, record: Record, seed: int = 0):
        self.data, self.folder, self.record, self.seed = data, Path(folder), record, seed
        self._whole: Dict[str, Path] = {}

    def run(self, count: int, report: Callable = print) -> bool:
        """Attack until ``count`` are on record; returns whether all ended well."""
        while len(self.record.lines) < count:
            line = self.record.add(**self.attack(len(self.record.lines)))
            state = "LOST" if line["problems"] else "equal"
            report(f"{len(self.record.lines)} of {count} full disks, {line['kind']}: {state}")
        return not any(line["problems"] for line in self.record.lines)

    def attack(self, index: int) -> Dict[str, Any]:
        """Fill the disk once; what was said, and whether the resumed run comes to the same."""
        rng = random.Random(f"{self.seed} {index}")
        kind = list(KINDS)[index % len(KINDS)]
        words = (*EVERYTHING, *_WORDS[kind])
        if kind not in self._whole:
            whole = self.folder / f"whole_{kind}"
            shutil.rmtree(whole, ignore_errors=True)
            train(self.data, whole, *words)
            self._whole[kind] = whole
        out = self.folder / "full"
        shutil.rmtree(out, ignore_errors=True)
        size, step = rng.randrange(1, 500), rng.choice(_STEPS[kind])
        run = Run(self.data, out, *words, sabotage=f"fill-disk {step} {size}", pipe=True)
        code, text = run.wait(), run.text
        said = [x for x in text.splitlines() if "free some disk space" in x]
        problems = []
        if code != 1:
            problems.append(f"exit code {code}")
        if len(said) != 1 or "Traceback" in text:
            problems.append(f"not one sentence: {text[-2000:]}")
        elif _FILES[kind] not in said[0]:
            problems.append(f"another file: {said[0]}")
        train(self.data, out, "--resume", *words)
        files = [p.name for p in self._whole[kind].glob("model_[fb]*.pth")]
        problems += run_differences(self._whole[kind], out, files)
        return {
            "index": index,
            "kind": kind,
            "step": step,
            "said": said[0].split("]: ")[-1] if said else "",
            "problems": problems[:20],
        }

    def summary(self) -> str:
        """What was tried, how often, what was lost, as a Markdown table."""
        rows: List[List[Any]] = []
        for kind, words in KINDS.items():
            lines = [line for line in self.record.lines if line["kind"] == kind]
            rows.append([words, len(lines), sum(bool(line["problems"]) for line in lines)])
        rows.append(["all", *[sum(row[k] for row in rows) for k in (1, 2)]])
        return table(["disk full while writing", "times", "lost or unclear"], rows)
