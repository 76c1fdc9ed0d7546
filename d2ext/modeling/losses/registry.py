"""Where class and box losses are found by the names that YAML files use."""

from ..registry import Registry

__all__ = ["BOX_LOSS_REGISTRY", "CLS_LOSS_REGISTRY"]

CLS_LOSS_REGISTRY = Registry("class loss")
"""Class losses: see :class:`d2ext.modeling.losses.cls_losses.ClsLoss`."""

BOX_LOSS_REGISTRY = Registry("box loss")
"""Box losses: see :class:`d2ext.modeling.losses.box_losses.BoxLoss`."""
