"""Any network of timm as a backbone, with a feature pyramid on it.

Feature maps are named by their level, "c3" for stride 8, and those of the pyramid "p3". A network
whose maps all have one stride (a ViT) gets the simple feature pyramid of ViTDet.
"""

import logging
import math
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from detectron2.modeling.backbone.fpn import FPN, LastLevelMaxPool, LastLevelP6P7
from detectron2.modeling.backbone.vit import SimpleFeaturePyramid
from torch import nn

from d2ext.config.keys import construct

from .pretrained import InputRecord, import_timm, record_of

__all__ = ["InputAdapter", "TimmBackbone", "build_timm_backbone", "build_timm_fpn_backbone"]

logger = logging.getLogger(__name__)


class InputAdapter(nn.Module):
    """Turns images that are normalised in one way into images normalised in another.

    Args:
        given, wanted: how images come, and how the network expects them.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, given: InputRecord, wanted: InputRecord):
        super().__init__()
        self.flip = given.format != wanted.format
        mean, std = (torch.tensor(x, dtype=torch.float64) for x in (given.mean, given.std))
        if self.flip:
            mean, std = mean.flip(0), std.flip(0)
        wanted_std = torch.tensor(wanted.std, dtype=torch.float64)
        scale = std / wanted_std
        shift = (mean - torch.tensor(wanted.mean, dtype=torch.float64)) / wanted_std
        self.register_buffer("scale", scale.float().view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", shift.float().view(1, -1, 1, 1), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.flip(1) if self.flip else x
        return x * self.scale.to(x.dtype) + self.shift.to(x.dtype)


class TimmBackbone(Backbone):
    """The feature maps of a network of timm.

    Its parameters bear timm's names below ``net.model``, so that timm's files fit.

    Args:
        name: of the network, as ``timm.create_model`` takes it.
        out_strides: strides of the maps that are wanted, ascending.
        norm: "BN", "EvalBN", "FrozenBN" or "SyncBN"; see ``MODEL.TIMM.NORM``.
        drop_path: rate of stochastic depth.
        freeze_at: 1 freezes all before the first stage, 2 that stage too, and so on.
        adapter: what images go through first; None: nothing.
        in_channels: of the images.
    """

    def __init__(
        self,
        name: str,
        *,
        out_strides: Sequence[int] = (8, 16, 32),
        norm: str = "BN",
        drop_path: float = 0.0,
        freeze_at: int = 0,
        adapter: Optional[nn.Module] = None,
        in_channels: int = 3,
    ):
        super().__init__()
        if norm not in ("BN", "EvalBN", "FrozenBN", "SyncBN"):
            raise ValueError(f"norm must be BN, EvalBN, FrozenBN or SyncBN, not {norm!r}.")
        strides = list(out_strides)
        if strides != sorted(set(strides)) or any(s & (s - 1) for s in strides):
            raise ValueError(f"out_strides must be ascending powers of two, not {strides}.")
        self.name = name
        self.norm = norm
        self.adapter = adapter
        self.net, self._index = _create(name, strides, drop_path, in_channels)
        channels = self.net.feature_info.channels()
        reduction = self.net.feature_info.reduction()
        self._out_features = [_level("c", reduction[k]) for k in self._index]
        self._out_feature_channels = {_level("c", reduction[k]): channels[k] for k in self._index}
        self._out_feature_strides = {_level("c", reduction[k]): reduction[k] for k in self._index}
        if norm == "SyncBN":
            self.net = import_timm().layers.convert_sync_batchnorm(self.net)
        self.frozen = self._freeze(freeze_at)
        if norm == "FrozenBN":
            for layer in _batch_norms(self):
                layer.requires_grad_(False)
        self.train()

    @property
    def size_divisibility(self) -> int:
        return max(self._out_feature_strides.values())

    def forward(self, x: torch.Tensor) -> Dict[str, torch.Tensor]:
        maps = self.net(x if self.adapter is None else self.adapter(x))
        return {name: maps[k] for name, k in zip(self._out_features, self._index)}

    def train(self, mode: bool = True) -> "TimmBackbone":
        super().train(mode)
        fixed = _batch_norms(self) if self.norm in ("EvalBN", "FrozenBN") else []
        for layer in [*fixed, *self.frozen]:
            layer.eval()
        return self

    def _freeze(self, freeze_at: int) -> List[nn.Module]:
        """Fix the first parts of the network; the batch normalisations among them."""
        if freeze_at < 1:
            return []
        stages = self._stages()
        if freeze_at > len(stages):
            raise ValueError(
                f"freeze_at is {freeze_at}, but {self.name} has {len(stages)} stages; use at most "
                f"{len(stages)}."
            )
        fixed = set()
        for name, parameter in self.net.named_parameters():
            if _is_in(name, stages[freeze_at - 1]):
                break
            parameter.requires_grad_(False)
            fixed.add(name.rpartition(".")[0])
        return [m for n, m in self.net.named_modules() if n in fixed and m in _batch_norms(self)]

    def _stages(self) -> List[str]:
        """Names of what ``freeze_at`` counts: stages, or blocks where there are none."""
        info = self.net.feature_info
        if len(self._index) == 1 and len(set(info.reduction())) == 1:
            return [f"blocks.{k}" for k in range(len(self.net.model.blocks))]
        return [d["module"] for d in info.get_dicts(["module", "reduction"]) if d["reduction"] > 2]


def _batch_norms(module: nn.Module) -> List[nn.Module]:
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def _is_in(parameter: str, module: str) -> bool:
    """Whether a parameter of the network belongs to the module that timm names."""
    return f".{parameter}".startswith((f".model.{module}.", f".{module}."))


def _level(prefix: str, stride: int) -> str:
    return f"{prefix}{int(math.log2(stride))}"


def _create(
    name: str, strides: List[int], drop_path: float, in_channels: int
) -> Tuple[Any, List[int]]:
    """The network, and which of its maps are wanted; of a ViT it is the last one alone."""
    timm = import_timm()
    options: Dict[str, Any] = {"features_only": True, "in_chans": in_channels}
    if drop_path > 0:
        options["drop_path_rate"] = drop_path
    try:
        # "getter" keeps timm's own names of parameters.
        net: Any = _try_options(timm, name, {**options, "feature_cls": "getter"})
    except RuntimeError as error:
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:3]) or "timm.list_models()"
        raise ValueError(
            f"timm cannot make '{name}' ({str(error).splitlines()[0]}); choose another "
            f"MODEL.TIMM.NAME, such as {near}."
        ) from error
    reduction = net.feature_info.reduction()
    if len(set(reduction)) == 1:
        if reduction[0] & (reduction[0] - 1):
            raise ValueError(
                f"The feature maps of {name} have stride {reduction[0]}, not a power of two; "
                "choose a network with patches of 16 pixels."
            )
        return net, [len(reduction) - 1]
    missing = [s for s in strides if s not in reduction]
    if missing:
        raise ValueError(
            f"out_strides asks for {missing[0]}, but the feature maps of {name} have strides "
            f"{', '.join(map(str, reduction))}; choose among those."
        )
    return net, [reduction.index(s) for s in strides]


def _try_options(timm: Any, name: str, options: Dict[str, Any]) -> nn.Module:
    """Make the network for images of any size: transformers need an argument, others refuse it."""
    for more in ({"dynamic_img_size": True}, {"strict_img_size": False}, {}):
        try:
            return timm.create_model(name, pretrained=False, **options, **more)
        except TypeError as error:
            if not any(word in str(error) for word in more):
                raise
    raise AssertionError("the last form has no option that could be refused")


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: Any, input_shape: ShapeSpec) -> TimmBackbone:
    """The feature maps of ``MODEL.TIMM.NAME`` without a pyramid, named "c3", "c4", ..."""
    adapter = None
    if cfg.MODEL.TIMM.INPUT == "auto":
        wanted = record_of(cfg.MODEL.TIMM.NAME, cfg.MODEL.TIMM.WEIGHTS)
        given = InputRecord.from_config(cfg)
        if wanted is not None and not given.equals(wanted):
            logger.info(f"Images come as {given}; {cfg.MODEL.TIMM.NAME} sees them as {wanted}.")
            adapter = InputAdapter(given, wanted)
    return construct(
        TimmBackbone,
        cfg,
        "MODEL.TIMM",
        part="net",
        adapter=adapter,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
        in_channels=input_shape.channels,
    )


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: Any, input_shape: ShapeSpec) -> Backbone:
    """A network of timm with a feature pyramid; the levels on top are those the detector reads."""
    bottom_up = build_timm_backbone(cfg, input_shape)
    node, channels = cfg.MODEL.FPN, cfg.MODEL.FPN.OUT_CHANNELS
    shapes = bottom_up.output_shape()
    strides = cfg.MODEL.TIMM.OUT_STRIDES
    last = list(shapes)[-1]
    kind = cfg.MODEL.TIMM.TOP_BLOCK
    if kind == "auto":
        kind = _top_of_detector(cfg, _level("p", strides[-1]))
    is_plain = len(shapes) == 1 and len(strides) > 1
    if is_plain and kind == "c5":
        kind = "p5"  # there is one map below the pyramid, of another stride
    top = _TOP_BLOCKS[kind](shapes[last].channels, channels, last, _level("p", strides[-1]))
    if is_plain:
        return SimpleFeaturePyramid(
            bottom_up,
            in_feature=last,
            out_channels=channels,
            scale_factors=[shapes[last].stride / s for s in strides],
            top_block=top,
            norm=node.NORM or "LN",
        )
    return FPN(
        bottom_up=bottom_up,
        in_features=list(shapes),
        out_channels=channels,
        norm=node.NORM,
        top_block=top,
        fuse_type=node.FUSE_TYPE,
    )


_TOP_BLOCKS: Dict[str, Callable[[int, int, str, str], Optional[nn.Module]]] = {
    "p5": lambda c, out, below, level: LastLevelP6P7(out, out, in_feature=level),
    "c5": lambda c, out, below, level: LastLevelP6P7(c, out, in_feature=below),
    "pool": lambda c, out, below, level: LastLevelMaxPool(),
    "none": lambda c, out, below, level: None,
}


def _top_of_detector(cfg: Any, last: str) -> str:
    """The top block whose levels the detector reads; a level that is not read is not made."""
    names = [*cfg.MODEL.RPN.IN_FEATURES, *cfg.MODEL.ROI_HEADS.IN_FEATURES]
    detector, top = cfg.MODEL.META_ARCHITECTURE, "pool"
    sections = {"RetinaNet": "RETINANET", "DualWeighting": "DW"}
    sections.update({name: name for name in ("ATSS", "FCOS", "YOLOX")})
    for word, section in sections.items():
        if word in detector:
            names, top = cfg.MODEL[section].IN_FEATURES, "c5" if word == "RetinaNet" else "p5"
            break
    return top if max(int(name[1:]) for name in names) > int(last[1:]) else "none"
