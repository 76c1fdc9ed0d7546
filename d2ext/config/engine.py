from detectron2.config import CfgNode as CN

__all__ = ["add_engine_config"]


def add_engine_config(cfg: CN) -> None:
    """Add the keys of this area to ``cfg``, in place."""
