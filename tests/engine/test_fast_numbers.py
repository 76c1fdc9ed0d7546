"""SOLVER.AMP.DTYPE auto and MODEL.CHANNELS_LAST: what they become, and that a resume keeps it."""

import pytest
import torch
from engine_kit import toy_cfg
from torch import nn

from d2ext.engine import Precision, Trainer, precision
from d2ext.engine.memory_format import has_depthwise, order_channels

AUTO = ("SOLVER.AMP.ENABLED", True)


@pytest.fixture
def cpu_with(monkeypatch):
    """Makes this CPU one with a fast bf16, or one without; or one with a slow bf16."""

    def become(has, gain=2.0):
        monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: has)
        monkeypatch.setattr(precision, "_bf16_gain", lambda: gain)

    return become


def test_auto_is_what_the_machine_computes_in(cpu_with, monkeypatch):
    for has, expected in ((True, "bf16"), (False, "fp32")):
        cpu_with(has)
        assert Precision(dtype="auto", device="cpu").dtype == expected
    cpu_with(True, gain=0.5)  # it has the instructions, and they are slow
    assert Precision(dtype="auto", device="cpu").dtype == "fp32"
    for has, expected in ((True, "bf16"), (False, "fp16")):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda has=has: has)
        assert precision.fastest_dtype("cuda:1") == expected
    assert precision.fastest_dtype("meta") == "fp32"


def test_the_gain_of_bf16_is_measured_once():
    state = torch.get_rng_state()
    gain = precision._bf16_gain()
    assert 0.01 < gain < 100 and precision._bf16_gain() == gain
    assert torch.equal(torch.get_rng_state(), state)


def test_the_cpu_is_asked():
    with open("/proc/cpuinfo") as stream:
        flags = stream.read().split()
    assert precision._cpu_has_bf16() == ("avx512_bf16" in flags or "amx_bf16" in flags)


@pytest.mark.parametrize("first, then", [("bf16", "fp32"), ("fp32", "bf16")])
def test_a_resume_on_another_machine_keeps_the_numbers(tiny, tmp_path, cpu_with, first, then):
    cpu_with(first == "bf16")
    trainer = Trainer(toy_cfg(tmp_path, *AUTO, "SOLVER.MAX_ITER", 2))
    assert trainer.precision.dtype == first
    trainer.train()
    cpu_with(then == "bf16")
    again = Trainer(toy_cfg(tmp_path, *AUTO, "SOLVER.MAX_ITER", 4))
    assert again.precision.dtype == then
    again.resume_or_load()
    assert again.precision.dtype == first
    again.train()


def test_a_named_type_is_the_configs(tiny, tmp_path, cpu_with):
    cpu_with(True)
    Trainer(toy_cfg(tmp_path, *AUTO, "SOLVER.MAX_ITER", 1)).train()
    again = Trainer(toy_cfg(tmp_path, "SOLVER.MAX_ITER", 2))  # AMP is off
    again.resume_or_load()
    assert again.precision.dtype == "fp32"


class Depthwise(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 8, 3))


def is_last(model):
    weights = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.groups == 1]
    return all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)


@pytest.mark.parametrize(
    "choice, amp, depthwise, expected",
    [
        ("auto", False, False, False),
        ("auto", False, True, True),
        ("auto", True, False, True),
        ("on", False, False, True),
        ("off", True, True, False),
    ],
)
def test_channels_last(tmp_path, cpu_with, choice, amp, depthwise, expected):
    cpu_with(True)
    cfg = toy_cfg(tmp_path, "MODEL.CHANNELS_LAST", choice, "SOLVER.AMP.ENABLED", amp)
    model = Depthwise() if depthwise else nn.Sequential(nn.Conv2d(4, 8, 3))
    assert has_depthwise(model) == depthwise
    x = torch.randn(2, 4, 8, 8)
    before = model(x)
    model = order_channels(cfg, model)
    assert is_last(model) == expected
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-6)


def test_checkpoints_go_both_ways(tiny, tmp_path):
    for folder, first, then in (("a", "on", "off"), ("b", "off", "on")):
        where = tmp_path / folder
        Trainer(toy_cfg(where, "MODEL.CHANNELS_LAST", first, "SOLVER.MAX_ITER", 2)).train()
        again = Trainer(toy_cfg(where, "MODEL.CHANNELS_LAST", then, "SOLVER.MAX_ITER", 3))
        again.resume_or_load()
        assert is_last(again.raw_model) == (then == "on")
        again.train()
        assert again.finished
