"""``d2ext val --threshold``: what somebody sees, with scores that were chosen elsewhere."""

import argparse
import json

import pytest

from d2ext.commands.val import _print_seen, _seen
from d2ext.evaluation.thresholds import Thresholds


@pytest.fixture
def evaluated(tmp_path):
    """An annotation file and the detections of an evaluation: one right of two, one missed."""
    row = {"category_id": 1, "image_id": 1}
    boxes = [[10, 10, 20, 20], [50, 50, 20, 20]]
    things = [{**row, "id": k + 1, "bbox": b, "area": 400, "iscrowd": 0} for k, b in
              enumerate(boxes)]  # fmt: skip
    data = {"images": [{"id": 1, "width": 100, "height": 100, "file_name": "a.png"}],
            "annotations": things, "categories": [{"id": 1, "name": "cat"}]}  # fmt: skip
    (tmp_path / "data.json").write_text(json.dumps(data))
    found = [{**row, "bbox": boxes[0], "score": 0.9}, {**row, "bbox": [0, 60, 9, 9], "score": 0.6},
             {**row, "bbox": boxes[1], "score": 0.3}]  # fmt: skip
    folder = tmp_path / "inference" / "data"
    folder.mkdir(parents=True)
    (folder / "coco_instances_results.json").write_text(json.dumps(found))
    return tmp_path


def seen(folder, threshold, about=None):
    args = argparse.Namespace(threshold=threshold, weights=str(folder / "model.onnx"))
    return _seen(args, about or {}, folder, str(folder / "data.json"))


def test_figures_from_a_score_on(evaluated, capsys):
    assert seen(evaluated, None) == {}
    found = seen(evaluated, 0.5)["seen"]
    cat = found["classes"]["cat"]
    assert (cat["precision"], cat["recall"], found["chosen_on"]) == (0.5, 0.5, "")
    _print_seen(found, "data")
    said = capsys.readouterr().out
    assert "cat from 0.50: precision 0.500, recall 0.500, F1 0.500, LRP 0.667" in said


def test_it_says_where_scores_were_chosen(evaluated, capsys):
    about = {"thresholds": [0.2], "chosen_on": "my_val"}
    assert seen(evaluated, "auto", about)["seen"]["chosen_on"] == "my_val"
    Thresholds(0.5, {"cat": 0.7}, source="data").save(evaluated / "model.thresholds.json")
    found = seen(evaluated, "auto", about)["seen"]  # the newer ones, beside the file
    assert found["classes"]["cat"]["score"] == 0.7 and found["classes"]["cat"]["precision"] == 1
    _print_seen(found, "data")
    assert "chosen on the same images: on others the figures are lower" in capsys.readouterr().out
    _print_seen(found, "other")
    assert "chosen on the same images" not in capsys.readouterr().out
