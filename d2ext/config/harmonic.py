from detectron2.config import CfgNode as CN

__all__ = ["add_harmonic_config"]


def add_harmonic_config(cfg: CN) -> None:
    """Add the keys of this area to ``cfg``, in place."""
