"""Prediction: our detectors beside Detectron2's, images to boxes.

Shapes: N images, H and W their size.
"""

import copy
from typing import Any, Callable, Dict, List

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.modeling.meta_arch.fcos import FCOS, FCOSHead
from torch import nn

from d2ext import model_zoo

__all__ = ["cases"]

DETECTIONS = 100


def cases(args: Any) -> List[Dict[str, Any]]:
    """RetinaNet and FCOS beside upstream's with the same weights, DW beside upstream's FCOS."""
    quick = getattr(args, "quick", False)
    device = getattr(args, "device", "cpu")
    height, width = (64, 96) if quick else (320, 480)
    images = make_images(2, height, width)
    fcos = _build("COCO/fcos_R_50_FPN_1x.yaml", device, quick)
    peer_fcos = upstream_fcos(fcos)
    retinanet = _build("COCO/retinanet_R_50_FPN_1x.yaml", device, quick)
    peer_retinanet = _build(
        "COCO/retinanet_R_50_FPN_1x.yaml", device, quick, "MODEL.META_ARCHITECTURE", "RetinaNet"
    )
    peer_retinanet.load_state_dict(retinanet.state_dict())
    weighting = _build("DualWeighting/dw_R_50_FPN_1x.yaml", device, quick)
    size = f"2 x {height} x {width}"
    same = "the same weights and the same detections; the peer is Detectron2's"
    return [
        _case(f"RetinaNet, {size}", retinanet, peer_retinanet, images, f"{same} RetinaNet"),
        _case(f"FCOS, {size}", fcos, peer_fcos, images, f"{same} FCOS"),
        _case(
            f"DW, {size}",
            weighting,
            peer_fcos,
            images,
            "the peer is Detectron2's FCOS, whose head has no objectness branch of its own",
        ),
    ]


def make_images(count: int, height: int, width: int) -> List[Dict[str, Any]]:
    """Samples as a test loader gives them."""
    generator = torch.Generator().manual_seed(0)
    shape = (3, height, width)
    return [
        {
            "image": torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8),
            "height": height,
            "width": width,
        }
        for _ in range(count)
    ]


def _build(name: str, device: str, quick: bool, *words: Any) -> nn.Module:
    cfg = model_zoo.get_config(name)
    cfg.merge_from_list(["MODEL.DEVICE", device, "MODEL.WEIGHTS", "", *words])
    cfg.TEST.DETECTIONS_PER_IMAGE = DETECTIONS
    if quick:
        _shrink(cfg)
    torch.manual_seed(0)
    return build_model(cfg).eval()


def _shrink(cfg: CfgNode) -> None:
    cfg.MODEL.RESNETS.DEPTH = 18
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = 64
    cfg.MODEL.FPN.OUT_CHANNELS = 32


def upstream_fcos(ours: nn.Module) -> FCOS:
    """The FCOS of Detectron2's LazyConfig file with our model's sizes and weights."""
    convs = [m for m in ours.head.cls_subnet if isinstance(m, nn.Conv2d)]
    shapes = ours.backbone.output_shape()
    theirs = FCOS(
        backbone=copy.deepcopy(ours.backbone),
        head=FCOSHead(
            input_shape=[shapes[f] for f in ours.head_in_features],
            num_classes=ours.num_classes,
            conv_dims=[conv.out_channels for conv in convs],
            norm="GN",
        ),
        head_in_features=list(ours.head_in_features),
        num_classes=ours.num_classes,
        test_nms_thresh=ours.test_nms_thresh,
        max_detections_per_image=ours.max_detections_per_image,
        pixel_mean=ours.pixel_mean.flatten().tolist(),
        pixel_std=ours.pixel_std.flatten().tolist(),
    )
    theirs.load_state_dict(ours.state_dict())
    return theirs.to(ours.device).eval()


@torch.no_grad()
def set_threshold(model: nn.Module, images: List[Dict[str, Any]]) -> None:
    """Choose the score threshold at which an untrained model has as many boxes as a trained one.

    Its scores lie close together: at the usual threshold it would find nothing, or everything.
    """
    model.test_score_thresh = 0.0
    scores = [out["instances"].scores.min() for out in model(images)]
    model.test_score_thresh = float(min(scores)) * 0.999


def _case(
    name: str, ours: nn.Module, peer: nn.Module, images: List[Dict[str, Any]], note: str
) -> Dict[str, Any]:
    def run(model: nn.Module) -> Callable[[], List[Dict[str, Any]]]:
        set_threshold(model, images)

        @torch.no_grad()
        def predict() -> List[Dict[str, Any]]:
            return model(images)

        return predict

    return {"name": f"inference, {name}", "ours": run(ours), "peer": run(peer), "note": note}
