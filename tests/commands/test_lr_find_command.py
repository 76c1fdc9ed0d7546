"""The range test finds the rate at which a known problem begins to diverge."""

import numpy as np
import pytest
import torch
from commands_kit import call, read_json, tiny_project
from PIL import Image

from d2ext.analysis.lr_finder import range_test, suggest_rate
from d2ext.engine import Precision


class Bowl(torch.nn.Module):
    """Loss 0.5 x^2: gradient descent diverges from a rate of 2 on."""

    def __init__(self):
        super().__init__()
        self.x = torch.nn.Parameter(torch.tensor([10.0]))

    def forward(self, batch):
        return {"loss": 0.5 * self.x.square().sum()}


def run(steps=200, **kw):
    model = Bowl()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return range_test(
        model, optimizer, [0], lowest=1e-4, highest=100.0, steps=steps, report=str, **kw
    )


def test_rates_are_geometric_and_it_stops_when_it_diverges():
    found = run()
    ratios = found["lr"][1:] / found["lr"][:-1]
    np.testing.assert_allclose(ratios, (100 / 1e-4) ** (1 / 199))
    assert len(found["lr"]) < 200 and 2 < found["lr"][-1] < 100
    rates = suggest_rate(found)
    assert 1e-3 < rates["steepest"] < 2 and rates["safe"] < 2


def test_losses_are_those_of_gradient_descent():
    found = run(steps=5, smoothing=0.0)
    x, expected = 10.0, []
    for rate in found["lr"]:
        expected.append(0.5 * x * x)
        x -= rate * x
    np.testing.assert_allclose(found["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(found["smooth"], found["loss"])


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_step_is_as_large_as_that_of_a_training(accumulate):
    """SOLVER.ACCUMULATE: the loader gives a part of IMS_PER_BATCH, so that a step takes several."""
    taken, model = [], Bowl()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    batches = (taken.append(k) or k for k in range(100))
    how = {"accumulate": accumulate, "precision": Precision(dtype="bf16")}
    forward, model.forward = model.forward, lambda batch: autocasts(forward(batch))
    found = range_test(model, optimizer, batches, steps=4, smoothing=0.0, report=str, **how)
    assert len(taken) == 4 * accumulate
    # The mean of equal batches: the same losses as with one of them.
    np.testing.assert_allclose(found["loss"], run_steps(4), rtol=1e-5)


def autocasts(losses):
    assert torch.is_autocast_enabled("cpu")
    return losses


def run_steps(steps):
    x, losses = 10.0, []
    for rate in np.geomspace(1e-6, 1.0, steps):
        losses.append(0.5 * x * x)
        x -= rate * x
    return losses


def test_groups_keep_their_proportion():
    a, b = Bowl(), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": a.parameters(), "lr": 0.1}, {"params": [b], "lr": 0.2}])
    range_test(a, optimizer, [0], lowest=0.01, highest=1.0, steps=2, report=str)
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.5, 1.0])


def test_no_suggestion_where_the_loss_never_falls():
    lr = np.geomspace(1e-4, 1, 60)
    none = {"steepest": None, "safe": None}
    assert suggest_rate({"lr": lr, "loss": np.linspace(1, 2, 60)}) == none
    draws = [np.random.default_rng(seed).normal(2, 0.3, 60) for seed in range(50)]
    said = sum(suggest_rate({"lr": lr, "loss": noise}) != none for noise in draws)
    assert said <= 3


def test_suggestion_under_noise():
    lr = np.geomspace(1e-4, 1, 100)
    clean = 1 + 2 / (1 + lr / 0.01) + 20 * np.maximum(lr - 0.3, 0)  # falls around 0.01
    noise = np.random.default_rng(0).normal(0, 0.2, 100)
    rates = suggest_rate({"lr": lr, "loss": clean + noise})
    assert 0.002 < rates["steepest"] < 0.05
    assert 0.005 < rates["safe"] < 0.05


@pytest.mark.parametrize("drop", [1.0, 3.0])
def test_a_drop_of_the_first_steps_is_not_the_rates_doing(drop):
    """It was said to be the steepest fall, at a rate 400 times below the other suggestion."""
    lr = np.geomspace(1e-6, 1, 100)
    clean = 1 + 2 / (1 + lr / 0.01) + 20 * np.maximum(lr - 0.3, 0)
    clean += drop * np.exp(-np.arange(100) / 4)
    said = []
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(0, 0.1, 100)
        said.append(suggest_rate({"lr": lr, "loss": clean + noise})["steepest"])
    assert sum(0.001 < rate < 0.1 for rate in said) >= 19


def test_steps_that_settle_are_not_counted():
    seen = []

    class Settling(Bowl):
        def forward(self, batch):
            seen.append(batch)
            return {"loss": 0.5 * self.x.square().sum() + 100 * (len(seen) <= 4)}

    model = Settling()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    found = range_test(model, optimizer, [0], steps=6, settle=4, report=str)
    assert len(found["loss"]) == 6 and found["loss"].max() <= 50 and len(seen) == 10


def test_command(tmp_path):
    with tiny_project(tmp_path) as (name, config):
        out = tmp_path / "out"
        words = ("lr-find", config, "--steps", 5, "--highest", 0.1, "--output", out)
        assert call(*words) == 0
    report = read_json(out / "lr_find.json")
    assert report["base_lr"] == 0.002 and 3 <= len(report["loss"]) <= 5
    assert report["lr"][0] == pytest.approx(1e-6)
    with Image.open(out / "lr_find.png") as image:
        assert image.size[0] > 500
