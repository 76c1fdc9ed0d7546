"""What an annotation file may hold and an evaluation still measures rightly, or refuses."""

import json
import logging

import numpy as np
import pytest

from d2ext.data.checks import BadDataError
from d2ext.evaluation.ground_truth import GroundTruth
from d2ext.evaluation.results import class_aps, detections_of, evaluate_results, truth_of

BOX = [0.0, 0.0, 10.0, 10.0]


def dataset(**more):
    return {
        "images": [{"id": 1, "width": 40, "height": 40}],
        "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": BOX, **more}],
    }


@pytest.mark.parametrize("area", [None, float("nan"), [7], "large", float("inf"), -1, True])
def test_an_area_that_is_none_counts_as_missing(caplog, area):
    """Infinity was a large object, so that APl was a figure of small ones; others a traceback."""
    data = dataset(area=area)
    with caplog.at_level(logging.WARNING):
        truth = GroundTruth.from_dict(data)
    assert truth.area.tolist() == [100.0] and "area of the box" in caplog.text
    rows = [{"image_id": 1, "category_id": 1, "bbox": BOX, "score": 0.9}]
    result = evaluate_results(truth, detections_of(rows, truth))
    assert [class_aps(result, k)[0] for k in (1, 2, 3)] == [100.0, None, None]


def test_a_good_area_is_the_files():
    assert truth_of(dataset(area=7.5)).area.tolist() == [7.5]


def test_classes_of_one_name_both_keep_their_figure(tmp_path):
    from detectron2.data import MetadataCatalog

    from d2ext.evaluation import COCOEvaluator, Predictions

    data = dataset(area=100)
    data["categories"][1]["name"] = "a"
    data["annotations"].append({**data["annotations"][0], "id": 2, "category_id": 2})
    assert truth_of(data).category_names == ["a (id 1)", "a (id 2)"]
    (tmp_path / "data.json").write_text(json.dumps(data))
    name = "two_classes_of_one_name"
    MetadataCatalog.get(name).set(json_file=str(tmp_path / "data.json"), thing_classes=["a", "a"])
    try:
        evaluator = COCOEvaluator(name, distributed=False)
        found = Predictions(
            [1], np.zeros(1, np.int32), np.array([[0, 0, 10, 10]], np.float32),
            np.array([0.9], np.float32), np.array([0], np.int32),
        )  # fmt: skip
        figures = evaluator._evaluate_predictions(found, None)["bbox"]
    finally:
        MetadataCatalog.remove(name)
    assert figures["AP-a (id 1)"] == 100 and figures["AP-a (id 2)"] == 0


@pytest.mark.parametrize("far", [1e9, -1e12, float("inf"), float("nan")])
def test_a_mask_far_away_is_refused(far):
    """Drawing it took all memory: std::bad_alloc, or a segmentation fault."""
    truth = truth_of(dataset(segmentation=[[0, 0, 10, 0, far, 10]]))
    with pytest.raises(BadDataError, match="image 1.*polygon"):
        truth.require_masks_in_reach("some set")
    truth_of(dataset(segmentation=[[0, 0, 60, 0, 10, -50]])).require_masks_in_reach("some set")


def test_others_find_lvis_as_it_was():
    import lvis.eval

    from d2ext.evaluation.backends import lvis_eval

    assert lvis_eval() is not lvis.eval.LVISEval
    assert lvis.eval.np is np
