"""Models and their parts; importing this registers them with Detectron2."""

from .. import _detectron2  # noqa: F401  (first: it may be missing)
from . import backbone, losses, meta_arch, proposal_generator, roi_heads

__all__ = ["backbone", "losses", "meta_arch", "proposal_generator", "roi_heads"]
