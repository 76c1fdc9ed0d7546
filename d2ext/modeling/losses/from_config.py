"""What the constructors of losses are given by a config."""

import json
from typing import Any, Callable, Dict, List

from torch import nn

from d2ext import losses
from d2ext.config import construct

__all__ = ["from_config", "read_counts"]


def from_config(cls: Any, cfg: Any, **head: Any) -> Any:
    """A registered loss with the arguments that a config has for it.

    Args:
        cls: the loss. A class of yours defines ``from_config(cfg, **head)``, which returns its
            constructor's arguments, or inherits from one of d2ext's.
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


def _of_section(section: str) -> Callable[..., nn.Module]:
    """Builder of a loss that takes the arguments of a section and not the head's."""

    def build(cls, cfg, **head):
        return construct(cls, cfg, section)

    return build


def _class_margins(cls, cfg, *, num_classes, alpha, gamma):
    path = cfg.MODEL.ECM.COUNTS
    counts = None if path == "auto" else read_counts(path, num_classes)
    return construct(cls, cfg, "MODEL.ECM", num_classes=num_classes, counts=counts)


def read_counts(path: str, num_classes: int) -> List[float]:
    """The numbers of a JSON file: a list, one a class, or LVIS' with ``image_count``."""
    with open(path, encoding="utf-8") as file:
        try:
            data = json.load(file)
        except ValueError as error:
            raise ValueError(f"MODEL.ECM.COUNTS {path} is not a JSON file: {error}.") from error
    if isinstance(data, dict):
        categories = sorted(data.get("categories", []), key=lambda c: c["id"])
        data = [c.get("image_count") for c in categories]
    numbers = isinstance(data, list) and all(isinstance(x, (int, float)) for x in data)
    if not numbers or len(data) != num_classes:
        raise ValueError(
            f"MODEL.ECM.COUNTS {path} must hold a list of {num_classes} numbers, one a class, or "
            "categories with image_count as in LVIS."
        )
    return data


def _smooth_l1(cls, cfg, *, smooth_l1_beta):
    return cls(beta=smooth_l1_beta)


def _harmonic_iou(cls, cfg, *, smooth_l1_beta):
    return cls() if cfg is None else cls(gamma=cfg.MODEL.HARMONIC.GAMMA)


def _ghm_r(cls, cfg, *, smooth_l1_beta):
    return construct(cls, cfg, "MODEL.GHM_R", per_level=cfg.MODEL.GHM.PER_LEVEL)


_BUILDERS: Dict[type, Callable[..., nn.Module]] = {
    losses.EffectiveClassMarginLoss: _class_margins,
    losses.EQLv2Loss: _with_classes("MODEL.EQLV2"),
    losses.EqualizedFocalLoss: _with_classes("MODEL.EFL"),
    losses.FocalLoss: _focal,
    losses.GHMCLoss: _of_section("MODEL.GHM"),
    losses.GHMRLoss: _ghm_r,
    losses.HarmonicIoULoss: _harmonic_iou,
    losses.InnerIoULoss: _of_section("MODEL.INNER_IOU"),
    losses.MatchabilityAwareLoss: _of_section("MODEL.MAL"),
    losses.NWDLoss: _of_section("MODEL.NWD"),
    losses.QualityFocalLoss: _quality_focal,
    losses.SeesawLoss: _with_classes("MODEL.SEESAW"),
    losses.SmoothL1Loss: _smooth_l1,
    losses.VarifocalLoss: _of_section("MODEL.VARIFOCAL"),
    losses.WiseIoULoss: _of_section("MODEL.WIOU"),
}
