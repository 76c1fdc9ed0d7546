"""Memory, file descriptors and threads of a run as it goes on."""

import gc
import json
import os
import statistics
import threading
from pathlib import Path
from typing import Any, Dict, List, Optional

from detectron2.config import CfgNode

from d2ext.engine import HOOK_REGISTRY, HookBase

__all__ = ["VARIABLE", "growth", "measure"]

VARIABLE = "D2EXT_WATCH"
"""Names the file and the period of the hook "Watch": "watch.jsonl 50"."""


def measure() -> Dict[str, Any]:
    """What this process uses now: resident memory in MiB, descriptors, threads."""
    gc.collect()
    with open("/proc/self/statm") as stream:
        pages = int(stream.read().split()[1])
    return {
        "rss_mib": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        "descriptors": len(os.listdir("/proc/self/fd")),
        "threads": len(os.listdir("/proc/self/task")),
        "python_threads": threading.active_count(),
    }


class _Watch(HookBase):
    """Appends a measurement to a file every ``period`` steps."""

    runs_last = True

    def __init__(self, path: str, period: int):
        self.path, self.period = path, period

    def after_step(self) -> None:
        if (self.trainer.iter + 1) % self.period == 0:
            with open(self.path, "a") as stream:
                stream.write(json.dumps({"step": self.trainer.iter + 1, **measure()}) + "\n")


@HOOK_REGISTRY.register()
def Watch(cfg: CfgNode) -> Optional[HookBase]:
    """The hook that the environment variable asks for; None without it."""
    words = os.environ.get(VARIABLE, "").split()
    return _Watch(words[0], int(words[1])) if words else None


def growth(path: Path) -> Dict[str, Any]:
    """From the second quarter of a run to its last: what has grown, and by how much.

    The first quarter is left out: caches and the memory of the allocator fill up there.
    """
    lines: List[Dict[str, Any]] = [json.loads(x) for x in Path(path).read_text().splitlines()]
    quarter = len(lines) // 4
    second, last = lines[quarter : 2 * quarter], lines[-quarter:]
    found: Dict[str, Any] = {"steps": lines[-1]["step"], "measurements": len(lines)}
    for name in ("rss_mib", "descriptors", "threads", "python_threads"):
        before, after = (statistics.median(x[name] for x in part) for part in (second, last))
        found[name] = [round(before, 1), round(after, 1)]
    return found
