"""The detectors of configs/Small beside each other: a training step, and predicting one image."""

import argparse
from typing import Any, Callable, Dict, List

import torch

from .inference import set_threshold
from .models import build, make_batch, make_cfg
from .runner import Case, Ratio
from .steps import Step

NAMES = ("fcos", "dw", "atss", "retinanet", "faster_rcnn")
CLASSES = 20


def cases(args: argparse.Namespace) -> List[Case]:
    height, width = (64, 96) if args.quick else (224, 304)
    size = f"{height} x {width} pixels"
    steps: Dict[str, Any] = {}
    predictors: Dict[str, Any] = {}
    batch = make_batch(CLASSES, height, width, images=2 if args.quick else 8)
    image = make_batch(CLASSES, height, width, images=1)

    def model(name: str, *words: Any) -> torch.nn.Module:
        cfg = make_cfg(f"Small/{name}_lite0.yaml", CLASSES, args.device, words)
        # As the trainer does with depthwise convolutions on a CPU.
        return build(cfg).to(memory_format=torch.channels_last)

    def step(name: str) -> Callable[[], Dict[str, float]]:
        def run() -> Dict[str, float]:
            if name not in steps:
                steps[name] = Step(model(name, "MODEL.BACKBONE.FREEZE_AT", 2), [batch], args.device)
            return steps[name]()

        return run

    def predict(name: str) -> Callable[[], None]:
        @torch.no_grad()
        def run() -> None:
            if name not in predictors:
                predictors[name] = model(name).eval()
                if name != "faster_rcnn":
                    set_threshold(predictors[name], image)
            predictors[name](image)

        return run

    ratios = [Ratio(name, "fcos", None) for name in NAMES[1:]]
    return [
        Case(f"A step of {len(batch)} images", {n: step(n) for n in NAMES}, ratios,
             note=f"{size}, first stages frozen", close=steps.clear),
        Case("Predicting one image", {n: predict(n) for n in NAMES}, ratios, note=size,
             close=predictors.clear),
    ]  # fmt: skip
