"""DW's detector: mmdetection's FCOS with a head of its own."""

from typing import Any, Dict, List

import torch

from .names import ConvertError, Rule, Source, resnet_rules

__all__ = ["DUAL_WEIGHTING"]

# The authors' constant centre prior; sigma is one float32 a class and axis.
_PRIOR = {"prior.mean": 0.0, "prior.sigma": 1.11}


def _rules(cfg: Any) -> List[Rule]:
    rules = [
        *resnet_rules(r"backbone\."),
        Rule(r"neck\.lateral_convs\.(\d)\.conv\.(\w+)", "backbone.fpn_lateral{1+3}.{2}"),
        # P3 to P5; the two after them make P6 and P7.
        Rule(r"neck\.fpn_convs\.([012])\.conv\.(\w+)", "backbone.fpn_output{1+3}.{2}"),
        Rule(r"neck\.fpn_convs\.([34])\.conv\.(\w+)", "backbone.top_block.p{1+3}.{2}"),
        Rule(r"bbox_head\.scales\.(\d)\.scale", "head.scales.{1}"),
        Rule(r"bbox_head\.center_prior\.(mean|sigma)", "prior.{1}"),
    ]
    for theirs, ours in (("cls", "cls_subnet"), ("reg", "bbox_subnet")):
        tower = rf"bbox_head\.{theirs}_convs\.(\d)"
        rules += [
            Rule(rf"{tower}\.conv\.(.+)", f"head.{ours}.{{1*3}}.{{2}}"),
            Rule(rf"{tower}\.gn\.(\w+)", f"head.{ours}.{{1*3+1}}.{{2}}"),
        ]
    for theirs, ours in (
        ("conv_cls", "cls_score"),
        ("conv_reg", "bbox_pred"),
        ("conv_centerness", "ctrness"),
        ("reg_offset", "reg_offset"),
    ):
        rules.append(Rule(rf"bbox_head\.{theirs}\.(\w+)", f"head.{ours}.{{1}}"))
    return rules


def _finish(tensors: Dict[str, torch.Tensor], cfg: Any) -> Dict[str, torch.Tensor]:
    """The levels' factors as one vector; the centre prior only checked, it has no parameters."""
    result = {}
    scales = {}
    for name, value in tensors.items():
        if name in _PRIOR:
            _check_prior(name, value)
        elif name.startswith("head.scales."):
            scales[int(name.rpartition(".")[2])] = value.reshape(())
        else:
            result[name] = value
    if scales:
        result["head.scales"] = torch.stack([scales[i] for i in sorted(scales)])
    return result


def _check_prior(name: str, value: torch.Tensor) -> None:
    expected = _PRIOR[name]
    if torch.allclose(value.float(), torch.full_like(value.float(), expected), atol=1e-6):
        return
    to_train = (
        "set MODEL.DW.PRIOR_SIGMA to it, if it is one number, before you train on"
        if name.endswith(".sigma")
        else "train on only with a prior around the centre, which no key moves"
    )
    raise ConvertError(
        f"bbox_head.center_{name} is not {expected} throughout, so this checkpoint was trained "
        "with another centre prior; detections do not depend on it: delete the entry from the "
        f"state dict to convert the rest, and {to_train}."
    )


DUAL_WEIGHTING = Source("the DW authors' detector", _rules, finish=_finish)
