"""Detectron2's side of :mod:`d2ext.losses`: registries, builders and what is logged."""

import importlib
import sys

from d2ext.losses import *  # noqa: F403  (the old place of all of them)
from d2ext.losses import __all__ as _LOSSES

# Modules that moved whole; what is imported from their old places is the same.
for _name in (
    *("box_losses", "cls_losses", "eqlv2", "equalized_focal", "ghm", "gradient_balanced"),
    "seesaw",
):
    sys.modules[f"{__name__}.{_name}"] = importlib.import_module(f"d2ext.losses.{_name}")

from .build import build_box_loss, build_cls_loss, build_criterion  # noqa: E402
from .criterion import Criterion  # noqa: E402
from .guided import build_guide, sampling_free_on  # noqa: E402
from .harmonic import build_harmonic_coupling  # noqa: E402
from .positives import Positives  # noqa: E402
from .registry import BOX_LOSS_REGISTRY, CLS_LOSS_REGISTRY, NORMALIZER_REGISTRY  # noqa: E402

__all__ = [
    *_LOSSES,
    "BOX_LOSS_REGISTRY",
    "CLS_LOSS_REGISTRY",
    "Criterion",
    "NORMALIZER_REGISTRY",
    "Positives",
    "build_box_loss",
    "build_cls_loss",
    "build_criterion",
    "build_guide",
    "build_harmonic_coupling",
    "sampling_free_on",
]
