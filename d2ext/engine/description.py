"""What a checkpoint says about itself: the config of its training and the names of its classes."""

import os
from typing import Any, Dict, List, Optional

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from d2ext.safe_load import (
    UnsafeFileError,
    load_tensors,
    safetensors_description,
    weights_file,
)

__all__ = ["class_names_of", "config_of", "describe_run", "read_description"]


def class_names_of(cfg: CfgNode) -> Optional[List[str]]:
    """Class names of the first data set of a config that knows them; None: none does."""
    for name in (*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST):
        names = MetadataCatalog.get(name).get("thing_classes", None)
        if names:
            return [str(n) for n in names]
    return None


def describe_run(cfg: Optional[CfgNode]) -> Dict[str, Any]:
    """What goes into a checkpoint beside the state: plain strings, which load safely everywhere.

    Returns:
        ``config``, the YAML text of the config, and ``class_names`` where they are known. Empty
        for a trainer that was not made from a config.
    """
    if cfg is None:
        return {}
    names = class_names_of(cfg)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = "./output"  # a place of this machine; runs elsewhere give equal checkpoints
    return {"config": cfg.dump(), **({"class_names": names} if names else {})}


def read_description(path: str) -> Dict[str, Any]:
    """The same, from a checkpoint file or a folder of safetensors, which say more; empty if it
    holds none."""
    path = weights_file(path)
    if path.endswith(".safetensors") and os.path.isfile(path):
        return safetensors_description(path)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"There is no checkpoint '{path}'.")
    try:
        data = load_tensors(path)
    except UnsafeFileError:
        raise
    except Exception as error:  # whatever unpickling a file of another kind may raise
        raise ValueError(
            f"'{path}' is not a checkpoint that torch.load(..., weights_only=True) reads "
            f"({type(error).__name__}); name one that the trainer wrote, or name the config too."
        ) from error
    return {key: data[key] for key in ("config", "class_names") if key in data}


def config_of(text: str) -> CfgNode:
    """The config whose YAML text a checkpoint holds, merged into the defaults."""
    import yaml

    from d2ext.config import CfgNode as Node
    from d2ext.config import get_cfg

    cfg = get_cfg()
    cfg.merge_from_other_cfg(Node(yaml.safe_load(text)))
    return cfg
