from detectron2.config import CfgNode as CN

__all__ = ["add_equalized_focal_config"]


def add_equalized_focal_config(cfg: CN) -> None:
    """Add the keys of this area to ``cfg``, in place."""
