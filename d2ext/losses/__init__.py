"""Class losses, box losses and couplings that own state, and the criterion that composes them.

They need torch and nothing else, so that they work in any framework: docs/losses_elsewhere.md.
"""

from .box_losses import (
    BoxLoss,
    CIoULoss,
    DIoULoss,
    GIoULoss,
    IoULoss,
    OverlapLoss,
    SmoothL1Loss,
    SquaredIoULoss,
)
from .box_variants import (
    GHMRLoss,
    InnerIoULoss,
    LegacyLogIoULoss,
    LogIoULoss,
    MPDIoULoss,
    NWDLoss,
    WiseIoULoss,
)
from .class_margin import EffectiveClassMarginLoss
from .cls_losses import (
    BCELoss,
    ClsLoss,
    FocalLoss,
    MatchabilityAwareLoss,
    QualityFocalLoss,
    SoftmaxLoss,
    VarifocalLoss,
)
from .correlation import CorrelationCoupling
from .counted import CountedLoss, Levels
from .criterion import CoupledTerms, Criterion
from .eqlv2 import EQLv2Loss
from .equalized_focal import EqualizedFocalLoss, EqualizedQualityFocalLoss
from .ghm import GHMCLoss
from .gradient_balanced import GradientBalancedLoss
from .guided import GuidedScale
from .harmonic import HarmonicCoupling, HarmonicIoULoss
from .normalizers import EMANormalizer, Normalizer, PositiveNormalizer
from .positives import Positives
from .recording import Recording
from .seesaw import SeesawLoss

__all__ = [
    "BCELoss",
    "BoxLoss",
    "CIoULoss",
    "ClsLoss",
    "CorrelationCoupling",
    "CountedLoss",
    "CoupledTerms",
    "Criterion",
    "DIoULoss",
    "EffectiveClassMarginLoss",
    "EMANormalizer",
    "EQLv2Loss",
    "EqualizedFocalLoss",
    "EqualizedQualityFocalLoss",
    "FocalLoss",
    "GHMCLoss",
    "GHMRLoss",
    "GIoULoss",
    "GradientBalancedLoss",
    "GuidedScale",
    "HarmonicCoupling",
    "HarmonicIoULoss",
    "InnerIoULoss",
    "IoULoss",
    "LegacyLogIoULoss",
    "Levels",
    "LogIoULoss",
    "MatchabilityAwareLoss",
    "MPDIoULoss",
    "Normalizer",
    "NWDLoss",
    "OverlapLoss",
    "PositiveNormalizer",
    "Positives",
    "QualityFocalLoss",
    "Recording",
    "SeesawLoss",
    "SmoothL1Loss",
    "SoftmaxLoss",
    "SquaredIoULoss",
    "VarifocalLoss",
    "WiseIoULoss",
]
