"""The benchmark of the harmonic loss compares like with like."""

import importlib.util
import math
from pathlib import Path

import pytest
import torch
from model_kit import small_cfg

PATH = Path(__file__).resolve().parents[2] / "tools" / "benchmark_harmonic.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("benchmark_harmonic", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def cfg():
    overrides = ["SOLVER.IMS_PER_BATCH", 1, "INPUT.MIN_SIZE_TRAIN", (64,),
                 "INPUT.MAX_SIZE_TRAIN", 64]  # fmt: skip
    return small_cfg("configs/Harmonic/faster_rcnn_R_50_FPN_1x.yaml", overrides)


def test_both_models_start_alike(tool, cfg):
    plain, _ = tool.build(cfg, False)
    coupled, _ = tool.build(cfg, True)
    assert plain.roi_heads.box_predictor.criterion.coupling is None
    assert coupled.roi_heads.box_predictor.criterion.coupling is not None
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), coupled.parameters()))


def test_it_measures(tool, cfg):
    result = tool.measure(cfg, rounds=2, objects=2, warmup=1)
    assert set(result) == {"off_s", "harmonic_s", "ratio"}
    assert all(math.isfinite(v) and v > 0 for v in result.values())
