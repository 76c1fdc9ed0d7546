"""What the constructors of losses are given by a config."""

from typing import Any, Callable, Dict

from torch import nn

from d2ext import losses
from d2ext.config import construct

__all__ = ["from_config"]


def from_config(cls: type, cfg: Any, **head: Any) -> nn.Module:
    """A registered loss with the arguments that a config has for it.

    Args:
        cls: the loss. A class of yours defines ``from_config(cfg, **head)``, which returns its
            constructor's arguments, or inherits what is said below of one of ours.
        cfg: the config.
        head: parameters of the head that the loss is for: ``num_classes``, ``alpha`` and ``gamma``
            for a class loss, ``smooth_l1_beta`` for a box loss.
    """
    for base in cls.__mro__:
        if base in _BUILDERS:
            return _BUILDERS[base](cls, cfg, **head)
        if "from_config" in vars(base):
            return cls(**cls.from_config(cfg, **head))
    return cls()


def _with_classes(section: str) -> Callable[..., nn.Module]:
    """Builder of a loss that takes the arguments of a section and the number of classes."""

    def build(cls, cfg, *, num_classes, alpha, gamma):
        return construct(cls, cfg, section, num_classes=num_classes)

    return build


def _focal(cls, cfg, *, num_classes, alpha, gamma):
    return cls(alpha=alpha, gamma=gamma)


def _quality_focal(cls, cfg, *, num_classes, alpha, gamma):
    return cls(gamma=gamma)


def _ghmc(cls, cfg, *, num_classes, alpha, gamma):
    return construct(cls, cfg, "MODEL.GHM")


def _smooth_l1(cls, cfg, *, smooth_l1_beta):
    return cls(beta=smooth_l1_beta)


def _harmonic_iou(cls, cfg, *, smooth_l1_beta):
    return cls() if cfg is None else cls(gamma=cfg.MODEL.HARMONIC.GAMMA)


_BUILDERS: Dict[type, Callable[..., nn.Module]] = {
    losses.EQLv2Loss: _with_classes("MODEL.EQLV2"),
    losses.EqualizedFocalLoss: _with_classes("MODEL.EFL"),
    losses.FocalLoss: _focal,
    losses.GHMCLoss: _ghmc,
    losses.HarmonicIoULoss: _harmonic_iou,
    losses.QualityFocalLoss: _quality_focal,
    losses.SeesawLoss: _with_classes("MODEL.SEESAW"),
    losses.SmoothL1Loss: _smooth_l1,
}
