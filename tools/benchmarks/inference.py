"""Prediction: our detectors beside Detectron2's, from images to boxes.

Shapes: N images, H and W their size.
"""

import argparse
from typing import Any, Callable, Dict, List, Sequence

import torch
from torch import nn

from . import models
from .models import DW, FCOS, FCOS_RESNET, RETINANET
from .runner import Case, Ratio

__all__ = ["cases"]

CLASSES = 80
SMALL = ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64,
         "MODEL.FPN.OUT_CHANNELS", 32]  # fmt: skip


def cases(args: argparse.Namespace) -> List[Case]:
    """RetinaNet and FCOS beside upstream's with the same weights, DW beside upstream's FCOS."""
    size = (64, 96) if args.quick else (320, 480)
    images = models.make_batch(CLASSES, *size)
    small = SMALL if args.quick else []

    def ours(name: str, *words: Any) -> nn.Module:
        return models.build(models.make_cfg(name, CLASSES, args.device, [*small, *words]))

    retinanet, theirs = ours(RETINANET), ours(RETINANET, "MODEL.META_ARCHITECTURE", "RetinaNet")
    theirs.load_state_dict(retinanet.state_dict())
    fcos = ours(FCOS)
    their_fcos = models.build_upstream_fcos(models.make_cfg(FCOS, CLASSES, args.device, small))
    their_fcos.load_state_dict(fcos.state_dict())
    their_fcos.test_nms_thresh = fcos.test_nms_thresh
    return [
        _case("RetinaNet", retinanet, theirs, images, "same weights, same boxes"),
        _case("FCOS", fcos, their_fcos, images, "same weights, same boxes"),
        _case("DW", ours(DW, *FCOS_RESNET), their_fcos, images, "beside FCOS, same backbone"),
    ]


@torch.no_grad()
def set_threshold(model: nn.Module, images: Sequence[Dict[str, Any]]) -> None:
    """Choose the score threshold at which an untrained model has as many boxes as a trained one.

    Its scores lie close together: at the usual threshold it would find nothing, or everything.
    """
    model.test_score_thresh = 0.0
    scores = [output["instances"].scores.min() for output in model(images)]
    model.test_score_thresh = float(min(scores)) * 0.999


def _case(
    name: str, ours: nn.Module, theirs: nn.Module, images: Sequence[Dict[str, Any]], note: str
) -> Case:
    def version(model: nn.Module) -> Callable[[], List[Dict[str, Any]]]:
        set_threshold(model.eval(), images)

        @torch.no_grad()
        def predict() -> List[Dict[str, Any]]:
            return model(images)

        return predict

    height, width = images[0]["height"], images[0]["width"]
    return Case(
        f"{name} R50, {len(images)} x {height} x {width}",
        {"d2ext": version(ours), "Detectron2": version(theirs)},
        [Ratio("d2ext", "Detectron2", 1.0)],
        note=note,
    )
