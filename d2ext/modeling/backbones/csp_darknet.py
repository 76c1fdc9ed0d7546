"""CSPDarknet and its path-aggregation pyramid: the backbone of YOLOX.

    Ge et al., YOLOX: Exceeding YOLO Series in 2021, arXiv 2107.08430.

Parameters bear mmdetection's names, with Detectron2's ``norm`` for ``bn`` and without the ``conv``
around a convolution.

Shapes: N images, H and W multiples of 32.
"""

from typing import Any, Callable, Dict, List, Optional, Sequence

import torch
from detectron2.layers import Conv2d, FrozenBatchNorm2d, ShapeSpec, get_norm
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import Backbone
from torch import nn
from torch.nn import functional as F

from d2ext.config.keys import arguments, construct

__all__ = [
    "CSPDarknet",
    "CSPLayer",
    "PathAggregationPyramid",
    "build_csp_darknet_backbone",
    "build_csp_darknet_pafpn_backbone",
    "conv_norm_silu",
    "norm_factory",
]

NormFactory = Callable[[int], nn.Module]

# Bottlenecks of the four stages, before they are multiplied by the depth.
_BLOCKS = (3, 9, 9, 3)


def norm_factory(norm: str, bn_eps: float, bn_momentum: float) -> NormFactory:
    """Makes normalisations of one kind; those that have an epsilon and a momentum get these."""

    def make(channels: int) -> nn.Module:
        layer = get_norm(norm, channels)
        for name, value in (("eps", bn_eps), ("momentum", bn_momentum)):
            if hasattr(layer, name):
                setattr(layer, name, value)
        return layer

    return make


def conv_norm_silu(
    in_channels: int, out_channels: int, kernel_size: int, *, norm: NormFactory, stride: int = 1
) -> Conv2d:
    """Convolution without bias, normalisation and SiLU, all in one module."""
    return Conv2d(
        in_channels,
        out_channels,
        kernel_size,
        stride=stride,
        padding=kernel_size // 2,
        bias=False,
        norm=norm(out_channels),
        activation=F.silu,
    )


class SpaceToDepth(nn.Module):
    """Every 2 x 2 square becomes the channels of one place, and a convolution sees these."""

    def __init__(self, in_channels: int, out_channels: int, norm: NormFactory):
        super().__init__()
        self.conv = conv_norm_silu(4 * in_channels, out_channels, 3, norm=norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        corners = (x[..., dy::2, dx::2] for dx in (0, 1) for dy in (0, 1))
        return self.conv(torch.cat(tuple(corners), dim=1))


class Bottleneck(nn.Module):
    """A 1x1 and a 3x3 convolution, whose input may be added to their output."""

    def __init__(self, channels: int, shortcut: bool, norm: NormFactory):
        super().__init__()
        self.conv1 = conv_norm_silu(channels, channels, 1, norm=norm)
        self.conv2 = conv_norm_silu(channels, channels, 3, norm=norm)
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.conv2(self.conv1(x))
        return x + out if self.shortcut else out


class CSPLayer(nn.Module):
    """Bottlenecks on one half of the channels, beside the other half.

    Args:
        in_channels, out_channels: of the layer; a half has half of ``out_channels``.
        num_blocks: bottlenecks.
        shortcut: whether they add their input.
        norm: makes the normalisations.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        num_blocks: int,
        shortcut: bool,
        norm: NormFactory,
    ):
        super().__init__()
        half = out_channels // 2
        self.main_conv = conv_norm_silu(in_channels, half, 1, norm=norm)
        self.short_conv = conv_norm_silu(in_channels, half, 1, norm=norm)
        self.final_conv = conv_norm_silu(2 * half, out_channels, 1, norm=norm)
        self.blocks = nn.Sequential(*(Bottleneck(half, shortcut, norm) for _ in range(num_blocks)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        main = self.blocks(self.main_conv(x))
        return self.final_conv(torch.cat((main, self.short_conv(x)), dim=1))


class SpatialPyramidPooling(nn.Module):
    """The map beside its maxima over squares of 5, 9 and 13 places."""

    def __init__(self, channels: int, norm: NormFactory):
        super().__init__()
        self.conv1 = conv_norm_silu(channels, channels // 2, 1, norm=norm)
        self.poolings = nn.ModuleList(nn.MaxPool2d(k, stride=1, padding=k // 2) for k in (5, 9, 13))
        self.conv2 = conv_norm_silu(2 * channels, channels, 1, norm=norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        return self.conv2(torch.cat([x, *(pool(x) for pool in self.poolings)], dim=1))


class CSPDarknet(Backbone):
    """Feature maps "c2" to "c5" of strides 4 to 32.

    Args:
        in_channels: of the images.
        depth, width: multipliers of the numbers of bottlenecks and of channels; YOLOX-S has 0.33
            and 0.5, M 0.67 and 0.75.
        norm: makes the normalisations.
        out_features: names of the maps that are returned.
        freeze_at: 1 freezes the stem, 2 the first stage too, and so on.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        depth: float,
        width: float,
        norm: NormFactory,
        out_features: Sequence[str] = ("c3", "c4", "c5"),
        freeze_at: int = 0,
    ):
        super().__init__()
        channels = [int(64 * 2**i * width) for i in range(5)]
        self.stem = SpaceToDepth(in_channels, channels[0], norm)
        for i, blocks in enumerate(_BLOCKS):
            before, after = channels[i : i + 2]
            last = i == len(_BLOCKS) - 1
            csp = CSPLayer(
                after,
                after,
                num_blocks=max(round(blocks * depth), 1),
                shortcut=not last,
                norm=norm,
            )
            layers = [conv_norm_silu(before, after, 3, stride=2, norm=norm), csp]
            if last:
                layers.insert(1, SpatialPyramidPooling(after, norm))
            self.add_module(f"stage{i + 1}", nn.Sequential(*layers))
        names = [f"c{level}" for level in range(2, 6)]
        self._out_features = [name for name in names if name in out_features]
        self._out_feature_channels = dict(zip(names, channels[1:]))
        self._out_feature_strides = {name: 4 * 2**i for i, name in enumerate(names)}
        self._freeze(freeze_at)

    @property
    def size_divisibility(self) -> int:
        return 32

    def forward(self, x: torch.Tensor) -> Dict[str, torch.Tensor]:
        found = {}
        x = self.stem(x)
        for i in range(len(_BLOCKS)):
            x = getattr(self, f"stage{i + 1}")(x)
            found[f"c{i + 2}"] = x
        return {name: found[name] for name in self._out_features}

    def _freeze(self, freeze_at: int) -> None:
        names = ["stem", *(f"stage{i + 1}" for i in range(len(_BLOCKS)))]
        for name in names[:freeze_at]:
            part = FrozenBatchNorm2d.convert_frozen_batchnorm(getattr(self, name))
            setattr(self, name, part.requires_grad_(False))


