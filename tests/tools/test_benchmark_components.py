"""The components of the benchmark compare two ways to one and the same result."""

import importlib
from types import SimpleNamespace

import pytest
import torch
from detectron2.structures import Boxes, Instances

QUICK = SimpleNamespace(device="cpu", quick=True)


@pytest.fixture
def losses():
    return importlib.import_module("benchmarks.losses")


def test_a_difference_of_both_forms_of_dual_weighting_stops_the_benchmark(losses, monkeypatch):
    losses.check_dw_equal(4)
    dense = losses.dense_dw_losses

    def wrong(*args):
        return {k: v * (1.01 if "loss" in k else 1) for k, v in dense(*args).items()}

    monkeypatch.setattr(losses, "dense_dw_losses", wrong)
    with pytest.raises(SystemExit, match="differ"):
        losses.check_dw_equal(4)


def test_both_sides_of_each_assignment_agree():
    found = importlib.import_module("benchmarks.assign").cases(QUICK)
    assert len(found) == 8
    for case in found:
        ours, peer = case.versions.values()
        torch.manual_seed(0)
        labels, boxes = ours()
        torch.manual_seed(0)
        peer = peer()
        if case.name.startswith("ATSS"):
            peer = list(zip(*peer))
        assert len(labels) == len(peer[0]) == 2, case.name
        for i in range(2):
            is_rpn = "RPN" in case.name
            foreground = labels[i] == 1 if is_rpn else (labels[i] >= 0) & (labels[i] < 80)
            assert foreground.any(), case.name
            assert torch.equal(labels[i].long(), peer[0][i].long()), case.name
            assert torch.equal(boxes[i][foreground], peer[1][i][foreground]), case.name


def test_the_losses_run_and_their_memory_is_counted(losses, monkeypatch):
    runner = importlib.import_module("benchmarks.runner")
    monkeypatch.setattr(losses, "check_dw_equal", lambda num_objects: None)
    found = losses.cases(QUICK)
    for case in found:
        result = runner.measure(case, rounds=1, warmup=0)
        assert all(value > 0 for value in result["versions"].values())
        assert result["ratios"]


def test_torchvisions_detectors_train_on_the_same_objects():
    peers = importlib.import_module("benchmarks.peers")
    batch = [{"image": torch.full((3, 8, 8), 255, dtype=torch.uint8), "instances": _objects()}]
    (image,), (target,) = peers._convert(batch, 1)
    assert image.max() == 1 and target["labels"].tolist() == [1, 80]
    assert target["boxes"].tolist() == [[0, 0, 4, 4], [2, 2, 8, 8]]
    case = peers.cases(QUICK)[1]
    for version, step in case.versions.items():
        assert step()["backward"] > 0, version
    case.close()


def test_the_small_detectors_train_and_predict():
    for case in importlib.import_module("benchmarks.small").cases(QUICK):
        for name in ("fcos", "faster_rcnn"):
            case.versions[name]()
        case.close()


def _objects():
    boxes = Boxes(torch.tensor([[0.0, 0, 4, 4], [2, 2, 8, 8]]))
    return Instances((8, 8), gt_boxes=boxes, gt_classes=torch.tensor([0, 79]))
