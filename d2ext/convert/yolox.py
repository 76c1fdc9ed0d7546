"""YOLOX, under mmdetection's names and under United-Perception's."""

import re
from typing import Any, Dict, List

import torch

from .names import Rule, Source

__all__ = ["MMDET_YOLOX", "is_united_perception_yolox", "with_mmdet_names"]


def _conv(theirs: str, ours: str) -> List[Rule]:
    """A convolution with its normalisation: ``X.conv``, ``X.bn`` to ``X``, ``X.norm``."""
    groups = re.compile(theirs).groups
    return [
        Rule(rf"{theirs}\.conv\.weight", f"{ours}.weight"),
        Rule(rf"{theirs}\.bn\.(\w+)", f"{ours}.norm.{{{groups + 1}}}"),
    ]


def _rules(cfg: Any) -> List[Rule]:
    part = r"((?:main|short|final)_conv|(?:blocks\.\d+\.)?conv\d)"
    rules = [
        *_conv(r"backbone\.stem\.conv", "backbone.bottom_up.stem.conv"),
        *_conv(r"backbone\.(stage\d\.0)", "backbone.bottom_up.{1}"),
        *_conv(rf"backbone\.(stage\d\.\d)\.{part}", "backbone.bottom_up.{1}.{2}"),
        *_conv(r"neck\.((?:reduce_layers|downsamples)\.\d)", "backbone.{1}"),
        *_conv(rf"neck\.((?:top_down|bottom_up)_blocks\.\d)\.{part}", "backbone.{1}.{2}"),
        *_conv(r"neck\.out_convs\.(\d)", "head.stems.{1}"),
    ]
    for theirs, ours in (("cls", "cls_subnet"), ("reg", "bbox_subnet")):
        rules += _conv(rf"bbox_head\.multi_level_{theirs}_convs\.(\d\.\d)", f"head.{ours}.{{1}}")
    for theirs, ours in (("cls", "cls_score"), ("reg", "bbox_pred"), ("obj", "quality")):
        pattern = rf"bbox_head\.multi_level_conv_{theirs}\.(\d\.\w+)"
        rules.append(Rule(pattern, f"head.{ours}.{{1}}"))
    # EFL's statistics, which training needs and detection does not.
    rules.append(Rule(r"post_process\.cls_loss\.(\w+)", "criterion.cls_loss.{1}"))
    return rules


MMDET_YOLOX = Source(
    "mmdetection's YOLOX", _rules, optional=r"criterion\..*|.*\.num_batches_tracked"
)

# United-Perception's names to mmdetection's, in this order.
_UNITED_PERCEPTION = [
    (r"\.bn1\.", ".bn."),
    (r"^backbone\.stem\.conv_block\.", "backbone.stem.conv."),
    (r"\.conv_block([12])\.", r".conv\1."),
    (r"\.m\.(\d+)\.", r".blocks.\1."),
    (r"^neck\.lateral_conv0\.", "neck.reduce_layers.0."),
    (r"^neck\.reduce_conv1\.", "neck.reduce_layers.1."),
    (r"^neck\.bu_conv2\.", "neck.downsamples.0."),
    (r"^neck\.bu_conv1\.", "neck.downsamples.1."),
    (r"^neck\.C3_p4\.", "neck.top_down_blocks.0."),
    (r"^neck\.C3_p3\.", "neck.top_down_blocks.1."),
    (r"^neck\.C3_n3\.", "neck.bottom_up_blocks.0."),
    (r"^neck\.C3_n4\.", "neck.bottom_up_blocks.1."),
    (r"^roi_head\.stems\.", "neck.out_convs."),
    (r"^roi_head\.(cls|reg)_convs\.", r"bbox_head.multi_level_\1_convs."),
    (r"^roi_head\.(cls|reg|obj)_preds\.", r"bbox_head.multi_level_conv_\1."),
]
# A CSP layer's three convolutions; its bottlenecks' and the pooling's are "conv1" and "conv2", too.
_CSP = {"1": "main_conv", "2": "short_conv", "3": "final_conv"}


def is_united_perception_yolox(tensors: Dict[str, torch.Tensor]) -> bool:
    return any(name.startswith("roi_head.cls_preds.") for name in tensors)


def with_mmdet_names(tensors: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """A state dict of United-Perception's YOLOX under mmdetection's names, and in its order."""
    found = {}
    for name, value in tensors.items():
        if name == "backbone.stem.conv_block.conv.weight":
            value = _corners_by_columns(value)
        is_csp = re.match(r"(backbone\.dark\d\.\d|neck\.C3_\w+)\.conv\d\.", name)
        if is_csp:
            name = re.sub(r"\.conv(\d)\.(conv|bn1)\.", lambda m: f".{_CSP[m[1]]}.{m[2]}.", name)
        name = re.sub(r"^backbone\.dark(\d)\.", lambda m: f"backbone.stage{int(m[1]) - 1}.", name)
        for pattern, replacement in _UNITED_PERCEPTION:
            name = re.sub(pattern, replacement, name)
        found[name] = value
    return found


def _corners_by_columns(weight: torch.Tensor) -> torch.Tensor:
    """(O, 4 * 3, k, k): a square's corners row by row, to column by column as YOLOX has them."""
    groups = weight.reshape(weight.shape[0], 4, -1, *weight.shape[2:])
    return groups[:, [0, 2, 1, 3]].reshape(weight.shape)
