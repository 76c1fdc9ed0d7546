#!/usr/bin/env python
"""Time and memory of the sigmoid losses, forward and backward, beside fvcore's focal loss.

    python tools/benchmark_losses.py [--shapes 20000x1203 40000x80] [--repeats 9] [--threads 2]

All losses run in turn, again and again in one process, and the ratios are medians over the turns: a
busy machine slows all of them alike. Memory is the growth of the process, above the inputs, at its
peak in one forward and backward pass in a fresh process. fvcore's one-hot target counts as an
input, so what it costs to build is left out. Prints a table, and the figures as one line of JSON.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
import warnings
from typing import Callable, Dict, List

import torch

warnings.filterwarnings("ignore", message=".*torch.jit", category=Warning)

from fvcore.nn import sigmoid_focal_loss, sigmoid_focal_loss_jit  # noqa: E402

from d2ext.ops import sigmoid_losses as ours  # noqa: E402

NAMES = ("fvcore", "fvcore_jit", "bce", "focal", "qfl", "efl", "eqfl")


def make_losses(rows: int, classes: int, names: List[str]) -> Dict[str, Callable[[], None]]:
    """A forward and backward pass of each loss, on the same logits."""
    torch.manual_seed(0)
    logits = (torch.randn(rows, classes) * 2 - 4).requires_grad_()
    labels = torch.full((rows,), classes)
    positive = torch.randperm(rows)[: rows // 50]
    labels[positive] = torch.randint(0, classes, (len(positive),))
    quality, ratio = torch.rand(rows), torch.rand(classes)
    target = torch.zeros(0)
    if any(name.startswith("fvcore") for name in names):
        target = torch.zeros(rows, classes)
        target[positive, labels[positive]] = 1.0
    focal = {"alpha": 0.25, "gamma": 2.0, "reduction": "sum"}
    losses = {
        "fvcore": lambda: sigmoid_focal_loss(logits, target, **focal),
        "fvcore_jit": lambda: sigmoid_focal_loss_jit(logits, target, **focal),
        "bce": lambda: ours.sigmoid_bce_loss(logits, labels),
        "focal": lambda: ours.sigmoid_focal_loss(logits, labels),
        "qfl": lambda: ours.quality_focal_loss(logits, labels, quality),
        "efl": lambda: ours.equalized_focal_loss(logits, labels, ratio)[0],
        "eqfl": lambda: ours.equalized_quality_focal_loss(logits, labels, quality, ratio)[0],
    }

    def step(loss: Callable[[], torch.Tensor]) -> None:
        logits.grad = None
        (loss() / len(positive)).backward()

    return {name: (lambda loss=losses[name]: step(loss)) for name in names}


def measure_time(rows: int, classes: int, names: List[str], repeats: int):
    """Seconds of every turn by loss name."""
    steps = make_losses(rows, classes, names)
    for step in steps.values():
        for _ in range(2):  # TorchScript optimises in the second call
            step()
    seconds: Dict[str, List[float]] = {name: [] for name in names}
    for _ in range(repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def measure_memory(rows: int, classes: int, name: str) -> float:
    """MiB by which this process grows in one pass; call it in a fresh process."""
    step = make_losses(8, classes, [name])[name]
    for _ in range(3):
        step()
    step = make_losses(rows, classes, [name])[name]
    before = _resident_mib("VmRSS")
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # forget the peak of the set-up
    except OSError:
        print("The peak includes the set-up: /proc/self/clear_refs is not at hand.")
    step()
    return _resident_mib("VmHWM") - before


def _resident_mib(field: str) -> float:
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith(field)) / 1024
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def run(shape: str, names: List[str], repeats: int, threads: int) -> Dict[str, Dict[str, float]]:
    """Measure one shape and print its table."""
    rows, classes = map(int, shape.split("x"))
    seconds = measure_time(rows, classes, names, repeats)
    memory = {}
    for name in names:
        command = [sys.executable, __file__, "--memory-of", name, "--shapes", shape]
        output = subprocess.run(
            [*command, "--threads", str(threads)], check=True, capture_output=True, text=True
        )
        memory[name] = float(output.stdout.split()[-1])

    size = rows * classes * 4 / 2**20
    print(f"\n{shape}: logits {size:.0f} MiB, {threads} threads, {repeats} turns")
    print(f"{'loss':12s}{'ms':>9s}{'x fvcore':>10s}{'MiB':>9s}{'x logits':>10s}{'x fvcore':>10s}")
    result = {}
    for name in names:
        ratios = [a / b for a, b in zip(seconds[name], seconds[names[0]])]
        result[name] = {
            "ms": 1e3 * statistics.median(seconds[name]),
            "time_ratio": statistics.median(ratios),
            "mib": memory[name],
            "memory_ratio": memory[name] / memory[names[0]],
        }
        r = result[name]
        print(
            f"{name:12s}{r['ms']:9.1f}{r['time_ratio']:10.3f}{r['mib']:9.0f}"
            f"{r['mib'] / size:10.2f}{r['memory_ratio']:10.3f}"
        )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shapes", nargs="+", default=["20000x1203", "40000x80"])
    parser.add_argument("--losses", nargs="+", default=list(NAMES), choices=NAMES)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--memory-of", choices=NAMES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        rows, classes = map(int, args.shapes[0].split("x"))
        print(measure_memory(rows, classes, args.memory_of))
        return
    names = list(dict.fromkeys(["fvcore", *args.losses]))
    results = {s: run(s, names, args.repeats, args.threads) for s in args.shapes}
    print(json.dumps({"torch": torch.__version__, "threads": args.threads, "results": results}))


if __name__ == "__main__":
    main()
