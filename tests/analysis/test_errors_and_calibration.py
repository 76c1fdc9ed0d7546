"""Kinds of error, AP and calibration against direct computations."""

import contextlib
import copy
import io
import logging

import numpy as np
import pytest

from d2ext.analysis.calibration import calibrate, expected_error
from d2ext.analysis.consistency import best_ious
from d2ext.analysis.errors import average_precision, error_costs
from d2ext.analysis.results_report import analyze_results
from d2ext.evaluation.backends import lvis_eval
from d2ext.evaluation.boxes import pairwise_iou
from d2ext.evaluation.results import judge


def dataset(boxes, num_classes=2, **image):
    """A data set of one image: boxes are (category, x, y, w, h)."""
    return {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 200, "height": 200, **image}],
        "categories": [{"id": c + 1, "name": f"c{c + 1}"} for c in range(num_classes)],
        "annotations": [
            {"id": i + 1, "image_id": 1, "category_id": c, "bbox": list(b), "iscrowd": 0,
             "area": b[2] * b[3]}
            for i, (c, *b) in enumerate(boxes)
        ],
    }  # fmt: skip


def detection(category, box, score, image=1):
    return {"image_id": image, "category_id": category, "bbox": list(box), "score": score}


def random_case(seed, images=12, num_classes=3):
    rng = np.random.default_rng(seed)
    data = dataset([], num_classes)
    data["images"] = [{"id": i, "width": 200, "height": 200} for i in range(1, images + 1)]
    results = []
    for image in range(1, images + 1):
        for _ in range(rng.integers(0, 7)):
            box = [*rng.uniform(0, 120, 2), *rng.uniform(8, 80, 2)]
            category = int(rng.integers(1, num_classes + 1))
            data["annotations"].append(
                {"id": len(data["annotations"]) + 1, "image_id": image, "category_id": category,
                 "bbox": box, "area": box[2] * box[3], "iscrowd": int(rng.random() < 0.1)}
            )  # fmt: skip
            for _ in range(rng.integers(0, 4)):
                moved = np.array(box) + rng.normal(0, 6, 4)
                moved[2:] = np.abs(moved[2:]) + 1
                other = int(rng.integers(1, num_classes + 1))
                label = category if rng.random() < 0.8 else other
                results.append(detection(label, moved.tolist(), float(rng.random()), image))
    return data, results


def with_an_absent_image(data, results):
    """As a file cut down to some of its images is."""
    box = {"image_id": 999, "category_id": 1, "bbox": [0, 0, 50, 50], "area": 2500, "iscrowd": 0}
    data["annotations"].append({**box, "id": len(data["annotations"]) + 1})
    data["annotations"].append({**box, "id": len(data["annotations"]) + 1, "image_id": 1,
                                "category_id": 77})  # fmt: skip


def with_many_detections(data, results):
    """So many of one class above all others that these are behind the first few hundred."""
    for k in range(320):
        results.append(detection(1, (k % 150, 150, 9, 9), 1 + (k + 1) / 1000))


def with_equal_scores(data, results):
    data["images"].reverse()
    for item in results:
        item["score"] = round(item["score"], 1)


def with_empty_boxes(data, results):
    for item in [*data["annotations"], *results][::9]:
        item["bbox"] = [*item["bbox"][:3], 0]
        item["area"] = 0


def pycocotools_ap(data, results):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(data)
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "bbox")
        run.evaluate()
        run.accumulate()
        run.summarize()
    return run.stats[:2] * 100


def lvis_ap(data, results):
    from lvis import LVIS, LVISResults

    truth = LVIS.__new__(LVIS)  # its constructor only reads files
    truth.logger, truth.dataset = logging.getLogger("lvis"), copy.deepcopy(data)
    truth._create_index()
    run = lvis_eval()(truth, LVISResults(truth, copy.deepcopy(results)), "bbox")
    run.run()
    return [100 * run.results[key] for key in ("AP", "AP50")]


