"""What the trainer costs in a step, beside Detectron2's SimpleTrainer.

Both train the same small network on the same ready batches, so that the loop itself is a large part
of a step. One measurement is a block of steps.
"""

import argparse
import itertools
from typing import Any, Callable, List

import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.events import EventStorage
from torch import nn

from d2ext.engine import Trainer

from .runner import Case, Ratio

STEPS = 10


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


def _make(kind: type, args: argparse.Namespace) -> Callable[[], None]:
    torch.manual_seed(0)
    size, width = (32, 8) if args.quick else (128, 32)
    model = Net(width).to(args.device)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4, momentum=0.9, foreach=True)
    batches = [torch.randn(4, 3, size, size, device=args.device) for _ in range(4)]
    endless = itertools.cycle(batches)
    trainer: Any
    if kind is Trainer:
        trainer = Trainer(model=model, data_loader=endless, optimizer=optimizer, max_iter=10**9)
    else:
        trainer = kind(model, endless, optimizer)
    trainer.storage = EventStorage()
    trainer.iter = 0

    def block() -> None:
        with trainer.storage:
            for _ in range(STEPS):
                trainer.before_step()
                trainer.run_step()
                trainer.after_step()
                trainer.iter += 1

    return block


def cases(args: argparse.Namespace) -> List[Case]:
    return [
        Case(
            f"{STEPS} steps of a small network",
            {"d2ext": _make(Trainer, args), "SimpleTrainer": _make(SimpleTrainer, args)},
            [Ratio("d2ext", "SimpleTrainer", 1.0)],
            note="the loop, not the model",
        )
    ]
