"""mmdetection's detectors: RetinaNet, ATSS, FCOS, Faster, Mask and Cascade R-CNN (EQLv2, ALWA).

Shapes: C classes.
"""

import re
from typing import Any, Dict, List, Mapping

import torch

from .maskrcnn_benchmark import by_scale_and_ratio
from .names import ConvertError, Rule, Source, background_last, resnet_rules

__all__ = ["MMDET", "one_channel_rpn"]


def _rules(cfg: Any) -> List[Rule]:
    dense = cfg.MODEL.META_ARCHITECTURE in ("RetinaNet", "ExtRetinaNet", "ExtFCOS", "ATSS")
    first = 3 if dense else 2
    rules = [
        *resnet_rules(r"backbone\."),
        Rule(r"neck\.lateral_convs\.(\d)\.conv\.(\w+)", f"backbone.fpn_lateral{{1+{first}}}.{{2}}"),
    ]
    if dense:
        return [*rules, *_dense_rules(cfg)]
    output = f"backbone.fpn_output{{1+{first}}}.{{2}}"
    return [*rules, Rule(r"neck\.fpn_convs\.(\d)\.conv\.(\w+)", output), *_region_rules()]


def _dense_rules(cfg: Any) -> List[Rule]:
    meta = cfg.MODEL.META_ARCHITECTURE
    normed = meta in ("ExtFCOS", "ATSS") and cfg.MODEL["FCOS" if meta == "ExtFCOS" else meta].NORM
    step = 3 if normed else 2  # layers of a tower: convolution, normalisation, ReLU
    rules = [
        Rule(r"neck\.fpn_convs\.([012])\.conv\.(\w+)", "backbone.fpn_output{1+3}.{2}"),
        Rule(r"neck\.fpn_convs\.([34])\.conv\.(\w+)", "backbone.top_block.p{1+3}.{2}"),
        Rule(r"bbox_head\.scales\.(\d)\.scale", "head.scales.{1}", lambda x: x.reshape(())),
    ]
    for theirs, ours in (("cls", "cls_subnet"), ("reg", "bbox_subnet")):
        tower = rf"bbox_head\.{theirs}_convs\.(\d)"
        rules += [
            Rule(rf"{tower}\.conv\.(\w+)", f"head.{ours}.{{1*{step}}}.{{2}}"),
            Rule(rf"{tower}\.gn\.(\w+)", f"head.{ours}.{{1*{step}+1}}.{{2}}"),
        ]
    reorder = by_scale_and_ratio(cfg)
    third = "ctrness" if meta == "ExtFCOS" else "quality"
    return [
        *rules,
        Rule(r"bbox_head\.retina_cls\.(\w+)", "head.cls_score.{1}", reorder),
        Rule(r"bbox_head\.retina_reg\.(\w+)", "head.bbox_pred.{1}", reorder),
        Rule(r"bbox_head\.(?:atss|conv)_cls\.(\w+)", "head.cls_score.{1}"),
        Rule(r"bbox_head\.(?:atss|conv)_reg\.(\w+)", "head.bbox_pred.{1}"),
        Rule(r"bbox_head\.(?:atss|conv)_centerness\.(\w+)", f"head.{third}.{{1}}"),
    ]


def _region_rules() -> List[Rule]:
    rpn = "proposal_generator.rpn_head."
    # A number stands between for a stage of Cascade R-CNN. Names of mmdetection 1 have no roi_head.
    box, mask = r"(?:roi_head\.)?bbox_head\.(\d\.)?", r"(?:roi_head\.)?mask_head\."
    ours, ours_mask = "roi_heads.box_predictor.{1}", "roi_heads.mask_head."
    return [
        Rule(r"rpn_head\.rpn_conv\.(\w+)", f"{rpn}conv.{{1}}"),
        Rule(r"rpn_head\.rpn_cls\.(\w+)", f"{rpn}objectness_logits.{{1}}"),
        Rule(r"rpn_head\.rpn_reg\.(\w+)", f"{rpn}anchor_deltas.{{1}}"),
        Rule(rf"{box}shared_fcs\.(\d)\.(\w+)", "roi_heads.box_head.{1}fc{2+1}.{3}"),
        Rule(rf"{box}fc_cls\.(weight|bias|weight_scaler)", f"{ours}cls_score.{{2}}"),
        Rule(rf"{box}fc_reg\.(\w+)", f"{ours}bbox_pred.{{2}}"),
        Rule(rf"{box}loss_cls\.(\w+)", f"{ours}criterion.cls_loss.{{2}}"),
        Rule(rf"{mask}convs\.(\d)\.conv\.(\w+)", f"{ours_mask}mask_fcn{{1+1}}.{{2}}"),
        Rule(rf"{mask}upsample\.(\w+)", f"{ours_mask}deconv.{{1}}"),
        Rule(rf"{mask}conv_logits\.(\w+)", f"{ours_mask}predictor.{{1}}"),
    ]


def _finish(tensors: Dict[str, torch.Tensor], cfg: Any) -> Dict[str, torch.Tensor]:
    """Fold the learned scales of LWS, and move the background of mmdetection 1 to the end."""
    result = dict(tensors)
    for name in [n for n in result if n.endswith("cls_score.weight_scaler")]:
        weight = name[: -len("_scaler")]
        result[weight] = result[weight] * result.pop(name)
    for name in [n for n in result if re.search(r"box_predictor\.(\d\.)?bbox_pred\.", n)]:
        classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        if len(result[name]) == 4 * (classes + 1) and classes > 0:
            result[name] = result[name][4:]
            scores = name.replace("bbox_pred", "cls_score")
            result[scores] = background_last(result[scores])
    return result


def one_channel_rpn(
    tensors: Dict[str, torch.Tensor], shapes: Mapping[str, torch.Size], background: str
) -> Dict[str, torch.Tensor]:
    """The two channels of an anchor in an RPN with a softmax as one: their difference.

    Args:
        tensors: renamed; changed where the RPN has twice the channels of the model's.
        shapes: the model's.
        background: which of the two it is, "first" or "last"; no file says so.
    """
    if background not in ("", "first", "last"):
        raise ConvertError(f"rpn_background must be first or last, not '{background}'.")
    result = dict(tensors)
    for leaf in ("weight", "bias"):
        name = f"proposal_generator.rpn_head.objectness_logits.{leaf}"
        rows = tensors.get(name)
        if rows is None or name not in shapes or len(rows) != 2 * shapes[name][0]:
            continue
        if not background:
            raise ConvertError(
                "The RPN has two channels an anchor, for a softmax; say which is the background "
                "with rpn_background (--rpn-background): first in mmdetection before 2.5, last "
                "since then."
            )
        first, last = rows.reshape(-1, 2, *rows.shape[1:]).unbind(dim=1)
        result[name] = last - first if background == "first" else first - last
    return result


MMDET = Source("mmdetection's detectors", _rules, finish=_finish)
