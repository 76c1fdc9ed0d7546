"""Detectors for the benchmarks: ours and upstream's with equal weights, and random batches."""

from typing import Any, Dict, List, Sequence

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model, build_resnet_backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelP6P7
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from detectron2.structures import Boxes, Instances
from torch import nn

from d2ext import get_cfg, model_zoo

__all__ = ["build", "make_batch", "make_cfg", "upstream_fcos"]


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


def upstream_fcos(cfg: Any) -> nn.Module:
    """Detectron2's FCOS, which has no YAML, of the sizes of our config."""
    node, channels = cfg.MODEL.FCOS, cfg.MODEL.FPN.OUT_CHANNELS
    torch.manual_seed(0)
    backbone = FPN(
        bottom_up=build_resnet_backbone(cfg, ShapeSpec(channels=3)),
        in_features=["res3", "res4", "res5"],
        out_channels=channels,
        top_block=LastLevelP6P7(channels, channels, in_feature="p5"),
    )
    shapes = backbone.output_shape()
    head = FCOSHead(
        input_shape=[shapes[f] for f in node.IN_FEATURES],
        num_classes=node.NUM_CLASSES,
        conv_dims=[channels] * node.NUM_CONVS,
        norm="GN",
    )
    model = FCOS(
        backbone=backbone,
        head=head,
        head_in_features=list(node.IN_FEATURES),
        num_classes=node.NUM_CLASSES,
        pixel_mean=cfg.MODEL.PIXEL_MEAN,
        pixel_std=cfg.MODEL.PIXEL_STD,
    )
    return model.to(cfg.MODEL.DEVICE).train()


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