class PathAggregationPyramid(Backbone):
    """A pyramid "p3" to "p5" that passes over its levels downwards and upwards again.

    Each level keeps the channels of the map it is made of.

    Args:
        bottom_up: the backbone below.
        in_features: names of its maps, finest first.
        num_blocks: bottlenecks of each CSP layer.
        shortcut: whether they add their input. Those of YOLOX do not; those of United-Perception's
            YOLOX do, which no shape of a checkpoint shows.
        norm: makes the normalisations.
    """

    def __init__(
        self,
        bottom_up: Backbone,
        *,
        in_features: Sequence[str] = ("c3", "c4", "c5"),
        num_blocks: int,
        shortcut: bool,
        norm: NormFactory,
    ):
        super().__init__()
        self.bottom_up = bottom_up
        self.in_features = list(in_features)
        shapes = [bottom_up.output_shape()[name] for name in in_features]
        channels = [shape.channels for shape in shapes]

        def csp(inside: int, outside: int) -> CSPLayer:
            return CSPLayer(inside, outside, num_blocks=num_blocks, shortcut=shortcut, norm=norm)

        self.reduce_layers, self.top_down_blocks = nn.ModuleList(), nn.ModuleList()
        self.downsamples, self.bottom_up_blocks = nn.ModuleList(), nn.ModuleList()
        for fine, coarse in list(zip(channels, channels[1:]))[::-1]:
            self.reduce_layers.append(conv_norm_silu(coarse, fine, 1, norm=norm))
            self.top_down_blocks.append(csp(2 * fine, fine))
        for fine, coarse in zip(channels, channels[1:]):
            self.downsamples.append(conv_norm_silu(fine, fine, 3, stride=2, norm=norm))
            self.bottom_up_blocks.append(csp(2 * fine, coarse))
        self._out_features = [name.replace("c", "p") for name in in_features]
        self._out_feature_channels = dict(zip(self._out_features, channels))
        self._out_feature_strides = {n: s.stride for n, s in zip(self._out_features, shapes)}
        self._size_divisibility = bottom_up.size_divisibility

    @property
    def size_divisibility(self) -> int:
        return self._size_divisibility

    def forward(self, x: torch.Tensor) -> Dict[str, torch.Tensor]:
        maps = self.bottom_up(x)
        *finer, top = [maps[name] for name in self.in_features]
        reduced: List[torch.Tensor] = []
        for reduce, block, fine in zip(self.reduce_layers, self.top_down_blocks, finer[::-1]):
            reduced.append(reduce(top))
            above = F.interpolate(reduced[-1], size=fine.shape[-2:], mode="nearest")
            top = block(torch.cat((above, fine), dim=1))
        levels = [top]
        for down, block, lateral in zip(self.downsamples, self.bottom_up_blocks, reduced[::-1]):
            levels.append(block(torch.cat((down(levels[-1]), lateral), dim=1)))
        return dict(zip(self._out_features, levels))


@BACKBONE_REGISTRY.register()
def build_csp_darknet_backbone(
    cfg: Any, input_shape: ShapeSpec, norm: Optional[NormFactory] = None
) -> CSPDarknet:
    """``MODEL.CSPDARKNET`` without a pyramid: maps "c3" to "c5"."""
    return construct(
        CSPDarknet,
        cfg,
        "MODEL.CSPDARKNET",
        part="net",
        in_channels=input_shape.channels,
        norm=norm or norm_factory(**arguments(cfg, "MODEL.CSPDARKNET", "norm")),
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


@BACKBONE_REGISTRY.register()
def build_csp_darknet_pafpn_backbone(cfg: Any, input_shape: ShapeSpec) -> Backbone:
    """``MODEL.CSPDARKNET`` with its path-aggregation pyramid: levels "p3" to "p5"."""
    node = cfg.MODEL.CSPDARKNET
    norm = norm_factory(**arguments(cfg, "MODEL.CSPDARKNET", "norm"))
    return PathAggregationPyramid(
        build_csp_darknet_backbone(cfg, input_shape, norm),
        num_blocks=max(round(_BLOCKS[0] * node.DEPTH), 1),
        shortcut=node.NECK_SHORTCUT,
        norm=norm,
    )
