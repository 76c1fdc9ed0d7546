"""State dicts of the DW authors' released checkpoints, under the names of this package.

Their detector is mmdetection's FCOS with a ResNet, an FPN and a head of its own.
"""

import re
from typing import Dict, List, Mapping, Tuple

import torch

from d2ext.safe_load import UnsafeFileError, load_tensors

__all__ = ["check_fits", "convert_dw_state_dict", "load_authors_checkpoint"]

# Layers of the towers: conv, norm, ReLU, conv, ...
_PER_CONV = 3
_TOWERS = {"cls_convs": "cls_subnet", "reg_convs": "bbox_subnet"}
_HEAD = {
    "conv_cls": "cls_score",
    "conv_reg": "bbox_pred",
    "conv_centerness": "ctrness",
    "reg_offset": "reg_offset",
}
_BACKBONE: List[Tuple[str, str]] = [
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer(\d)\.(\d+)\.conv2\.conv_offset\.", r"res{0}.\2.conv2_offset."),
    (r"^layer(\d)\.(\d+)\.conv(\d)\.", r"res{0}.\2.conv\3."),
    (r"^layer(\d)\.(\d+)\.bn(\d)\.", r"res{0}.\2.conv\3.norm."),
    (r"^layer(\d)\.(\d+)\.downsample\.0\.", r"res{0}.\2.shortcut."),
    (r"^layer(\d)\.(\d+)\.downsample\.1\.", r"res{0}.\2.shortcut.norm."),
]
# The authors' constant centre prior; sigma is one float32 a class and axis.
_PRIOR = {"center_prior.mean": 0.0, "center_prior.sigma": 1.11}


def convert_dw_state_dict(state_dict: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """Rename the parameters of an authors' checkpoint for ``DualWeightingFCOS``.

    Args:
        state_dict: names starting with ``backbone.``, ``neck.`` or ``bbox_head.``.

    Returns:
        the same tensors, except that the factors of the levels are joined to one vector.

    Raises:
        ValueError: for a name that is none of the authors' model's, or a centre prior that was
            trained.
    """
    converted: Dict[str, torch.Tensor] = {}
    scales: Dict[int, torch.Tensor] = {}
    for name, value in state_dict.items():
        part, _, rest = name.partition(".")
        if part == "bbox_head" and rest in _PRIOR:
            _check_prior(name, value, _PRIOR[rest])
        elif part == "bbox_head" and rest.startswith("scales."):
            scales[int(rest.split(".")[1])] = value.reshape(())
        else:
            converted[_rename(name, part, rest)] = value
    if scales:
        converted["head.scales"] = torch.stack([scales[i] for i in sorted(scales)])
    return converted


def load_authors_checkpoint(path: str) -> Dict[str, torch.Tensor]:
    """The state dict of a file, which may only hold tensors: nothing in it is executed."""
    try:
        checkpoint = load_tensors(path)
    except UnsafeFileError as error:
        raise ValueError(
            f"{path} holds more than tensors and plain values, which could run code on loading; "
            "save its 'state_dict' alone with torch.save and convert that."
        ) from error
    state_dict = checkpoint.get("state_dict", checkpoint)
    return {name: value for name, value in state_dict.items() if isinstance(value, torch.Tensor)}


def check_fits(converted: Mapping[str, torch.Tensor], shapes: Mapping[str, torch.Size]) -> None:
    """Refuse a converted checkpoint that does not fill a model.

    Args:
        converted: result of :func:`convert_dw_state_dict`.
        shapes: the shapes in the model's state dict.
    """
    # Detectron2's frozen BatchNorm does not count batches.
    left = {n for n in converted if n not in shapes and not n.endswith("num_batches_tracked")}
    missing = {n for n in shapes if n not in converted and not n.endswith("num_batches_tracked")}
    wrong = {n for n in converted if n in shapes and converted[n].shape != shapes[n]}
    for names, what in (
        (left, "has no place in the model"),
        (missing, "is not in the checkpoint"),
        (wrong, "has another shape in the model"),
    ):
        if names:
            raise ValueError(
                f"{sorted(names)[0]} {what} ({len(names)} such); choose the config of this "
                "checkpoint: with or without refinement, deformable convolutions, the same depth "
                "and number of classes."
            )


def _check_prior(name: str, value: torch.Tensor, expected: float) -> None:
    if not torch.allclose(value.float(), torch.full_like(value.float(), expected), atol=1e-6):
        to_train = (
            "set MODEL.DW.PRIOR_SIGMA to it, if it is one number, before you train on"
            if name.endswith(".sigma")
            else "train on only with a prior around the centre, which no key moves"
        )
        raise ValueError(
            f"{name} is not {expected} throughout, so this checkpoint was trained with another "
            "centre prior; detections do not depend on it: delete the entry from the state dict "
            f"to convert the rest, and {to_train}."
        )


def _rename(name: str, part: str, rest: str) -> str:
    if part == "backbone":
        new = _rename_backbone(rest)
    elif part == "neck":
        new = _rename_neck(rest)
    elif part == "bbox_head":
        new = _rename_head(rest)
    else:
        new = ""
    if not new:
        raise ValueError(
            f"'{name}' is no parameter of the DW authors' detector; pass a checkpoint of theirs "
            "(names start with backbone., neck. and bbox_head.)."
        )
    return new


def _rename_backbone(rest: str) -> str:
    for pattern, target in _BACKBONE:
        match = re.match(pattern, rest)
        if match:
            if "{0}" in target:  # layer1 is res2
                target = target.replace("{0}", str(int(match.group(1)) + 1))
            return "backbone.bottom_up." + match.expand(target) + rest[match.end() :]
    return ""


def _rename_neck(rest: str) -> str:
    match = re.match(r"^(lateral|fpn)_convs\.(\d+)\.conv\.(weight|bias)$", rest)
    if not match:
        return ""
    kind, index, leaf = match.group(1), int(match.group(2)), match.group(3)
    if kind == "lateral":
        return f"backbone.fpn_lateral{index + 3}.{leaf}"
    if index < 3:  # P3 to P5; the two after them make P6 and P7
        return f"backbone.fpn_output{index + 3}.{leaf}"
    return f"backbone.top_block.p{index + 3}.{leaf}"


def _rename_head(rest: str) -> str:
    match = re.match(r"^(cls_convs|reg_convs)\.(\d+)\.(conv|gn)\.(.+)$", rest)
    if match:
        tower, index = _TOWERS[match.group(1)], int(match.group(2)) * _PER_CONV
        return f"head.{tower}.{index + (match.group(3) == 'gn')}.{match.group(4)}"
    layer, _, leaf = rest.partition(".")
    return f"head.{_HEAD[layer]}.{leaf}" if layer in _HEAD else ""
