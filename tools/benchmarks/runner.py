"""Measuring several versions of one thing in turns, and comparing them.

All versions of a case run once in each round, in an order that turns from round to round, so that
whatever else the machine does meets all of them alike. A ratio is the median of the ratios of the
rounds, not the ratio of the medians: what slows one whole round down cancels.
"""

import contextlib
import dataclasses
import gc
import os
import platform
import statistics
import time
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch

__all__ = ["Case", "Ratio", "Stopwatch", "machine", "measure"]


@dataclasses.dataclass(frozen=True)
class Ratio:
    """``version`` over ``peer``; ``goal`` is the largest ratio that is aimed at, or None."""

    version: str
    peer: str
    goal: Optional[float] = None


@dataclasses.dataclass
class Case:
    """One row of a table.

    Attributes:
        name: what is measured.
        versions: name -> a callable that does it once. It may return a dict of the seconds of its
            phases, or, where ``unit`` is not seconds, the number that is compared.
        ratios: what to compare.
        note: a few words for the table.
        rounds: how often, if not as often as the command line says.
        unit: "s" for time; anything else is a unit of what the versions return, measured once.
        close: releases what the versions hold.
        wall: the clock on the wall instead of the CPU time of this process, which other work on
            the machine does not lengthen. For what runs in several processes.
    """

    name: str
    versions: Dict[str, Callable[[], Any]]
    ratios: Sequence[Ratio] = ()
    note: str = ""
    rounds: Optional[int] = None
    unit: str = "s"
    close: Optional[Callable[[], None]] = None
    wall: bool = False


class Stopwatch:
    """Times phases by the CPU time of this process, or on a CUDA device by events.

    Args:
        device: where the work is done.
        wall: on the host, by the clock on the wall.
    """

    def __init__(self, device: str = "cpu", wall: bool = False):
        self.cuda = torch.device(device).type == "cuda"
        self._clock = time.perf_counter if wall else time.process_time
        self._marks: Dict[str, List[Tuple[Any, Any]]] = {}

    @contextlib.contextmanager
    def phase(self, name: str):
        begin = self._now()
        yield
        self._marks.setdefault(name, []).append((begin, self._now()))

    def wrap(self, owner: Any, method: str, phase: str) -> None:
        """Time each call of a method of one object."""
        original = getattr(owner, method)

        def timed(*args, **kwargs):
            with self.phase(phase):
                return original(*args, **kwargs)

        setattr(owner, method, timed)

    def read(self) -> Dict[str, float]:
        """Seconds of each phase since the last call."""
        if self.cuda:
            torch.cuda.synchronize()
        marks, self._marks = self._marks, {}
        return {name: sum(self._seconds(a, b) for a, b in pairs) for name, pairs in marks.items()}

    def _now(self):
        if not self.cuda:
            return self._clock()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _seconds(self, begin, end) -> float:
        return begin.elapsed_time(end) / 1e3 if self.cuda else end - begin


def measure(case: Case, rounds: int, device: str = "cpu", warmup: int = 2) -> Dict[str, Any]:
    """Run a case; returns medians of all versions and their phases, and the ratios."""
    names = list(case.versions)
    samples: Dict[str, List[Any]] = {name: [] for name in names}
    if case.unit != "s":
        samples = {name: [run()] for name, run in case.versions.items()}
        return _result(case, samples, {})
    phases: Dict[str, Dict[str, List[float]]] = {name: {} for name in names}
    watch = Stopwatch(device, case.wall)
    for turn in range((case.rounds or rounds) + warmup):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            gc.collect()
            with watch.phase("all"):
                parts = case.versions[name]()
            seconds = watch.read()["all"]
            if turn < warmup:
                continue
            samples[name].append(seconds)
            for phase, value in (parts if isinstance(parts, dict) else {}).items():
                phases[name].setdefault(phase, []).append(value)
    return _result(case, samples, phases)


def _result(case: Case, samples, phases) -> Dict[str, Any]:
    median = statistics.median
    ratios = []
    for ratio in case.ratios:
        pairs = [a / b for a, b in zip(samples[ratio.version], samples[ratio.peer])]
        quarters = statistics.quantiles(pairs, n=4) if len(pairs) > 1 else [pairs[0]] * 3
        ratios.append(
            {
                "version": ratio.version,
                "peer": ratio.peer,
                "ratio": median(pairs),
                "quartiles": [quarters[0], quarters[2]],
                "goal": ratio.goal,
            }
        )
    return {
        "case": case.name,
        "unit": case.unit,
        "note": case.note,
        "wall": case.wall,
        "rounds": max(len(values) for values in samples.values()),
        "versions": {name: median(values) for name, values in samples.items()},
        "phases": {
            name: {phase: median(values) for phase, values in parts.items()}
            for name, parts in phases.items()
            if parts
        },
        "ratios": ratios,
    }


def machine(device: str) -> Dict[str, Any]:
    """What the figures were measured on."""
    import detectron2

    import d2ext

    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "device": torch.cuda.get_device_name() if device.startswith("cuda") else "CPU",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "detectron2": detectron2.__version__,
        "d2ext": d2ext.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
