"""Whole training steps beside torchvision's detectors, which a user would take otherwise.

The same ResNet-50, frozen batch norm and first stages, image size, anchors a place and number of
classes; each has its own head, losses and sampling.
"""

import argparse
from typing import Any, Dict, List

import torch
from torch import nn
from torchvision.models import detection
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from .models import FCOS, RETINANET, build, make_batch, make_cfg
from .runner import Case, Ratio
from .steps import BATCHES, FASTER, SMALL, Step

CLASSES = 80
# The levels that Detectron2 gives to the pyramid, of torchvision's ResNet.
DENSE = {"returned_layers": [2, 3, 4], "extra_blocks": LastLevelP6P7(256, 256)}


def cases(args: argparse.Namespace) -> List[Case]:
    return [
        _case(args, "RetinaNet R50", RETINANET, detection.RetinaNet, CLASSES, DENSE),
        _case(args, "FCOS R50", FCOS, detection.FCOS, CLASSES, DENSE),
        # Theirs counts the background as a class.
        _case(args, "Faster R-CNN R50", FASTER, detection.FasterRCNN, CLASSES + 1, {}),
    ]


class Theirs(nn.Module):
    """A detector of torchvision on batches of ours; the conversion is not part of the step."""

    def __init__(self, model: nn.Module, batches: List[Any], first_class: int):
        super().__init__()
        self.model = model.train()
        self.converted = {id(batch): _convert(batch, first_class) for batch in batches}

    def forward(self, batch: List[Dict[str, Any]]) -> Dict[str, torch.Tensor]:
        return self.model(*self.converted[id(batch)])


def _convert(batch: List[Dict[str, Any]], first_class: int) -> Any:
    images = [image["image"].float() / 255 for image in batch]
    targets = [
        {
            "boxes": image["instances"].gt_boxes.tensor,
            "labels": image["instances"].gt_classes + first_class,
        }
        for image in batch
    ]
    return images, targets


def _case(
    args: argparse.Namespace, name: str, config: str, theirs: Any, classes: int, levels: Dict
) -> Case:
    height, width = (64, 96) if args.quick else (320, 480)
    batches = [make_batch(CLASSES, height, width, seed=k) for k in range(BATCHES)]
    steps: Dict[str, Step] = {}

    def ours() -> Dict[str, float]:
        if "d2ext" not in steps:
            cfg = make_cfg(config, CLASSES, args.device, SMALL if args.quick else [])
            steps["d2ext"] = Step(build(cfg), batches, args.device)
        return steps["d2ext"]()

    def torchvisions() -> Dict[str, float]:
        if "torchvision" not in steps:
            torch.manual_seed(0)
            backbone = resnet_fpn_backbone(
                backbone_name="resnet18" if args.quick else "resnet50",
                weights=None, norm_layer=FrozenBatchNorm2d, trainable_layers=3, **levels,
            )  # fmt: skip
            model = theirs(backbone, classes, min_size=height, max_size=width)
            model = Theirs(model, batches, classes - CLASSES)
            steps["torchvision"] = Step(model, batches, args.device)
        return steps["torchvision"]()

    return Case(
        name,
        {"torchvision": torchvisions, "d2ext": ours},
        [Ratio("d2ext", "torchvision", 1.0)],
        note=f"2 x {height} x {width} pixels",
        close=steps.clear,
    )
