from detectron2.config import CfgNode as CN

__all__ = ["add_dense_config"]


def add_dense_config(cfg: CN) -> None:
    """Add the keys of this area to ``cfg``, in place."""
