from detectron2.config import CfgNode as CN

__all__ = ["add_roi_heads_config"]


def add_roi_heads_config(cfg: CN) -> None:
    """Add the keys of this area to ``cfg``, in place."""
