"""Whole training steps: each method beside its own baseline and beside upstream's detector.

A step is forward, label assignment, losses, weighting of the losses, backward and SGD, without
loading data.
"""

import argparse
from typing import Any, Callable, Dict, List, Optional

import torch
from detectron2.utils.events import EventStorage

from d2ext.engine.hooks import LossWeights
from d2ext.ops.loss_weights import AdaptiveLossWeight

from .models import (
    DW,
    FCOS,
    FCOS_RESNET,
    RETINANET,
    build,
    build_upstream_fcos,
    make_batch,
    make_cfg,
)
from .runner import Case, Ratio, Stopwatch

# Methods that do the timed work, by phase. What a detector lacks is not timed.
ASSIGN = ("label_anchors", "label_and_sample_anchors", "label_and_sample_proposals")
BATCHES = 4


class Step:
    """One detector that trains on the same batches again and again.

    Args:
        model: the detector.
        batches: what it trains on.
        device: where.
        alwa: with adaptive loss weights.
    """

    def __init__(self, model, batches: List[Any], device: str, alwa: bool = False):
        self.model, self.batches = model, batches
        self.watch = Stopwatch(device)
        self.storage = EventStorage(0)
        self.optimizer = torch.optim.SGD(
            # Nothing is learnt: untrained frozen norms let noise diverge, and all steps stay alike.
            [p for p in model.parameters() if p.requires_grad],
            lr=0.0,
            momentum=0.9,
        )
        self.weights: Optional[LossWeights] = None
        if alwa:
            self.weights = LossWeights(
                make_weighting=lambda: AdaptiveLossWeight(interval=10), groups=("auto",)
            )
            self.weights.trainer = self
            self.weights.before_train()
        self.count = self.iter = 0
        self._watch_parts()

    def _watch_parts(self) -> None:
        roi_heads = getattr(self.model, "roi_heads", None)
        parts = [self.model, getattr(self.model, "proposal_generator", None), roi_heads]
        if roi_heads is not None:
            predictor = roi_heads.box_predictor
            parts += list(predictor) if isinstance(predictor, torch.nn.ModuleList) else [predictor]
        for part in parts:
            for name in ASSIGN:
                if hasattr(part, name):
                    self.watch.wrap(part, name, "assign")
            if part is not roi_heads and callable(getattr(part, "losses", None)):
                self.watch.wrap(part, "losses", "loss")

    def __call__(self) -> Dict[str, float]:
        """Train one step; returns the seconds of its phases."""
        torch.manual_seed(self.count)  # the same random samples for all versions
        with self.storage:
            losses = self.model(self.batches[self.count % len(self.batches)])
            if self.weights is not None:
                with self.watch.phase("loss weights"):
                    losses = self.weights.on_losses(losses)
        total = sum(losses.values())
        with self.watch.phase("backward"):
            total.backward()
        with self.watch.phase("optimiser"):
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        self.storage.step()
        self.count += 1
        self.iter += 1
        return self.watch.read()


HARMONIC = ["MODEL.HARMONIC.ENABLED", True]
SAMPLING_FREE = ["MODEL.SAMPLING_FREE.ENABLED", True]
FASTER = "COCO/faster_rcnn_R_50_FPN_1x.yaml"
SMALL = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64,
         "MODEL.FPN.OUT_CHANNELS", 32, "MODEL.ROI_BOX_HEAD.FC_DIM", 32]  # fmt: skip
UPSTREAM_RCNN = ["MODEL.PROPOSAL_GENERATOR.NAME", "RPN", "MODEL.ROI_HEADS.NAME", "StandardROIHeads"]


def cases(args: argparse.Namespace) -> List[Case]:
    found = [_retinanet(args, 80), _fcos(args, 80), _faster(args, 80)]
    return found + [_retinanet(args, 1203), _fcos(args, 1203)]


def _retinanet(args: argparse.Namespace, classes: int) -> Case:
    efl = ["MODEL.DENSE.CLS_LOSS", "efl"]
    versions = {
        "Detectron2": (RETINANET, ["MODEL.META_ARCHITECTURE", "RetinaNet"]),
        "d2ext": (RETINANET, []),
        "EFL": (RETINANET, efl),
        "Harmonic": (RETINANET, HARMONIC),
        "Sampling-Free": (RETINANET, SAMPLING_FREE),
        "ALWA": (RETINANET, []),
    }
    if classes > 80:
        versions = {name: versions[name] for name in ("Detectron2", "d2ext", "EFL")}
    return _case(args, f"RetinaNet R50, {classes} classes", versions, classes)


def _fcos(args: argparse.Namespace, classes: int) -> Case:
    versions = {
        "Detectron2": (FCOS, build_upstream_fcos),
        "d2ext": (FCOS, []),
        "DW": (DW, FCOS_RESNET),
    }
    return _case(args, f"FCOS R50, {classes} classes", versions, classes)


def _faster(args: argparse.Namespace, classes: int) -> Case:
    versions = {
        "Detectron2": (FASTER, UPSTREAM_RCNN),
        "d2ext": (FASTER, []),
        "Harmonic": (FASTER, HARMONIC),
        "Sampling-Free": (FASTER, SAMPLING_FREE),
        "ALWA": (FASTER, []),
    }
    return _case(args, f"Faster R-CNN R50, {classes} classes", versions, classes)


GOALS = {"EFL": 1.02, "Harmonic": 1.02, "DW": 1.05, "ALWA": 1.01, "d2ext": 1.0}


def _case(args: argparse.Namespace, name: str, versions: Dict[str, Any], classes: int) -> Case:
    height, width = (64, 96) if args.quick else (320, 480)
    common = SMALL if args.quick else []
    batches = [make_batch(classes, height, width, seed=k) for k in range(BATCHES)]
    for batch in batches:
        for image in batch:
            image["instances"] = image["instances"].to(args.device)
    runs: Dict[str, Callable[[], Dict[str, float]]] = {}

    def make(version: str) -> Callable[[], Dict[str, float]]:
        # Built at the first use, which belongs to the warm-up: cases do not share memory.
        def run() -> Dict[str, float]:
            if version not in steps:
                config, how = versions[version]
                overrides = common + ([] if callable(how) else how)
                cfg = make_cfg(config, classes, args.device, overrides)
                model = how(cfg) if callable(how) else build(cfg)
                steps[version] = Step(model, batches, args.device, alwa=version == "ALWA")
            return steps[version]()

        return run

    steps: Dict[str, Step] = {}
    for version in versions:
        runs[version] = make(version)
    ratios = []
    for version in versions:
        if version != "Detectron2":
            ratios.append(Ratio(version, "Detectron2", 1.0))
        if version not in ("Detectron2", "d2ext"):
            ratios.append(Ratio(version, "d2ext", GOALS.get(version)))
    return Case(name, runs, ratios, note=f"2 x {height} x {width} pixels", close=steps.clear)
