"""Models and their parts; importing this registers them with Detectron2."""

from .. import _detectron2  # noqa: F401  (first: it may be missing)
from . import backbones, losses, meta_arch, proposal_generator, roi_heads

__all__ = ["backbones", "losses", "meta_arch", "proposal_generator", "roi_heads"]
