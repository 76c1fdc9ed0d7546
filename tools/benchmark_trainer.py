#!/usr/bin/env python
"""What d2ext's trainer costs per step, against Detectron2's SimpleTrainer.

Both train the same small network on the same ready batches. They take turns in short blocks, so
that a busy machine disturbs both alike, and the medians over all blocks are compared.

    python tools/benchmark_trainer.py [--device cuda] [--width 32] [--blocks 30]
"""

import argparse
import itertools
import json
import statistics
import time

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import nn

from d2ext.engine import Trainer


class Net(nn.Module):
    """A small convolutional network with three losses."""

    def __init__(self, width: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), nn.Conv2d(width, width, 3, 2, 1), nn.ReLU()
        )
        self.heads = nn.ModuleList(nn.Conv2d(width, 4, 1) for _ in range(3))

    def forward(self, batch):
        features = self.body(batch)
        return {f"loss_{k}": h(features).square().mean() for k, h in enumerate(self.heads)}


def make(kind: type, args: argparse.Namespace):
    torch.manual_seed(0)
    model = Net(args.width).to(args.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, foreach=True)
    batches = [torch.randn(4, 3, args.size, args.size, device=args.device) for _ in range(4)]
    endless = itertools.cycle(batches)
    if kind is Trainer:
        return Trainer(model=model, data_loader=endless, optimizer=optimizer, max_iter=10**9)
    return kind(model, endless, optimizer)


def block(trainer, storage: EventStorage, steps: int) -> float:
    """Seconds a step."""
    trainer.storage = storage
    with storage:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            trainer.before_step()
            trainer.run_step()
            trainer.after_step()
            trainer.iter += 1
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return (time.perf_counter() - start) / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    kinds = {"SimpleTrainer": SimpleTrainer, "Trainer": Trainer}
    trainers = {name: make(kind, args) for name, kind in kinds.items()}
    storages = {name: EventStorage() for name in kinds}
    times = {name: [] for name in kinds}
    for number in range(args.blocks + 3):
        # The order changes from block to block: who comes second finds a warmer cache.
        for name in list(kinds)[:: 1 if number % 2 else -1]:
            seconds = block(trainers[name], storages[name], args.steps)
            if number >= 3:
                times[name].append(seconds)
    medians = {name: statistics.median(values) for name, values in times.items()}
    ratios = [b / a for a, b in zip(times["SimpleTrainer"], times["Trainer"])]
    result = {
        "milliseconds a step": {name: round(1e3 * value, 4) for name, value in medians.items()},
        "overhead": f"{100 * (medians['Trainer'] / medians['SimpleTrainer'] - 1):+.2f} %",
        "median of paired ratios": f"{100 * (statistics.median(ratios) - 1):+.2f} %",
        "device": args.device,
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
