from detectron2.config import CfgNode as CN

__all__ = ["add_loss_weights_config"]


def add_loss_weights_config(cfg: CN) -> None:
    """Add the keys of this area to ``cfg``, in place."""
