"""What docs/examples hands to other tools is what was predicted."""

import importlib.util
import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest

FILE = Path(__file__).resolve().parents[2] / "docs/examples/predictions/to_other_tools.py"


@pytest.fixture
def example():
    spec = importlib.util.spec_from_file_location("to_other_tools", FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def predictions(tmp_path):
    """As ``d2ext predict`` writes them."""
    import torch
    from detectron2.structures import Boxes, Instances

    from d2ext.commands.predict import _Report

    report = _Report(["cat", "dog"], tmp_path, pictures=False)
    for name, count in (("a.jpg", 2), ("empty.jpg", 0)):
        found = Instances((50, 100))
        found.pred_boxes = Boxes(torch.tensor([[10.0, 5, 60, 45], [0, 0, 20, 10]])[:count])
        found.scores = torch.tensor([0.75, 0.5])[:count]
        found.pred_classes = torch.tensor([1, 0])[:count]
        report.add(name, found)
    return report.write()


def test_the_file_is_a_coco_data_set_with_scores(predictions):
    from pycocotools.coco import COCO

    coco = COCO(str(predictions))
    assert [c["name"] for c in coco.loadCats(coco.getCatIds())] == ["cat", "dog"]
    assert len(coco.getImgIds()) == 2 and len(coco.getAnnIds()) == 2
    first = coco.loadAnns(coco.getAnnIds(imgIds=[1]))[0]
    assert first["bbox"] == [10, 5, 50, 40] and first["area"] == 2000 and first["iscrowd"] == 0
    assert first["score"] == 0.75
    assert json.loads(predictions.read_text())["images"][0]["width"] == 100


def test_supervision(example, predictions, monkeypatch):
    fake = types.ModuleType("supervision")
    fake.Detections = lambda **fields: types.SimpleNamespace(**fields)
    monkeypatch.setitem(sys.modules, "supervision", fake)
    found = example.to_supervision(predictions)
    np.testing.assert_array_equal(found["a.jpg"].xyxy[0], [10, 5, 60, 45])
    assert found["a.jpg"].data["class_name"].tolist() == ["dog", "cat"]
    assert found["empty.jpg"].xyxy.shape == (0, 4)


def test_fiftyone_gets_shares_of_width_and_height(example, predictions, monkeypatch):
    class Record(dict):
        def __init__(self, *names, **fields):
            super().__init__(fields, names=names, samples=[])

        def add_sample(self, sample):
            self["samples"].append(sample)

    fake = types.ModuleType("fiftyone")
    for name in ("Dataset", "Detection", "Detections", "Sample"):
        setattr(fake, name, Record)
    monkeypatch.setitem(sys.modules, "fiftyone", fake)
    first, empty = example.to_fiftyone(predictions)["samples"]
    assert first["filepath"] == "a.jpg"
    best = first["predictions"]["detections"][0]
    assert (best["label"], best["confidence"]) == ("dog", 0.75)
    assert best["bounding_box"] == pytest.approx([0.1, 0.1, 0.5, 0.8])
    assert empty["predictions"]["detections"] == []
