"""Models and their parts; importing this registers them with Detectron2."""

from . import backbone, losses, meta_arch, proposal_generator, roi_heads

__all__ = ["backbone", "losses", "meta_arch", "proposal_generator", "roi_heads"]
