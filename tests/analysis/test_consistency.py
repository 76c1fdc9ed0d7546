"""Correlation of score and IoU, on detections whose overlaps are known."""

import json
import math

import numpy as np
import pytest

from d2ext.analysis.consistency import (
    best_ious,
    main,
    pearson,
    score_iou_consistency,
    spearman,
)


def found(box, score, image=1, category=1):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def truth(*boxes, image=1, category=1, crowd=0):
    return [
        {"image_id": image, "category_id": category, "bbox": box, "iscrowd": crowd} for box in boxes
    ]


def dataset(*groups):
    return {"images": [{"id": 1}, {"id": 2}], "annotations": [a for g in groups for a in g]}


def test_best_iou_is_that_of_the_own_class_and_image():
    gt = dataset(
        truth([0, 0, 10, 10], [20, 0, 10, 10]),
        truth([0, 0, 8, 10], category=2),
        truth([0, 0, 5, 10], image=2),
    )
    results = [
        found([0, 0, 10, 8], 0.9),  # 0.8 with the first, although class 2 is nearer
        found([20, 0, 5, 10], 0.7),  # 0.5 with the second
        found([0, 0, 10, 10], 0.6, image=2),  # 0.5
        found([0, 0, 10, 10], 0.5, category=3),  # no such object
        found([0, 0, 10, 10], 0.01),
    ]
    score, iou = best_ious(results, gt, min_score=0.05)
    by_score = dict(zip(score.tolist(), iou.tolist()))
    assert by_score == pytest.approx({0.9: 0.8, 0.7: 0.5, 0.6: 0.5, 0.5: 0.0})


def test_what_a_crowd_explains_is_left_out():
    gt = dataset(truth([0, 0, 10, 10]), truth([0, 0, 100, 100], crowd=1))
    results = [found([50, 50, 10, 10], 0.9), found([0, 0, 10, 9], 0.8), found([95, 0, 50, 9], 0.7)]
    score, iou = best_ious(results, gt)
    assert score.tolist() == [0.8, 0.7] and iou.tolist() == pytest.approx([0.9, 0.0])


def test_perfect_and_reversed_scores():
    gt = dataset(truth([0, 0, 10, 10]))
    boxes = [[0, 0, 10, h] for h in (4, 6, 7, 9)]
    for scores, sign in (((0.4, 0.6, 0.7, 0.9), 1), ((0.6, 0.4, 0.3, 0.1), -1)):
        summary = score_iou_consistency([found(b, s) for b, s in zip(boxes, scores)], gt)
        assert summary["pearson"] == pytest.approx(sign)
        assert summary["spearman"] == pytest.approx(sign)
        assert summary["detections"] == 4 and summary["detections_hit"] == 3
    assert summary["gap_hit"] == pytest.approx(np.mean([0.2, 0.4, 0.8]))


def test_against_numpy_and_ranks_with_ties():
    rng = np.random.RandomState(0)
    a, b = rng.rand(50), rng.rand(50)
    assert pearson(a, b) == pytest.approx(np.corrcoef(a, b)[0, 1])
    assert spearman(a, a**3) == pytest.approx(1)
    # Ranks 0, 1.5, 1.5, 3 against 0, 1, 2, 3.
    expected = np.corrcoef([0, 1.5, 1.5, 3], [0, 1, 2, 3])[0, 1]
    assert spearman(np.array([1, 2, 2, 5]), np.array([1, 2, 3, 4])) == pytest.approx(expected)


def test_nothing_to_correlate():
    gt = dataset(truth([0, 0, 10, 10]))
    summary = score_iou_consistency([], gt)
    assert summary["detections"] == 0 and math.isnan(summary["pearson"])
    same = [found([0, 0, 10, 10], 0.5), found([0, 0, 10, 10], 0.5)]
    assert math.isnan(score_iou_consistency(same, gt)["spearman"])


def test_from_files(tmp_path, capsys):
    gt, results = tmp_path / "gt.json", tmp_path / "results.json"
    gt.write_text(json.dumps(dataset(truth([0, 0, 10, 10]))))
    results.write_text(json.dumps([found([0, 0, 10, 9], 0.9), found([0, 0, 10, 5], 0.2)]))
    main([str(results), str(gt)])
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert float(printed["pearson"]) == pytest.approx(1) and printed["detections"] == "2"


def test_a_data_set_by_name_and_one_that_does_not_exist(tmp_path, capsys):
    from detectron2.data import DatasetCatalog, MetadataCatalog

    gt, results = tmp_path / "gt.json", tmp_path / "results.json"
    gt.write_text(json.dumps(dataset(truth([0, 0, 10, 10]))))
    results.write_text(json.dumps([found([0, 0, 10, 9], 0.9)]))
    DatasetCatalog.register("consistency_test", lambda: [])
    try:
        MetadataCatalog.get("consistency_test").json_file = str(gt)
        main([str(results), "consistency_test"])
        assert "detections       1" in capsys.readouterr().out
    finally:
        DatasetCatalog.remove("consistency_test")
        MetadataCatalog.remove("consistency_test")
    with pytest.raises(FileNotFoundError, match="neither a file nor a data set"):
        main([str(results), "no_such_data_set"])
