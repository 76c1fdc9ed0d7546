"""What LazyConfigs need to name parts that YAML configs get by a key."""

from detectron2.modeling.backbone import ResNet

from .backbones.resnet import EvalBatchNorm2d

__all__ = ["eval_bn_resnet"]


def eval_bn_resnet(resnet: ResNet) -> ResNet:
    """``MODEL.RESNETS.NORM: "EvalBN"`` for a ResNet with ``FrozenBN``: all stages after res2."""
    for stage in resnet.stages[1:]:
        EvalBatchNorm2d.convert(stage)
    return resnet
