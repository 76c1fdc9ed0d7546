"""Normalisers and their registry."""

from d2ext.losses.normalizers import (
    EMANormalizer,
    Normalizer,
    PositiveNormalizer,
    divisor_and_mean,
)

from .registry import NORMALIZER_REGISTRY

__all__ = [
    "NORMALIZER_REGISTRY",
    "EMANormalizer",
    "Normalizer",
    "PositiveNormalizer",
    "divisor_and_mean",
]
