"""Optimisers by name; Detectron2's builder knows SGD only."""

from typing import Any, Callable, Dict, List

import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer as build_upstream_optimizer
from detectron2.solver.build import get_default_optimizer_params, maybe_add_gradient_clipping
from torch import nn

from d2ext.config import validate

__all__ = ["OPTIMIZERS", "build_optimizer"]


def _adamw(params: List[Dict[str, Any]], cfg: CfgNode) -> torch.optim.Optimizer:
    return torch.optim.AdamW(params, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY)


OPTIMIZERS: Dict[str, Callable[[List[Dict[str, Any]], CfgNode], torch.optim.Optimizer]] = {
    "AdamW": _adamw,
}


def build_optimizer(cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
    """The optimiser called ``SOLVER.OPTIMIZER``, over Detectron2's parameter groups.

    ``SGD`` is Detectron2's own. All others take the same learning rates, weight decays and
    per-parameter clipping from the same keys.
    """
    name = cfg.SOLVER.OPTIMIZER
    if name == "SGD":
        return build_upstream_optimizer(cfg, model)
    validate(cfg, "SOLVER.OPTIMIZER")
    params = get_default_optimizer_params(
        model,
        base_lr=cfg.SOLVER.BASE_LR,
        weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
        bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
        weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
    )
    return maybe_add_gradient_clipping(cfg, OPTIMIZERS[name](params, cfg))
