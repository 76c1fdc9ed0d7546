"""The benchmark of DW's loss times two versions of one and the same thing."""

import runpy
from pathlib import Path

import pytest

TOOL = Path(__file__).resolve().parents[2] / "tools" / "benchmark_dw.py"


def test_both_versions_agree():
    tool = runpy.run_path(str(TOOL))
    tool["check_equal"](4)


def test_a_difference_stops_the_benchmark(monkeypatch):
    tool = runpy.run_path(str(TOOL))
    dense = tool["dense_losses"]

    def wrong(*args):
        return {k: v * (1.01 if "loss" in k else 1) for k, v in dense(*args).items()}

    monkeypatch.setitem(tool["check_equal"].__globals__, "dense_losses", wrong)
    with pytest.raises(SystemExit, match="differ"):
        tool["check_equal"](4)
