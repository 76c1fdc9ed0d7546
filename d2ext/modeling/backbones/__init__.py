"""Backbones and feature pyramids; importing this registers them with Detectron2."""

from . import csp_darknet, pyramids, timm_fpn

__all__ = ["csp_darknet", "pyramids", "timm_fpn"]
