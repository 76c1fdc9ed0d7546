"""The components of the benchmark compare two ways to one and the same result."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from d2ext.testing import peak_bytes

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture(scope="module")
def benchmarks():
    sys.path.insert(0, str(TOOLS))
    try:
        import benchmarks.assign
        import benchmarks.losses

        yield benchmarks
    finally:
        sys.path.remove(str(TOOLS))


def test_both_forms_of_dual_weighting_agree(benchmarks):
    benchmarks.losses.check_dw_equal(4)


def test_a_difference_stops_the_benchmark(benchmarks, monkeypatch):
    dense = benchmarks.losses.dense_dw_losses

    def wrong(*args):
        return {k: v * (1.01 if "loss" in k else 1) for k, v in dense(*args).items()}

    monkeypatch.setattr(benchmarks.losses, "dense_dw_losses", wrong)
    with pytest.raises(SystemExit, match="differ"):
        benchmarks.losses.check_dw_equal(4)


def test_both_sides_of_each_assignment_agree(benchmarks, monkeypatch):
    monkeypatch.setattr(benchmarks.assign, "SIZE", (256, 320))
    found = benchmarks.assign.cases(SimpleNamespace(device="cpu"))
    assert [c["name"].split("/")[1] for c in found[:4]] == ["iou", "centre", "atss", "rpn"]
    for case in found:
        torch.manual_seed(0)
        labels, boxes = case["ours"]()
        torch.manual_seed(0)
        peer = case["peer"]()
        if case["name"].startswith("assign/atss"):
            peer = list(zip(*peer))
        assert len(labels) == len(peer[0]) == 2, case["name"]
        for i in range(2):
            is_rpn = case["name"].startswith("assign/rpn")
            foreground = labels[i] == 1 if is_rpn else (labels[i] >= 0) & (labels[i] < 80)
            assert foreground.any()
            assert torch.equal(labels[i].long(), peer[0][i].long()), case["name"]
            assert torch.equal(boxes[i][foreground], peer[1][i][foreground]), case["name"]


def test_the_losses_can_be_run_and_their_memory_counted(benchmarks, monkeypatch):
    monkeypatch.setattr(benchmarks.losses, "SHAPES", ((50, 4),))
    monkeypatch.setattr(benchmarks.losses, "STRIDES", (64, 128))
    found = benchmarks.losses.cases(SimpleNamespace(device="cpu"))
    assert "loss/focal/50x4" in {c["name"] for c in found}
    for case in found:
        case["ours"](), case["peer"]()
        assert all(peak_bytes(side) > 0 for side in case["memory"]) and case["note"]
