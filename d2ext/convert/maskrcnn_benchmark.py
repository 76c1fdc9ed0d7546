"""Detectors of Sampling-Free, under the names of maskrcnn-benchmark.

Shapes: C classes, A anchors a location.
"""

from typing import Any, Callable, Dict, List

import torch

from .names import ConvertError, Rule, Source, background_last, resnet_rules

__all__ = ["MASKRCNN_BENCHMARK", "by_scale_and_ratio"]

# Detectron2's normalisation adds it to the variance; theirs adds nothing.
_EPS = 1e-5


def by_scale_and_ratio(cfg: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Rows (A * k, ...) whose anchors go by ratio and scale, to Detectron2's scale and ratio."""
    scales = len(cfg.MODEL.ANCHOR_GENERATOR.SIZES[0])
    ratios = len(cfg.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS[0])

    def change(tensor: torch.Tensor) -> torch.Tensor:
        if len(tensor) % (ratios * scales):
            return tensor  # another number of anchors: the check of shapes says so
        rows = tensor.reshape(ratios, scales, -1, *tensor.shape[1:])
        return rows.transpose(0, 1).reshape(tensor.shape)

    return change


def _without_background(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[1:]


def _boxes_without_background(tensor: torch.Tensor) -> torch.Tensor:
    """Rows (4 (C + 1), ...) without the first four; of two boxes, the one of all objects."""
    return tensor[4:]


def _rules(cfg: Any) -> List[Rule]:
    one_anchor = cfg.MODEL.META_ARCHITECTURE in ("ExtFCOS", "ATSS")
    reorder = None if one_anchor else by_scale_and_ratio(cfg)
    fpn = r"backbone\.fpn\."
    rpn, ours_rpn = r"rpn\.head\.", "proposal_generator.rpn_head."
    dense = cfg.MODEL.META_ARCHITECTURE in ("RetinaNet", "ExtRetinaNet", "ExtFCOS", "ATSS")
    rules = [
        Rule(r"backbone\.body\.stem\.conv1\.weight", "backbone.bottom_up.stem.conv1.weight"),
        Rule(r"backbone\.body\.stem\.bn1\.(\w+)", "backbone.bottom_up.stem.conv1.norm.{1}"),
        *resnet_rules(r"backbone\.body\."),
        Rule(rf"{fpn}fpn_inner(\d)\.(\w+)", "backbone.fpn_lateral{1+1}.{2}"),
        Rule(rf"{fpn}fpn_layer(\d)\.(\w+)", "backbone.fpn_output{1+1}.{2}"),
        Rule(rf"{fpn}top_blocks\.(p[67])\.(\w+)", "backbone.top_block.{1}.{2}"),
        Rule(r"(?:rpn|anchor_generator)\..*cell_anchors\.(\d)", "cell_anchors.{1}"),
    ]
    if dense:
        third = "ctrness" if cfg.MODEL.META_ARCHITECTURE == "ExtFCOS" else "quality"
        guide = r"rpn\.loss_evaluator\.guided_loss\."
        rules += [
            Rule(rf"{rpn}(cls|bbox)_tower\.(.+)", "head.{1}_subnet.{2}"),
            Rule(rf"{rpn}cls_logits\.(\w+)", "head.cls_score.{1}", reorder),
            Rule(rf"{rpn}bbox_pred\.(\w+)", "head.bbox_pred.{1}", reorder),
            Rule(rf"{rpn}(?:centerness|iou_pred)\.(\w+)", f"head.{third}.{{1}}"),
            Rule(rf"{rpn}scales\.(\d)\.scale", "head.scales.{1}", lambda x: x.reshape(())),
            Rule(rf"{guide}sigmas", "criterion.guide.sigma"),
            Rule(rf"{guide}ratio", "criterion.guide.ratio", lambda x: x.reshape(())),
            Rule(rf"{guide}iters", "criterion.guide.iters", lambda x: x.reshape(()).long()),
        ]
        return rules
    box, mask = r"roi_heads\.box\.", r"roi_heads\.mask\."
    return [
        *rules,
        Rule(rf"{rpn}conv\.(\w+)", f"{ours_rpn}conv.{{1}}"),
        Rule(rf"{rpn}cls_logits\.(\w+)", f"{ours_rpn}objectness_logits.{{1}}"),
        Rule(rf"{rpn}bbox_pred\.(\w+)", f"{ours_rpn}anchor_deltas.{{1}}"),
        Rule(rf"{box}feature_extractor\.fc6\.(\w+)", "roi_heads.box_head.fc1.{1}"),
        Rule(rf"{box}feature_extractor\.fc7\.(\w+)", "roi_heads.box_head.fc2.{1}"),
        Rule(
            rf"{box}predictor\.cls_score\.(\w+)",
            "roi_heads.box_predictor.cls_score.{1}",
            background_last,
        ),
        Rule(
            rf"{box}predictor\.bbox_pred\.(\w+)",
            "roi_heads.box_predictor.bbox_pred.{1}",
            _boxes_without_background,
        ),
        Rule(
            rf"{mask}feature_extractor\.mask_fcn(\d)\.(\w+)", "roi_heads.mask_head.mask_fcn{1}.{2}"
        ),
        Rule(rf"{mask}predictor\.conv5_mask\.(\w+)", "roi_heads.mask_head.deconv.{1}"),
        Rule(
            rf"{mask}predictor\.mask_fcn_logits\.(\w+)",
            "roi_heads.mask_head.predictor.{1}",
            _without_background,
        ),
    ]


def _finish(tensors: Dict[str, torch.Tensor], cfg: Any) -> Dict[str, torch.Tensor]:
    """Normalisations without an epsilon, as such that add one to a variance of 1.

    Anchors are only checked: a model makes its own.
    """
    result = {n: v for n, v in tensors.items() if not n.startswith("cell_anchors.")}
    for name in tensors:
        if name.startswith("cell_anchors."):
            _check_anchors(int(name.rpartition(".")[2]), tensors[name], cfg)
        if not name.endswith(".norm.running_var"):
            continue
        norm = name[: -len("running_var")]
        leaves = ("weight", "bias", "running_mean", "running_var")
        weight, bias, mean, var = (tensors[norm + leaf].double() for leaf in leaves)
        scale = weight / var.sqrt()
        result[norm + "weight"] = scale.float()
        result[norm + "bias"] = (bias - mean * scale).float()
        result[norm + "running_mean"] = torch.zeros_like(mean).float()
        result[norm + "running_var"] = torch.full_like(var, 1 - _EPS).float()
    return result


def _check_anchors(level: int, theirs: torch.Tensor, cfg: Any) -> None:
    """Refuse a checkpoint whose anchors on a level are not those of the config, rounded."""
    from d2ext.modeling.last_pixel import rounded_anchors

    theirs = theirs.double()
    sides = theirs[:, 2:] - theirs[:, :2] + 1  # they end with their last pixel
    stride = round(2 * float(theirs[0, ::2].mean()) + 1)
    if cfg.MODEL.META_ARCHITECTURE in ("ExtFCOS", "ATSS"):
        sizes, ratios = [s * stride for s in cfg.MODEL.ATSS.ANCHOR_SCALES], [1.0]
    else:
        node = cfg.MODEL.ANCHOR_GENERATOR
        sizes, ratios = (
            of_level[min(level, len(of_level) - 1)] for of_level in (node.SIZES, node.ASPECT_RATIOS)
        )
    ours = rounded_anchors(stride, sizes, ratios).double()
    ours = (ours[:, 2:] - ours[:, :2]).reshape(len(sizes), -1, 2).transpose(0, 1).flatten(0, 1)
    if ours.shape != sides.shape or not torch.allclose(ours, sides, atol=1e-3):
        raise ConvertError(
            f"cell_anchors.{level} are {_shown(sides)} at a stride of {stride}, and the config's, "
            f"rounded, {_shown(ours)}; set MODEL.ANCHOR_GENERATOR.SIZES and ASPECT_RATIOS to those "
            "of this checkpoint."
        )


def _shown(sides: torch.Tensor) -> str:
    return ", ".join(f"{width:g} x {height:g}" for width, height in sides.tolist())


MASKRCNN_BENCHMARK = Source(
    "maskrcnn-benchmark's detectors (Sampling-Free)", _rules, finish=_finish
)
