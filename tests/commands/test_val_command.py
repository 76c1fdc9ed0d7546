"""``d2ext val``: what somebody sees from a score on, and where such scores are chosen."""

import argparse
import json
import os

import own_data_kit
import pytest
import torch
from commands_kit import write_config
from detectron2.modeling import build_model

from d2ext.analysis import results_report, score_pictures
from d2ext.cli import main
from d2ext.commands.common import is_validation
from d2ext.commands.val import _print_seen, _seen
from d2ext.data.own import register_own_data
from d2ext.evaluation.thresholds import Thresholds
from d2ext.predictor import load_config


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


@pytest.fixture
def pets(tmp_path, monkeypatch):
    """Own data with three splits in its folder, and what begins a command line about weights."""
    monkeypatch.setenv("D2EXT_DATA", str(tmp_path / "cache"))
    own_data_kit.write_coco(tmp_path / "pets")
    names = register_own_data(str(tmp_path / "pets")).names
    config = write_config(tmp_path, names["test"], MODEL={"FCOS": {"SCORE_THRESH_TEST": 0.0}})
    weights = tmp_path / "run" / "model.pth"
    weights.parent.mkdir()
    cfg = load_config(str(config), str(weights))
    cfg.MODEL.DEVICE = "cpu"
    torch.save({"model": build_model(cfg).state_dict()}, weights)
    return names, ["--weights", str(weights), "--config-file", str(config)]


def test_thresholds_are_chosen_on_validation_images(pets, tmp_path, capsys, monkeypatch):
    # Pictures would take longer than all else here.
    monkeypatch.setattr(results_report, "draw_analysis", lambda *args: None)
    monkeypatch.setattr(score_pictures, "draw_scores", lambda *args: None)
    chosen = tmp_path / "run" / "model.thresholds.json"

    def said_by_val(*more):
        words = ["val", *pets[1], "--data", str(tmp_path / "pets"), *more]
        assert main([*words, "--opts", "DATALOADER.NUM_WORKERS", "0"]) == 0
        return capsys.readouterr().out

    missing = f"No thresholds are written: {pets[0]['test']} is not known as a validation"
    assert missing in said_by_val()  # the test split
    assert not chosen.exists()
    assert "No thresholds" not in said_by_val("--split", "val")
    assert Thresholds.load(chosen).source == pets[0]["val"]
    assert "No thresholds" not in said_by_val("--split", "test", "--threshold", "auto")
    assert Thresholds.load(chosen).source == pets[0]["val"]
    said_by_val("--split", "test", "--write-thresholds")
    assert Thresholds.load(chosen).source == pets[0]["test"]


def test_scores_are_fitted_on_validation_images(pets, tmp_path, capsys):
    words = ["calibrate", *pets[1], "--test", pets[0]["val"]]
    assert main(words) == 1  # the config names the test split
    said = f"{pets[0]['test']} is not known as a validation split; if scores shall be fitted"
    assert said in capsys.readouterr().err
    assert os.listdir(tmp_path / "run") == ["model.pth"]


def test_which_sets_are_validation_splits(pets):
    assert [is_validation(pets[0][split]) for split in ("val", "test", "train")] == [True, 0, 0]
    for name in ("coco_2017_val_100", "coco_2014_minival", "voc_2007_val", "a-validation"):
        assert is_validation(name), name
    for name in ("voc_2007_test", "voc_2007_trainval", "photos", "coco_2017_train"):
        assert not is_validation(name), name
