"""Whether the weights of convolutions are stored channels last."""

import logging

import torch
from detectron2.config import CfgNode
from torch import nn

from .precision import fastest_dtype

__all__ = ["has_depthwise", "order_channels"]

logger = logging.getLogger(__name__)


def has_depthwise(model: nn.Module) -> bool:
    """Whether a convolution of the model has a group a channel, as in EfficientNet."""
    convolutions = (m for m in model.modules() if isinstance(m, nn.Conv2d))
    return any(m.groups == m.in_channels > 1 for m in convolutions)


def _in_half(cfg: CfgNode) -> bool:
    """Whether a step computes in two bytes; without autocast nothing is measured for it."""
    node = cfg.SOLVER.AMP
    if not node.ENABLED:
        return False
    return (fastest_dtype(cfg.MODEL.DEVICE) if node.DTYPE == "auto" else node.DTYPE) != "fp32"


def order_channels(cfg: CfgNode, model: nn.Module) -> nn.Module:
    """Apply ``MODEL.CHANNELS_LAST``, in place.

    ``auto`` is on where it is faster in every measurement: in autocast (half the bytes, and kernels
    that prefer this order), and with depthwise convolutions on a CPU. Float32 sums of other
    convolutions would differ in their last bits for little or no gain.
    """
    choice = cfg.MODEL.CHANNELS_LAST
    if choice == "auto":
        depthwise = cfg.MODEL.DEVICE == "cpu" and has_depthwise(model)
        choice = "on" if depthwise or _in_half(cfg) else "off"
        if choice == "on":
            logger.info("Weights are channels last (MODEL.CHANNELS_LAST auto).")
    return model.to(memory_format=torch.channels_last) if choice == "on" else model
