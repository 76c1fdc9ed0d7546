"""One detector in PyTorch and as an exported file, from an image to its boxes, on the CPU.

Shapes: H and W the size of an image.
"""

import argparse
import tempfile
from pathlib import Path
from typing import Any, Callable, List

import torch
from torch import nn

from . import models
from .inference import CLASSES, set_threshold
from .models import DW
from .runner import Case, Ratio

__all__ = ["cases"]

# What the recipe for a CPU takes: see docs/own_data.md.
LITE = ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME",
        "tf_efficientnet_lite0", "MODEL.FPN.OUT_CHANNELS", 96, "MODEL.DW.NUM_CONVS", 2,
        "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"], "MODEL.RESNETS.OUT_FEATURES",
        ["res3", "res4", "res5"]]  # fmt: skip
SMALL = ["MODEL.TIMM.NAME", "test_efficientnet", "MODEL.DW.NUM_CONVS", 1]
_CALIBRATION = 4


def cases(args: argparse.Namespace) -> List[Case]:
    """DW on EfficientNet-Lite0 at the size that the recipe for a CPU takes."""
    size, small = ((64, 96), SMALL) if args.quick else ((224, 304), [])
    lite = models.build(models.make_cfg(DW, CLASSES, "cpu", [*LITE, *small]))
    return [_case("DW EfficientNet-Lite0", lite, *size)]


def _case(name: str, model: nn.Module, height: int, width: int) -> Case:
    from d2ext import export

    batch = models.make_batch(CLASSES, height, width, images=_CALIBRATION)
    set_threshold(model.eval(), batch)
    images = [export.as_input(item["image"][None], **_FORM) for item in batch]
    folder = tempfile.TemporaryDirectory()

    def version(file: str, precision: str = "fp32") -> Callable[[], Any]:
        path = Path(folder.name) / file
        export.export(model, path, precision=precision, calibration=images, **_FORM)
        run = export.load_exported(path)[0]
        return lambda: run(images[0])

    @torch.no_grad()
    def eager() -> Any:
        return model(batch[:1])

    versions = {"PyTorch": eager, "onnxruntime": version("detector.onnx")}
    for precision in export.PRECISIONS:
        versions[f"OpenVINO {precision}"] = version(f"{precision}.xml", precision)
    ratios = [Ratio(other, "PyTorch") for other in versions if other != "PyTorch"]
    return Case(f"{name}, an image of {height} x {width}", versions, ratios, close=folder.cleanup)


_FORM = {"inputs": "images", "channel_order": "BGR"}
