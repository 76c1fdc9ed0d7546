"""Detectron2's ResNet with two more choices, both by its own keys.

* ``MODEL.RESNETS.NORM: "EvalBN"``: BatchNorm that always uses its stored statistics, but whose
  affine parameters are trained. ``FrozenBN`` does not train them.
* ``MODEL.RESNETS.DEFORM_ON_PER_STAGE`` works without Detectron2's compiled operators.
"""

from typing import Any

import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.modeling import build_resnet_backbone
from detectron2.modeling.backbone import Backbone
from torch import nn

from .deform import DeformBottleneckBlock

__all__ = ["EvalBatchNorm2d", "build_ext_resnet_backbone"]


class EvalBatchNorm2d(nn.BatchNorm2d):
    """BatchNorm that is always in evaluation mode; its weight and bias are ordinary parameters.

    Being a subclass of ``nn.BatchNorm2d``, it takes part in ``SOLVER.WEIGHT_DECAY_NORM``.
    """

    def train(self, mode: bool = True) -> "EvalBatchNorm2d":
        return super().train(False)

    @classmethod
    def convert(cls, module: nn.Module) -> nn.Module:
        """Replace every ``FrozenBatchNorm2d`` inside ``module``, keeping its numbers."""
        for name, child in module.named_children():
            if isinstance(child, FrozenBatchNorm2d):
                new: Any = cls(child.num_features, eps=child.eps)
                with torch.no_grad():
                    new.weight.copy_(child.weight)
                    new.bias.copy_(child.bias)
                    new.running_mean.copy_(child.running_mean)
                    new.running_var.copy_(child.running_var)
                setattr(module, name, new.eval())
            else:
                cls.convert(child)
        return module


def build_ext_resnet_backbone(cfg: Any, input_shape: ShapeSpec) -> Backbone:
    """A ResNet from ``MODEL.RESNETS``, with the choices this module adds."""
    node = cfg.MODEL.RESNETS
    deform = list(node.DEFORM_ON_PER_STAGE)
    if any(deform) and not node.DEFORM_MODULATED:
        raise ValueError(
            "MODEL.RESNETS.DEFORM_ON_PER_STAGE needs MODEL.RESNETS.DEFORM_MODULATED True: only "
            "modulated deformable convolutions are supported."
        )
    if any(deform) and node.DEPTH < 50:
        raise ValueError(
            f"MODEL.RESNETS.DEFORM_ON_PER_STAGE needs bottlenecks, and a ResNet-{node.DEPTH} "
            "has none; set MODEL.RESNETS.DEPTH to 50 or more."
        )
    eval_bn = node.NORM == "EvalBN"
    plain = cfg.clone()
    plain.defrost()
    plain.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False] * len(deform)
    if eval_bn:
        plain.MODEL.RESNETS.NORM = "FrozenBN"
    resnet = build_resnet_backbone(plain, input_shape)
    freeze_at = cfg.MODEL.BACKBONE.FREEZE_AT  # 1: the stem; 2: res2 too, ...
    # What is frozen keeps FrozenBN: none of it is to be trained.
    if eval_bn and freeze_at < 1:
        EvalBatchNorm2d.convert(resnet.stem)
    for number, (stage, deformable) in enumerate(zip(resnet.stages, deform), start=2):
        frozen = number <= freeze_at
        if eval_bn and not frozen:
            EvalBatchNorm2d.convert(stage)
        if deformable:
            for i, block in enumerate(stage):
                stage[i] = DeformBottleneckBlock(block, node.DEFORM_NUM_GROUPS)
                if frozen:
                    stage[i].freeze()
    return resnet
