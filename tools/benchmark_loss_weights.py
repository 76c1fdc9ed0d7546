#!/usr/bin/env python
"""Time of training steps with adaptive loss weights beside steps without, in one run.

Two trainers with equal models take steps in turns, so that whatever else the machine does meets
both alike. The time the hook itself takes is measured in the same run.

    python tools/benchmark_loss_weights.py --config-file configs/Demo/faster_rcnn_shapes.yaml
"""

import argparse
import statistics
import time
from typing import Any, Dict, List, Optional, Sequence

import torch
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from d2ext.config import get_cfg
from d2ext.engine import Trainer
from d2ext.engine.hooks import LossWeights
from d2ext.ops.loss_weights import AdaptiveLossWeight


class RandomBatches:
    """Random images with random boxes, the same sequence for everybody."""

    def __init__(self, images: int, size: int, num_classes: int):
        self.images, self.size, self.num_classes = images, size, num_classes
        self.generator = torch.Generator().manual_seed(0)

    def __iter__(self):
        return self

    def __next__(self) -> List[Dict[str, Any]]:
        return [self._image() for _ in range(self.images)]

    def _image(self) -> Dict[str, Any]:
        size, random = self.size, self.generator
        corner = torch.rand(6, 2, generator=random) * size * 0.6
        boxes = torch.cat(
            [corner, corner + size * (0.1 + 0.3 * torch.rand(6, 2, generator=random))], 1
        )
        classes = torch.randint(self.num_classes, (6,), generator=random)
        return {
            "image": torch.rand(3, size, size, generator=random) * 255,
            "height": size,
            "width": size,
            "instances": Instances((size, size), gt_boxes=Boxes(boxes), gt_classes=classes),
        }


class TimedLossWeights(LossWeights):
    """Keeps how long each call took."""

    def __init__(self, **kw: Any):
        super().__init__(**kw)
        self.times: List[float] = []

    def on_losses(self, loss_dict: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
        start = time.perf_counter()
        weighted = super().on_losses(loss_dict)
        self.times.append(time.perf_counter() - start)
        return weighted


def make_trainer(cfg: Any, size: int, images: int) -> Trainer:
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    return Trainer(
        model=model, data_loader=RandomBatches(images, size, classes), optimizer=optimizer
    )


def step(trainer: Trainer) -> float:
    """One whole step; returns its seconds."""
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    trainer.before_step()
    trainer.run_step()
    trainer.after_step()
    if trainer.device.type == "cuda":
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - start
    trainer.iter += 1
    trainer.storage.step()
    return elapsed


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config-file", required=True)
    parser.add_argument("--steps", type=int, default=40, help="timed steps of each trainer")
    parser.add_argument("--warmup", type=int, default=5)
    parser.add_argument("--interval", type=int, default=10, help="iterations in a window")
    parser.add_argument("--size", type=int, default=160, help="side of the images in pixels")
    parser.add_argument("--images", type=int, default=2, help="images in a batch")
    parser.add_argument("opts", nargs=argparse.REMAINDER, help="KEY VALUE pairs")
    args = parser.parse_args(argv)
    cfg = get_cfg()
    cfg.merge_from_file(args.config_file)
    cfg.merge_from_list(args.opts)

    weights = TimedLossWeights(
        make_weighting=lambda: AdaptiveLossWeight(interval=args.interval), groups=("all",)
    )
    trainers = [make_trainer(cfg, args.size, args.images) for _ in range(2)]
    trainers[1].register_hooks([weights])
    times: List[List[float]] = [[], []]
    for trainer in trainers:
        trainer.iter = trainer.start_iter = 0
        trainer.max_iter = args.warmup + args.steps
        trainer.storage = EventStorage(0)
    for index in range(args.warmup + args.steps):
        # The first of a pair may find colder caches: take turns at being first.
        for which in (0, 1) if index % 2 else (1, 0):
            with trainers[which].storage:
                times[which].append(step(trainers[which]))
    report(times, weights.times, args.warmup)


def report(times: Sequence[Sequence[float]], hook: Sequence[float], warmup: int) -> None:
    without, with_weights = (sorted(t[warmup:]) for t in times)
    base, other = statistics.median(without), statistics.median(with_weights)
    # The difference of pairs of neighbouring steps cancels slow changes of the machine's load.
    pairs = [b - a for a, b in zip(times[0][warmup:], times[1][warmup:])]
    own = statistics.median(hook[warmup:])
    print(f"step without loss weights   {base * 1e3:9.2f} ms (median of {len(without)})")
    print(f"step with loss weights      {other * 1e3:9.2f} ms")
    print(f"difference, median of pairs {statistics.median(pairs) * 1e3:+9.2f} ms")
    print(f"the hook itself             {own * 1e3:9.3f} ms = {100 * own / base:.2f} % of a step")
    mean = statistics.fmean(hook[warmup:])
    print(f"  mean, windows included    {mean * 1e3:9.3f} ms = {100 * mean / base:.2f} % of a step")


if __name__ == "__main__":
    main()
