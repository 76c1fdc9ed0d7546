"""The rivals against what their reference code gave: tests/golden/rivals, whose README names it."""

import importlib
import json

import numpy as np
import pytest
import torch
from golden_kit import FOLDER

GOLDEN = FOLDER / "rivals"
FILES = sorted(GOLDEN.glob("*.npz"))


def read(path):
    data = np.load(path)
    meta = json.loads(str(data["meta"]))
    module, name = meta["function"].split(":")
    return data, meta, getattr(importlib.import_module(module), name)


def part(data, prefix, dtype=torch.float64):
    found = {k.partition("/")[2]: torch.tensor(data[k]) for k in data.files if prefix in k}
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in found.items()}


def close(actual, expected, tolerance):
    expected = torch.as_tensor(expected).double()
    actual = torch.as_tensor(actual).detach().double().reshape(expected.shape)
    if expected.numel():
        error = (actual - expected).abs().max() / expected.abs().max().clamp(min=1e-3)
        assert error <= tolerance, float(error)


def is_loss(path):
    return json.loads(str(np.load(path)["meta"])).get("kind", "loss") in ("loss", "mean")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("path", [p for p in FILES if is_loss(p)], ids=lambda path: path.stem)
def test_losses(path, dtype):
    data, meta, function = read(path)
    tolerance = meta["tol"] if dtype == torch.float64 else max(100 * meta["tol"], 2e-3)
    arguments = part(data, "in/", dtype)
    expected, gradients = part(data, "out/"), part(data, "grad/")
    for name in gradients:
        arguments[name].requires_grad_()
    value = function(**arguments, **meta["kwargs"])
    value = value.mean() if meta.get("kind") == "mean" else value
    close(value, next(iter(expected.values())), tolerance)
    if gradients:
        factor = torch.tensor(data["cot"], dtype=dtype) if "cot" in data.files else 1.0
        total = (value * factor).sum()
        if total.requires_grad:
            total.backward()
        for name, gradient in gradients.items():
            own = arguments[name].grad
            close(torch.zeros_like(gradient) if own is None else own, gradient, 10 * tolerance)


@pytest.mark.parametrize(
    "path",
    [p for p in FILES if p.stem.startswith(("tal_", "simota_", "dsl_"))],
    ids=lambda p: p.stem,
)
def test_assigners(path):
    data, meta, function = read(path)
    result = function(**part(data, "in/"), **meta["kwargs"])
    expected = part(data, "out/")
    assert torch.equal(result.labels, expected["labels"])
    positive = expected["target"] > 0
    assert torch.equal(result.matched[positive], expected["matched"][positive])
    tolerance = max(meta["tol"], 1e-6)
    close(result.target, expected["target"], tolerance)
    if "quality" in expected:
        close(result.quality, expected["quality"], tolerance)


def test_running_mean_of_wise_iou():
    data, meta, function = read(GOLDEN / "wiou_state.npz")
    mean = torch.tensor(1.0, dtype=torch.float64)
    for boxes1, boxes2, expected in zip(*(data[k] for k in ("in/boxes1", "in/boxes2", "out/mean"))):
        mean = function(torch.tensor(boxes1), torch.tensor(boxes2), mean, **meta["kwargs"])
        close(mean, expected, meta["tol"])


@pytest.mark.parametrize(
    "path", sorted(GOLDEN.glob("logn_stats_*.npz")), ids=lambda path: path.stem
)
def test_statistics_of_logits(path):
    data, meta, function = read(path)
    columns = data["in/logits"].shape[-1]
    mean, var = torch.zeros(columns).double(), torch.ones(columns).double()
    for logits in data["in/logits"]:
        mean, var = function(mean, var, torch.tensor(logits), **meta["kwargs"])
    close(mean, data["out/mean"], meta["tol"])
    close(var, data["out/var"], meta["tol"])


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("famo_*.npz")), ids=lambda path: path.stem)
def test_famo(path):
    data, meta, cls = read(path)
    machine, weights = cls(interval=1, **meta["kwargs"]), []
    for cls_loss, box_loss in data["in/losses"].tolist():
        machine.observe(cls_loss, box_loss)
        weights.append(machine.weights)
    # The authors' sum to 1.
    expected = data["out/weights"]
    close(weights, 2 * expected / expected.sum(axis=1, keepdims=True), meta["tol"])
