from detectron2.config import CfgNode as CN

__all__ = ["add_dual_weighting_config"]


def add_dual_weighting_config(cfg: CN) -> None:
    """Add the keys of this area to ``cfg``, in place."""
