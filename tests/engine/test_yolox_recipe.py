"""Learning rate, weight average and weight decay of YOLOX' recipes, against United-Perception."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

from d2ext import get_cfg
from d2ext.engine.hooks import ModelEMA
from d2ext.engine.learning_rate import QuadraticCosineSchedule, build_lr_scheduler
from d2ext.engine.optimizer import build_optimizer

GOLDEN = Path(__file__).parents[1] / "golden" / "yolox" / "schedule.npz"


@pytest.fixture(scope="module")
def golden():
    data = np.load(GOLDEN)
    return data, json.loads(str(data["meta"]))


def recipe(meta):
    cfg = get_cfg()
    solver, epoch = cfg.SOLVER, meta["iters_per_epoch"]
    solver.LR_SCHEDULER_NAME = "QuadraticWarmupCosineLR"
    solver.COSINE_FROM = "warmup"
    solver.MAX_ITER = meta["epochs"] * epoch
    solver.WARMUP_ITERS = meta["warmup_epochs"] * epoch
    solver.FLAT_ITERS = meta["no_aug_epochs"] * epoch
    solver.BASE_LR = meta["lr_per_image"] * meta["batch"]
    solver.BASE_LR_END = meta["min_scale"] * solver.BASE_LR
    return cfg


def rates(cfg, start=0, state=None):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([weight], lr=cfg.SOLVER.BASE_LR)
    scheduler = build_lr_scheduler(cfg, optimizer)
    if state is not None:
        scheduler.load_state_dict(state)
    found = []
    for _ in range(start, cfg.SOLVER.MAX_ITER):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
        if len(found) == 300:
            state = scheduler.state_dict()
    return found, state


def test_learning_rate(golden):
    data, meta = golden
    cfg = recipe(meta)
    found, state = rates(cfg)
    assert found[0] == 0 and np.allclose(found, data["lr"], rtol=1e-9, atol=0)
    # From a checkpoint after 300 steps, the rate of step 300 is the optimiser's, then ours.
    again, _ = rates(cfg, 300, state)
    assert again[1:] == found[301:]


def test_learning_rate_of_yolox(golden):
    """From BASE_LR itself, as in YOLOX."""
    cfg = recipe(golden[1])
    cfg.SOLVER.COSINE_FROM = "base"
    found, _ = rates(cfg)
    warmup, flat = cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.FLAT_ITERS
    assert found[warmup] == cfg.SOLVER.BASE_LR and max(found) == cfg.SOLVER.BASE_LR
    assert found[-flat:] == pytest.approx([cfg.SOLVER.BASE_LR_END] * flat)
    middle = (warmup + cfg.SOLVER.MAX_ITER - flat) / 2
    mean = (cfg.SOLVER.BASE_LR + cfg.SOLVER.BASE_LR_END) / 2
    assert np.interp(middle, range(len(found)), found) == pytest.approx(mean, rel=1e-3)
    with pytest.raises(ValueError, match="leave no step of 10 for the cosine"):
        QuadraticCosineSchedule(10, warmup=5, flat=5, end=0.1)


def test_average_of_the_weights(golden):
    data, meta = golden
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
    model.register_buffer("mean", torch.zeros(3, dtype=torch.float64))
    ema = ModelEMA(model, decay=meta["ema_decay"], warmup=2000, rule="exp")
    for step, expected in zip(data["ema_input"], data["ema"]):
        with torch.no_grad():
            model.weight.copy_(torch.from_numpy(step[0]))
            model.mean.copy_(torch.from_numpy(step[1]))
        ema.update()
        assert np.allclose(ema.average["weight"], expected[0], rtol=0, atol=1e-12)
        assert np.allclose(ema.average["mean"], expected[1], rtol=0, atol=1e-12)
    with pytest.raises(ValueError, match="rule must be ratio or exp"):
        ModelEMA(model, rule="linear")


@pytest.mark.parametrize("size", ["s", "m"])
def test_weight_decay(golden, size):
    """[weight decay, tensors, numbers] of their groups: norms, decayed, other biases."""
    cfg = get_cfg()
    cfg.merge_from_file(f"configs/YOLOX/yolox_ip_{size}_300e_efl.yaml")
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    optimizer = build_optimizer(cfg, model)
    names = {id(p): name for name, p in model.named_parameters()}
    norms, decayed, biases = [0, 0], [0, 0], [0, 0]
    for group in optimizer.param_groups:
        assert group["nesterov"] and group["momentum"] == 0.9 and group["lr"] == 0.04
        for p in group["params"]:
            if group["weight_decay"]:
                assert group["weight_decay"] == 5e-4
                count = decayed
            else:
                is_norm = ".norm." in names[id(p)] and names[id(p)].endswith("weight")
                count = norms if is_norm else biases
            count[0] += 1
            count[1] += p.numel()
    expected = golden[1]["param_groups"][size]
    assert [norms, decayed, biases] == [group[1:] for group in expected]
