"""Every configuration key that d2ext adds to Detectron2's, one file an area."""

from detectron2.config import CfgNode as _UpstreamCfgNode

from .dense import add_dense_config
from .dual_weighting import add_dual_weighting_config
from .engine import add_engine_config
from .harmonic import add_harmonic_config
from .keys import add_keys, arguments, construct, names_keys
from .loss_weights import add_loss_weights_config
from .node import CfgNode
from .roi_heads import add_roi_heads_config
from .sampling_free import add_sampling_free_config
from .validate import validate, violations

__all__ = [
    "CfgNode",
    "add_d2ext_config",
    "arguments",
    "construct",
    "get_cfg",
    "names_keys",
    "validate",
    "violations",
]

_AREAS = (
    add_dense_config,
    add_roi_heads_config,
    add_dual_weighting_config,
    add_sampling_free_config,
    add_harmonic_config,
    add_loss_weights_config,
    add_engine_config,
)


def add_d2ext_config(cfg: _UpstreamCfgNode) -> None:
    """Add all keys of d2ext to a Detectron2 config, in place."""
    for add_area in _AREAS:
        add_area(cfg)
    add_keys(cfg)


def get_cfg() -> CfgNode:
    """Detectron2's default config with every key of d2ext added."""
    from detectron2.config import get_cfg as get_upstream_cfg

    cfg = CfgNode(get_upstream_cfg())
    add_d2ext_config(cfg)
    return cfg
