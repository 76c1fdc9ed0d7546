"""Pictures of assignments and predictions: the numbers beside them equal a direct computation."""

import json

import numpy as np
import pytest
import torch
from commands_kit import call, read_json, tiny_project, write_config
from detectron2.data import MetadataCatalog
from PIL import Image

from d2ext.analysis.assignment_picture import assign_image, table_of_levels
from d2ext.analysis.prediction_sheet import rank_images
from d2ext.evaluation.results import judge


def test_assign_two_configs(tmp_path):
    with tiny_project(tmp_path) as (name, fcos):
        dw = write_config(tmp_path, name, "dw_shapes")
        assert call("show", "assign", fcos, dw, "--images", 2, "--output", tmp_path / "out") == 0
    report = read_json(tmp_path / "out" / "assignments.json")
    assert len(report) == 2
    for entry in report:
        with Image.open(tmp_path / "out" / entry["picture"]) as image:
            assert image.size[0] > 500
        assert [r["title"].split(":")[0] for r in entry["rows"]] == [
            "ExtFCOS", "DualWeightingFCOS", "DualWeightingFCOS"
        ]  # fmt: skip
        assert all(len(level) == len(entry["objects"]) for level in entry["rows"][0]["levels"])


def test_every_model_sees_the_image_as_its_own_config_has_it(tmp_path, monkeypatch):
    """Also where the first config, whose picture is drawn, has another size and channel order."""
    from d2ext.analysis import assignment_picture

    seen, drawn = [], []
    monkeypatch.setattr(
        assignment_picture, "assign_image",
        lambda model, item: seen.append(item["image"]) or assign_image(model, item),
    )  # fmt: skip
    monkeypatch.setattr(
        assignment_picture, "draw_assignments",
        lambda image, boxes, names, rows, path: drawn.append((image, [r for _, r in rows])),
    )  # fmt: skip
    with tiny_project(tmp_path) as (name, small):
        large = {"FORMAT": "RGB", "MIN_SIZE_TRAIN": [192]}
        other = write_config(tmp_path, name, "atss_shapes", INPUT=large)
        assert call("show", "assign", small, other, "--output", tmp_path / "out") == 0
    (bgr, rgb), ((pixels, (first, second)),) = seen, drawn
    assert (min(bgr.shape[1:]), min(rgb.shape[1:])) == (96, 192)
    np.testing.assert_array_equal(pixels, bgr.flip(0).permute(1, 2, 0).numpy())
    means = [image.double().mean((1, 2)) for image in (bgr.flip(0), rgb)]
    torch.testing.assert_close(*means, rtol=0.02, atol=0)  # as the resized channels are in order
    assert sum(second["priors"]) == 4 * sum(first["priors"])
    # What is drawn of the second lies in the first one's picture.
    assert 96 / 3 < max(second["x"].max(), second["y"].max()) < max(pixels.shape)


@pytest.mark.parametrize("base", ["fcos_shapes", "atss_shapes", "retinanet_shapes"])
def test_labels_are_those_of_the_model(tmp_path, base):
    from detectron2.data import DatasetCatalog, DatasetMapper

    from d2ext.commands.common import load_config
    from d2ext.commands.show import load_model

    with tiny_project(tmp_path, base) as (name, config):
        model = load_model(load_config(str(config), []))
        item = DatasetMapper(is_train=True, augmentations=[], image_format="BGR")(
            DatasetCatalog.get(name)[0]
        )
    (found,) = assign_image(model, item)
    maps = model.backbone(model.preprocess_image([item]).tensor)
    anchors = model.anchor_generator([maps[n] for n in model.head_in_features])
    labels = model.label_anchors(anchors, [item["instances"]])[0][0]
    positive = (labels >= 0) & (labels != model.num_classes)
    assert len(found["x"]) == int(positive.sum()) > 0
    # The object shown at a prior has the class of its label.
    assert torch.equal(item["instances"].gt_classes[found["gt"]], labels[positive])
    assert found["priors"] == [len(a) for a in anchors]
    assert sum(found["ignored"]) == int((labels == -1).sum())
    table = table_of_levels(found, len(item["instances"]))
    assert sum(cell["count"] for row in table for cell in row) == len(found["x"])
    assert found["strides"] == [8, 16, 32]


