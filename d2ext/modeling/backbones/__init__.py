"""Backbones and feature pyramids; importing this registers them with Detectron2."""

from . import pyramids, timm_fpn

__all__ = ["pyramids", "timm_fpn"]
