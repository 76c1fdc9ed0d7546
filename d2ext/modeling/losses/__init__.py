"""Losses that own state, and the criterion that composes them."""

from .box_losses import BoxLoss, CIoULoss, DIoULoss, GIoULoss, IoULoss, SmoothL1Loss
from .build import build_box_loss, build_cls_loss, build_criterion
from .cls_losses import BCELoss, ClsLoss, FocalLoss, QualityFocalLoss, SoftmaxLoss
from .criterion import CoupledTerms, Criterion
from .eqlv2 import EQLv2Loss
from .equalized_focal import EqualizedFocalLoss, EqualizedQualityFocalLoss
from .ghm import GHMCLoss
from .gradient_balanced import GradientBalancedLoss
from .guided import GuidedScale, build_guide, sampling_free_on
from .harmonic import HarmonicCoupling, HarmonicIoULoss, build_harmonic_coupling
from .normalizers import NORMALIZER_REGISTRY, EMANormalizer, PositiveNormalizer
from .positives import Positives
from .registry import BOX_LOSS_REGISTRY, CLS_LOSS_REGISTRY
from .seesaw import SeesawLoss

__all__ = [
    "BOX_LOSS_REGISTRY",
    "BCELoss",
    "BoxLoss",
    "CIoULoss",
    "CLS_LOSS_REGISTRY",
    "ClsLoss",
    "CoupledTerms",
    "Criterion",
    "DIoULoss",
    "EMANormalizer",
    "EQLv2Loss",
    "EqualizedFocalLoss",
    "EqualizedQualityFocalLoss",
    "FocalLoss",
    "GIoULoss",
    "GradientBalancedLoss",
    "GHMCLoss",
    "GuidedScale",
    "HarmonicCoupling",
    "HarmonicIoULoss",
    "IoULoss",
    "NORMALIZER_REGISTRY",
    "PositiveNormalizer",
    "Positives",
    "QualityFocalLoss",
    "SeesawLoss",
    "SmoothL1Loss",
    "SoftmaxLoss",
    "build_box_loss",
    "build_cls_loss",
    "build_criterion",
    "build_guide",
    "build_harmonic_coupling",
    "sampling_free_on",
]
