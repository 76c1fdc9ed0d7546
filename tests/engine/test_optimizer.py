"""Optimisers by name have Detectron2's parameter groups."""

import pytest
import torch
from torch import nn

from d2ext import get_cfg
from d2ext.engine.optimizer import build_optimizer


def model():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))


def test_sgd_is_detectron2s():
    optimizer = build_optimizer(get_cfg(), model())
    assert isinstance(optimizer, torch.optim.SGD)


def test_adamw_follows_the_keys():
    cfg = get_cfg()
    cfg.merge_from_list(
        ["SOLVER.OPTIMIZER", "AdamW", "SOLVER.BASE_LR", 0.01, "SOLVER.WEIGHT_DECAY", 0.05]
    )
    cfg.merge_from_list(["SOLVER.WEIGHT_DECAY_NORM", 0.0, "SOLVER.BIAS_LR_FACTOR", 2.0])
    net = model()
    optimizer = build_optimizer(cfg, net)
    assert isinstance(optimizer, torch.optim.AdamW)
    found = {id(p): g for g in optimizer.param_groups for p in g["params"]}
    assert found[id(net[0].weight)]["weight_decay"] == 0.05
    assert found[id(net[0].bias)]["lr"] == 0.02
    assert found[id(net[1].weight)]["weight_decay"] == 0.0


def test_unknown_name_is_refused():
    cfg = get_cfg()
    cfg.SOLVER.OPTIMIZER = "Adam"
    with pytest.raises(ValueError, match="is 'Adam'; it must be one of 'AdamW' and 'SGD'"):
        build_optimizer(cfg, model())