def assert_ap(data, results, expected):
    assert analyze_results(results, data)["AP"] == pytest.approx(expected[0], abs=1e-9)
    assert error_costs(judge(results, data))["AP50"] == pytest.approx(expected[1], abs=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_ap_is_that_of_pycocotools(seed):
    data, results = random_case(seed)
    assert_ap(data, results, pycocotools_ap(data, results))


SPECIAL = [with_an_absent_image, with_many_detections, with_equal_scores, with_empty_boxes]


@pytest.mark.parametrize("change", SPECIAL, ids=lambda change: change.__name__)
def test_ap_of_special_files_is_that_of_pycocotools_and_of_lvis(change):
    data, results = random_case(4)
    change(data, results)
    assert_ap(data, results, pycocotools_ap(data, results))
    rng = np.random.default_rng(0)
    for image in data["images"]:
        lists = [[c for c in (1, 2, 3) if rng.random() < 0.3] for _ in range(2)]
        image.update(zip(("neg_category_ids", "not_exhaustive_category_ids"), lists))
    for row in [*data["categories"], *data["annotations"]]:
        row.update(frequency="f", iscrowd=0)
    assert_ap(data, results, lvis_ap(data, results))


def test_one_detection_of_each_kind():
    data = dataset([(1, 0, 0, 50, 50), (2, 100, 100, 50, 50), (1, 100, 0, 40, 40)])
    results = [
        detection(1, (0, 0, 50, 50), 0.9),
        detection(1, (0, 0, 50, 49), 0.8),
        detection(1, (100, 100, 50, 50), 0.7),
        detection(1, (100, 0, 40, 15), 0.6),
        detection(2, (0, 0, 50, 15), 0.5),
        detection(2, (0, 180, 10, 10), 0.4),
    ]
    v = judge(results, data)
    assert v.kind.tolist() == ["right", "duplicate", "class", "location", "both", "background"]
    assert v.target.tolist() == [0, 0, 1, 2, -1, -1]
    assert v.gt_found.tolist() == [True, False, False]
    assert not v.gt_missed.any()
    report = error_costs(v)
    assert report["count"] == {
        "class": 1, "location": 1, "both": 1, "duplicate": 1, "background": 1, "missed": 0
    }  # fmt: skip


def test_costs_by_hand():
    # One class, two objects: the first is found, the second only by a box that is too far off.
    data = dataset([(1, 0, 0, 50, 50), (1, 100, 0, 50, 50)], 1)
    results = [detection(1, (0, 0, 50, 50), 0.9), detection(1, (100, 0, 50, 20), 0.8)]
    report = error_costs(judge(results, data))
    half = 100 * 51 / 101  # precision 1 up to recall 0.5
    assert report["AP50"] == pytest.approx(half)
    assert report["cost"]["location"] == pytest.approx(100 - half)
    assert report["cost"]["missed"] == report["cost"]["class"] == 0
    # Nothing near the second object: it counts as missed.
    report = error_costs(judge(results[:1], data))
    assert report["count"]["missed"] == 1
    assert report["cost"]["missed"] == pytest.approx(100 - half)


def test_class_correction_counts_for_the_right_class():
    data = dataset([(1, 0, 0, 50, 50), (2, 100, 0, 50, 50)])
    results = [detection(1, (0, 0, 50, 50), 0.9), detection(1, (100, 0, 50, 50), 0.8)]
    report = error_costs(judge(results, data))
    assert report["AP50"] == pytest.approx(50)
    assert report["cost"]["class"] == pytest.approx(50)


def test_crowds_and_classes_not_annotated_are_ignored():
    data = dataset([(1, 0, 0, 100, 100)])
    data["annotations"][0]["iscrowd"] = 1
    assert judge([detection(1, (10, 10, 20, 20), 0.9)], data).kind.tolist() == ["ignored"]
    lvis = dataset([(1, 0, 0, 9, 9)], 3, neg_category_ids=[2], not_exhaustive_category_ids=[1])
    rows = [detection(c, (50, 50, 20, 20), 0.9) for c in (1, 2, 3)]
    assert judge(rows, lvis).kind.tolist() == ["ignored", "background", "ignored"]
    # Nor are they a part of consistency and calibration.
    rows += [detection(1, (0, 0, 9, 8), 0.7), detection(1, (0, 0, 9, 9), 0.6, image=2)]
    score, iou = best_ious(rows, lvis)
    assert score.tolist() == [0.7, 0.9] and iou.tolist() == pytest.approx([8 / 9, 0])


def test_no_detections_at_all():
    data = dataset([(1, 0, 0, 9, 9)], 1)
    report = analyze_results([], data)
    assert report["AP"] == 0 and report["errors"]["count"]["missed"] == 1
    assert report["sizes"]["small"] == {"objects": 1, "AP": 0.0, "found": 0.0, "iou": None}


def test_average_precision_by_hand():
    ap = average_precision(
        np.array([1, 1, 1]), np.array([0.9, 0.8, 0.7]), np.array([True, False, True]), {1: 2, 2: 0}
    )
    assert ap == {1: pytest.approx((51 + 50 * 2 / 3) / 101)}


def test_iou_of_two_boxes():
    iou = pairwise_iou(np.array([[0.0, 0, 10, 10]]), np.array([[5.0, 0, 10, 10]]))
    assert iou[0, 0] == pytest.approx(50 / 150)


def test_expected_error_by_hand():
    score, right = np.array([0.12, 0.18, 0.95]), np.array([0.0, 1.0, 1.0])
    row = expected_error(score, right, bins=10)
    assert row["error"] == pytest.approx((2 * abs(0.15 - 0.5) + 0.05) / 3)
    assert row["count"].tolist() == [0, 2, 0, 0, 0, 0, 0, 0, 0, 1]
    assert expected_error(np.array([1.0]), np.array([1.0]))["error"] == 0


def test_calibration_against_iou():
    rng = np.random.default_rng(0)
    iou = rng.random(500)
    exact = calibrate(iou, iou)
    assert exact["IoU"]["error"] == pytest.approx(0, abs=1e-12)
    half = calibrate(iou / 2, iou)
    assert half["IoU"]["error"] == pytest.approx(float(np.mean(iou / 2)))
    assert exact["right at IoU 0.5"]["error"] == pytest.approx(
        expected_error(iou, (iou >= 0.5).astype(float))["error"]
    )


def test_classes_by_frequency_of_the_training_set():
    data = dataset([(1, 0, 0, 9, 9), (2, 20, 20, 9, 9)])
    train = dataset([(2, 0, 0, 9, 9), (2, 20, 20, 9, 9)])
    for part in (data, train):  # of an image that is not there
        part["annotations"].append({**part["annotations"][0], "id": 9, "image_id": 9})
    rows = analyze_results([detection(2, (20, 20, 9, 9), 0.5)], data, train)["classes"]
    assert [(r["name"], r["images"], r["objects"], r["AP"]) for r in rows] == [
        ("c2", 1, 1, 100.0), ("c1", 0, 1, 0.0)
    ]  # fmt: skip
