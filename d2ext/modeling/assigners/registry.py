"""Where assigners are found by name."""

from ..registry import Registry

__all__ = ["ASSIGNER_REGISTRY"]

ASSIGNER_REGISTRY = Registry("assigner")
"""Classes; their instances are called ``assigner(priors, targets, num_classes) -> Assignment``."""
