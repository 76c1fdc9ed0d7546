"""Backbones and feature pyramids; importing this registers them with Detectron2."""

from . import pyramids

__all__ = ["pyramids"]
