"""Modulated deformable convolution (DCNv2) on torchvision's operator.

Detectron2's own needs its compiled extension, which a source installation without a compiler lacks.
"""

from typing import Any, Dict, Optional

import torch
from detectron2.layers import CNNBlockBase, Conv2d
from detectron2.modeling.backbone.resnet import BottleneckBlock
from torch import nn
from torch.nn import functional as F
from torchvision.ops import deform_conv2d

__all__ = ["DeformBottleneckBlock", "ModulatedDeformConv", "split_offset_mask"]


def split_offset_mask(offset_mask: torch.Tensor):
    """Offsets (N, 2 g k, h, w) and modulation (N, g k, h, w) in (0, 1) from one convolution."""
    num_points = offset_mask.shape[1] // 3
    return offset_mask[:, : 2 * num_points], offset_mask[:, 2 * num_points :].sigmoid()


class ModulatedDeformConv(nn.Conv2d):
    """A convolution that samples at learned places and weighs the samples.

    A drop-in for ``nn.Conv2d``: a convolution ``conv_offset``, which starts at zero, predicts from
    the same input where to sample and with which weight in (0, 1); initially at the regular places
    and with 0.5 (half of a plain convolution's output), as in the paper.

    Args:
        norm: a normalisation module that follows, optional.
        deform_groups: groups of channels that sample at places of their own.
        with_offset_conv: False where the caller predicts the places.
        kwargs: arguments of ``nn.Conv2d``.
    """

    def __init__(
        self,
        *args,
        norm: Optional[nn.Module] = None,
        deform_groups: int = 1,
        with_offset_conv: bool = True,
        **kwargs,
    ):
        super().__init__(*args, **kwargs)
        self.norm = norm
        if with_offset_conv:
            same: Dict[str, Any] = {
                name: getattr(self, name)
                for name in ("kernel_size", "stride", "padding", "dilation")
            }
            points = deform_groups * self.kernel_size[0] * self.kernel_size[1]
            self.conv_offset = nn.Conv2d(self.in_channels, 3 * points, **same)
            nn.init.zeros_(self.conv_offset.weight)
            assert self.conv_offset.bias is not None
            nn.init.zeros_(self.conv_offset.bias)

    def forward(self, x: torch.Tensor, offset_mask: Optional[torch.Tensor] = None) -> torch.Tensor:
        """
        Args:
            x: (N, C, h, w).
            offset_mask: output of an offset convolution; by default that of ``conv_offset``.
        """
        if offset_mask is None:
            offset_mask = self.conv_offset(x)
        with torch.autocast(device_type=x.device.type, enabled=False):
            # Sampling positions need more digits than half precision has.
            dtype = torch.promote_types(x.dtype, torch.float32)
            offset, mask = split_offset_mask(offset_mask.to(dtype))
            out = deform_conv2d(
                x.to(dtype),
                offset,
                self.weight.to(dtype),
                None if self.bias is None else self.bias.to(dtype),
                stride=self.stride,
                padding=self.padding,
                dilation=self.dilation,
                mask=mask,
            )
        return out if self.norm is None else self.norm(out)


class DeformBottleneckBlock(CNNBlockBase):
    """A ResNet bottleneck whose 3x3 convolution is deformable and modulated.

    Has the state-dict keys of Detectron2's class of the same name (``conv2_offset`` beside
    ``conv2``), so its weights load here and the other way round.
    """

    def __init__(self, block: BottleneckBlock, deform_groups: int = 1):
        """
        Args:
            block: a plain bottleneck, whose layers are taken over.
            deform_groups: groups of channels that sample at places of their own.
        """
        super().__init__(block.in_channels, block.out_channels, block.stride)
        self.shortcut = block.shortcut
        self.conv1 = block.conv1
        plain = block.conv2
        geometry = {
            "kernel_size": plain.kernel_size,
            "stride": plain.stride,
            "padding": plain.padding,
            "dilation": plain.dilation,
        }
        points = deform_groups * plain.kernel_size[0] * plain.kernel_size[1]
        self.conv2_offset = Conv2d(plain.in_channels, 3 * points, **geometry)
        nn.init.zeros_(self.conv2_offset.weight)
        nn.init.zeros_(self.conv2_offset.bias)
        self.conv2 = ModulatedDeformConv(
            plain.in_channels,
            plain.out_channels,
            groups=plain.groups,
            bias=False,
            norm=plain.norm,
            with_offset_conv=False,
            **geometry,
        )
        self.conv2.weight = plain.weight
        self.conv3 = block.conv3

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.conv1(x))
        out = F.relu(self.conv2(out, self.conv2_offset(out)))
        out = self.conv3(out)
        shortcut = x if self.shortcut is None else self.shortcut(x)
        return F.relu(out + shortcut)
