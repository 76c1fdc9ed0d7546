"""Detectors for the benchmarks: ours and upstream's with equal weights, and random batches."""

from typing import Any, Dict, List, Sequence

import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import nn

from d2ext import get_cfg, model_zoo
from d2ext.testing import upstream_fcos

__all__ = ["DW", "FCOS", "FCOS_RESNET", "RETINANET", "build", "build_upstream_fcos", "make_batch",
           "make_cfg"]  # fmt: skip

RETINANET = "COCO/retinanet_R_50_FPN_1x.yaml"
FCOS = "COCO/fcos_R_50_FPN_1x.yaml"
DW = "DualWeighting/dw_R_50_FPN_1x.yaml"
# DW's config has the authors' ResNet, whose strides make it costlier than that of our FCOS.
FCOS_RESNET = ["MODEL.RESNETS.NORM", "FrozenBN", "MODEL.RESNETS.STRIDE_IN_1X1", True]


def make_cfg(name: str, classes: int, device: str, overrides: Sequence[Any] = ()) -> Any:
    """A config of the zoo with random weights and another number of classes."""
    cfg = get_cfg()
    cfg.merge_from_file(model_zoo.get_config_file(name))
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.DEVICE = device
    for detector in ("RETINANET", "FCOS", "ATSS", "DW", "ROI_HEADS"):
        cfg.MODEL[detector].NUM_CLASSES = classes
    cfg.merge_from_list(list(overrides))
    return cfg


def build(cfg: Any) -> nn.Module:
    """A model whose weights do not depend on the losses."""
    torch.manual_seed(0)
    return build_model(cfg).train()


def build_upstream_fcos(cfg: Any) -> nn.Module:
    """Detectron2's FCOS of the sizes of our config, with weights like those of :func:`build`."""
    torch.manual_seed(0)
    return upstream_fcos(cfg).to(cfg.MODEL.DEVICE).train()


def make_batch(
    classes: int, height: int, width: int, images: int = 2, objects: int = 8, seed: int = 0
) -> List[Dict[str, Any]]:
    """Noise images with random objects."""
    random = torch.Generator().manual_seed(seed)
    size = torch.tensor([width, height])
    batch = []
    for _ in range(images):
        extent = (torch.rand(objects, 2, generator=random) * 0.4 + 0.08) * size
        corner = torch.rand(objects, 2, generator=random) * (size - extent)
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(torch.cat([corner, corner + extent], dim=1))
        instances.gt_classes = torch.randint(classes, (objects,), generator=random)
        image = torch.randint(256, (3, height, width), generator=random, dtype=torch.uint8)
        batch.append({"image": image, "instances": instances, "height": height, "width": width})
    return batch
