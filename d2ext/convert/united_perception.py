"""EFL's and EQFL's detectors under United-Perception's names.

Shapes: A anchors a location.
"""

import re
from typing import Any, Dict, List

import torch

from .names import Rule, Source, resnet_rules
from .yolox import MMDET_YOLOX, is_united_perception_yolox, with_mmdet_names

__all__ = ["IMPROVED_BASELINE", "anchor_first", "united_perception"]


def _rules(cfg: Any) -> List[Rule]:
    return [
        # Newer versions hold the stem a second time, as layer0.
        Rule(r"backbone\.layer0\.0\.weight", "backbone.bottom_up.stem.conv1.weight"),
        Rule(r"backbone\.layer0\.1\.(\w+)", "backbone.bottom_up.stem.conv1.norm.{1}"),
        *resnet_rules(r"backbone\."),
        Rule(r"neck\.c([345])_lateral\.(\w+)", "backbone.fpn_lateral{1}.{2}"),
        Rule(r"neck\.p([345])_conv\.(\w+)", "backbone.fpn_output{1}.{2}"),
        Rule(r"neck\.(p[67])_conv\.(\w+)", "backbone.top_block.{1}.{2}"),
        Rule(r"roi_head\.cls_subnet\.(.+)", "head.cls_subnet.{1}"),
        Rule(r"roi_head\.box_subnet\.(.+)", "head.bbox_subnet.{1}"),
        Rule(r"roi_head\.cls_subnet_pred\.(\w+)", "head.cls_score.{1}"),
        Rule(r"roi_head\.box_subnet_pred\.(\w+)", "head.bbox_pred.{1}"),
        Rule(r"roi_head\.iou_pred\.(\w+)", "head.quality.{1}"),
        Rule(r"post_process\.cls_loss\.(\w+)", "criterion.cls_loss.{1}"),
    ]


IMPROVED_BASELINE = Source(
    "EFL's improved baseline in United-Perception", _rules, optional=r"criterion\..*"
)


def united_perception(tensors: Dict[str, torch.Tensor]):
    """The source that fits, and the tensors as it expects them."""
    if is_united_perception_yolox(tensors):
        source = MMDET_YOLOX._replace(model="EFL's YOLOX in United-Perception")
        return source, with_mmdet_names(tensors)
    return IMPROVED_BASELINE, tensors


def anchor_first(tensors: Dict[str, torch.Tensor], cfg: Any) -> Dict[str, torch.Tensor]:
    """Rows of class and box maps, (k * A, ...) with the anchor last, as (A * k, ...)."""
    anchors = len(cfg.MODEL.ATSS.ANCHOR_SCALES)
    result = dict(tensors)
    for name, rows in tensors.items():
        if re.fullmatch(r"head\.(?:cls_score|bbox_pred)\.\w+", name) and len(rows) % anchors == 0:
            by_anchor = rows.reshape(-1, anchors, *rows.shape[1:]).transpose(0, 1)
            result[name] = by_anchor.reshape(rows.shape)
    return result
