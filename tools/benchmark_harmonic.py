#!/usr/bin/env python
"""Time of a training step with the harmonic loss beside the same step without it.

Both models are built from one config with the same weights and take the same batches in turns, the
first of a round being the second of the next; the ratio is the median over the rounds, so that a
busy machine slows both alike. A step is forward, backward and SGD, without loading data.

    python tools/benchmark_harmonic.py [--configs F ...] [--rounds 40] [--opts KEY VALUE ...]
"""

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any, Dict, List, Tuple

import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from d2ext import get_cfg

DEMO = Path(__file__).resolve().parents[1] / "configs" / "Demo"
CONFIGS = [str(DEMO / f"harmonic_{name}_shapes.yaml") for name in ("retinanet", "faster")]


def make_batch(cfg: Any, seed: int, objects: int) -> List[Dict[str, Any]]:
    """Noise images of the config's training size with random objects."""
    g = torch.Generator().manual_seed(seed)
    height = cfg.INPUT.MIN_SIZE_TRAIN[0]
    width = min(height * 4 // 3, cfg.INPUT.MAX_SIZE_TRAIN)
    size = torch.tensor([width, height])
    classes = {
        "ExtRetinaNet": cfg.MODEL.RETINANET, "ExtFCOS": cfg.MODEL.FCOS, "ATSS": cfg.MODEL.ATSS
    }.get(cfg.MODEL.META_ARCHITECTURE, cfg.MODEL.ROI_HEADS).NUM_CLASSES  # fmt: skip
    batch = []
    for _ in range(cfg.SOLVER.IMS_PER_BATCH):
        extent = (torch.rand(objects, 2, generator=g) * 0.4 + 0.08) * size
        corner = torch.rand(objects, 2, generator=g) * (size - extent)
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.cat([corner, corner + extent], dim=1))
        instances.gt_classes = torch.randint(classes, (objects,), generator=g)
        image = torch.randint(256, (3, height, width), generator=g, dtype=torch.uint8)
        batch.append({"image": image, "instances": instances})
    return batch


def build(cfg: Any, enabled: bool) -> Tuple[torch.nn.Module, torch.optim.Optimizer]:
    """A model whose weights do not depend on ``enabled``, and its optimizer."""
    cfg = cfg.clone()
    cfg.MODEL.HARMONIC.ENABLED = enabled
    torch.manual_seed(0)
    model = build_model(cfg).train()
    return model, torch.optim.SGD(model.parameters(), lr=1e-4)


def step(model, optimizer, batch, storage: EventStorage, seed: int) -> float:
    """Seconds of one training step."""
    torch.manual_seed(seed)  # the same samples of anchors and proposals for both models
    cuda = next(model.parameters()).is_cuda
    if cuda:
        torch.cuda.synchronize()
    begin = time.perf_counter()
    with storage:
        losses = model(batch)
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
    if cuda:
        torch.cuda.synchronize()
    storage.step()
    return time.perf_counter() - begin


def measure(cfg: Any, rounds: int, objects: int, warmup: int = 3) -> Dict[str, float]:
    """Median seconds of both kinds of step, and the median ratio of a round."""
    runs = {name: (*build(cfg, name == "harmonic"), EventStorage()) for name in ("off", "harmonic")}
    batches = [make_batch(cfg, seed, objects) for seed in range(4)]
    times: Dict[str, List[float]] = {name: [] for name in runs}
    for i in range(rounds + warmup):
        for name in list(runs)[:: 1 if i % 2 else -1]:
            model, optimizer, storage = runs[name]
            times[name].append(step(model, optimizer, batches[i % 4], storage, seed=i))
    times = {name: values[warmup:] for name, values in times.items()}
    ratios = [b / a for a, b in zip(times["off"], times["harmonic"])]
    return {
        "off_s": statistics.median(times["off"]),
        "harmonic_s": statistics.median(times["harmonic"]),
        "ratio": statistics.median(ratios),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--configs", nargs="+", default=CONFIGS)
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--objects", type=int, default=6, help="objects of each image")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--opts", nargs="*", default=[], help="overrides, KEY VALUE ...")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(f"{'config':32} {'off [s]':>9} {'harmonic [s]':>13} {'ratio':>7}")
    for path in args.configs:
        cfg = get_cfg()
        cfg.merge_from_file(path)
        cfg.merge_from_list(args.opts)
        result = measure(cfg, args.rounds, args.objects)
        print(
            f"{Path(path).stem:32} {result['off_s']:9.4f} {result['harmonic_s']:13.4f} "
            f"{result['ratio']:7.3f}"
        )
        print(json.dumps({"config": Path(path).stem, **result}), flush=True)


if __name__ == "__main__":
    main()
