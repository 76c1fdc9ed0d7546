"""A long run of tiny steps with evaluations and checkpoints: nothing may grow."""

import shutil
from pathlib import Path
from typing import Any, Dict, List

from .record import table
from .runs import Run
from .watch import VARIABLE, growth

__all__ = ["soak", "soak_problems", "soak_table"]

_WORDS = (
    "SOLVER.CHECKPOINT_PERIOD", 50, "TEST.EVAL_PERIOD", 100, "SOLVER.STEPS", "()",
    "ENGINE.MAX_TO_KEEP", 3, "ENGINE.EMA.ENABLED", True, "TEST.VAL_LOSS.PERIOD", 100,
    "ENGINE.BEST_CHECKPOINT.METRIC", "val/total_loss", "ENGINE.BEST_CHECKPOINT.MODE", "min",
    "ENGINE.TENSORBOARD", True, "ENGINE.LOG_PERIOD", 20, "DATALOADER.NUM_WORKERS", 1,
)  # fmt: skip

# Of the resident memory, which the allocator rounds: a leak of 1 KB a step would show as 2.2 MiB.
ALLOWED_MIB = 2.0


def soak(data: Path, folder: Path, steps: int, period: int = 20) -> Dict[str, Any]:
    """Train so many steps, measuring every ``period``; see :func:`growth` for what is returned."""
    out = Path(folder) / "soak"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    file = out / "watch.jsonl"
    run = Run(data, out, *_WORDS, "SOLVER.MAX_ITER", steps, env={VARIABLE: f"{file} {period}"})
    assert run.wait(seconds=1800) == 0, run.text
    return growth(file)


def soak_problems(found: Dict[str, Any], allowed_mib: float = ALLOWED_MIB) -> List[str]:
    """What has grown, by what :func:`soak` found; empty is good."""
    limits = {"rss_mib": allowed_mib, "descriptors": 0, "threads": 0, "python_threads": 0}
    return [
        f"{name} {found[name][0]} -> {found[name][1]}"
        for name, limit in limits.items()
        if found[name][1] - found[name][0] > limit
    ]


def soak_table(found: Dict[str, Any]) -> str:
    """The same as a Markdown table."""
    words = {
        "rss_mib": "resident memory, MiB",
        "descriptors": "file descriptors",
        "threads": "threads",
    }
    rows: List[List[Any]] = [[text, *found[name]] for name, text in words.items()]
    return table([f"{found['steps']} steps", "second quarter", "last quarter"], rows)