def test_rpn_and_a_model_that_labels_nothing(tmp_path):
    with tiny_project(tmp_path, "faster_rcnn_shapes") as (name, config):
        assert call("show", "assign", config, "--output", tmp_path / "out") == 0
        title = read_json(tmp_path / "out" / "assignments.json")[0]["rows"][0]["title"]
        assert title == "GeneralizedRCNN, proposals: positive priors"
    with pytest.raises(ValueError, match="labels no anchors"):
        assign_image(torch.nn.Linear(1, 1), {})


def planted(data):
    """Detections of the first image with known mistakes: one right, one of each kind of wrong."""
    first = next(i["id"] for i in data["images"])
    objects = [a for a in data["annotations"] if a["image_id"] == first]
    a = objects[0]
    other = next(c["id"] for c in data["categories"] if c["id"] != a["category_id"])
    x, y, w, h = a["bbox"]
    rows = [
        (a["category_id"], [x, y, w, h], 0.9),
        (a["category_id"], [x, y, w, h * 0.9], 0.8),  # a duplicate
        (other, [-500, -500, 9, 9], 0.6),  # nothing is there
    ]
    return [
        {"image_id": first, "category_id": c, "bbox": b, "score": s} for c, b, s in rows
    ], objects  # fmt: skip


def test_predictions_are_marked_and_ranked(tmp_path):
    with tiny_project(tmp_path) as (name, _):
        meta = MetadataCatalog.get(name)
        from detectron2.data import DatasetCatalog

        DatasetCatalog.get(name)
        with open(meta.json_file) as f:
            data = json.load(f)
        absent = {**data["annotations"][0], "id": 9001, "image_id": 777}
        more = {**data, "annotations": [*data["annotations"], absent]}
        with open(meta.json_file, "w") as f:  # as a file cut down to some of its images
            json.dump(more, f)
        results, objects = planted(data)
        (tmp_path / "results.json").write_text(json.dumps(results))
        words = ("show", "predict", tmp_path / "results.json", "--dataset", name)
        assert call(*words, "--output", tmp_path / "out", "--images", 2) == 0
    report = read_json(tmp_path / "out" / "predictions.json")
    assert report["totals"]["right"] == 1
    assert report["totals"]["duplicate"] == 1 and report["totals"]["background"] == 1
    assert report["totals"]["objects"] == len(data["annotations"])
    assert report["totals"]["not_found"] == len(data["annotations"]) - 1
    mistakes = [row["mistakes"] for row in report["images"]]
    assert mistakes == sorted(mistakes, reverse=True)
    mine = next(row for row in report["images"] if row["image"] == objects[0]["image_id"])
    assert mine["mistakes"] == len(objects) - 1 + 2
    with Image.open(tmp_path / "out" / "worst.png") as image:
        assert np.asarray(image).std() > 0


def test_low_scores_are_left_out():
    data = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}],
    }
    result = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9], "score": 0.4}
    (row,) = rank_images(judge([result], data, min_score=0.5))
    assert (row["right"], row["not_found"]) == (0, 1)


def test_batches_are_drawn_as_the_model_sees_them(tmp_path):
    with tiny_project(tmp_path) as (_, config):
        words = ["--batches", 2, "--step", 3, "--output", tmp_path / "out"]
        assert call("show", "batch", config, *words, "--opts", "INPUT.AUGMENTATION", "strong") == 0
    report = read_json(tmp_path / "out" / "batches.json")
    assert len(report) == 2 and all(row["image"] for batch in report for row in batch)
    assert (tmp_path / "out" / "batch_3_1.png").stat().st_size > 1000
