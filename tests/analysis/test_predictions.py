"""Pictures of predictions: the matching behind the colours, and that a sheet is drawn."""

import numpy as np
from PIL import Image

from d2ext.analysis.drawing import draw_boxes
from d2ext.analysis.figures import BLUE
from d2ext.analysis.prediction_sheet import draw_sheet
from d2ext.evaluation.results import judge

OBJECTS = ((1, [0, 0, 10, 10]), (2, [20, 20, 20, 20]))


def dataset(images=1):
    return {
        "images": [{"id": k, "file_name": f"{k}.png"} for k in range(images)],
        "categories": [{"id": 1, "name": "ball"}, {"id": 2, "name": "$x^{$ \x1b[2J"}],
        "annotations": [
            {"id": 10 * k + n + 1, "image_id": k, "category_id": c, "bbox": box}
            for k in range(images)
            for n, (c, box) in enumerate(OBJECTS)
        ],
    }


def detections(*rows, images=1):
    return [
        {"image_id": k, "category_id": c, "bbox": box, "score": 0.9 - 0.1 * n}
        for k in range(images)
        for n, (c, box) in enumerate(rows)
    ]


def test_each_object_is_found_once_by_the_best_score():
    v = judge(
        detections(
            (1, [0, 0, 10, 9]), (1, [0, 0, 10, 10]), (1, [20, 20, 20, 15]), (1, [50, 50, 10, 10])
        ),
        dataset(),
    )
    assert v.kind.tolist() == ["right", "duplicate", "class", "background"]
    assert v.gt_found.tolist() == [True, False]


def test_nothing_to_match():
    v = judge([], dataset())
    assert len(v.kind) == 0 and v.gt_found.tolist() == [False, False]
    v = judge(detections(*OBJECTS), {**dataset(), "annotations": []})
    assert v.kind.tolist() == ["background", "background"] and len(v.gt_found) == 0


def test_sheet(tmp_path):
    for k in range(3):
        Image.fromarray(np.full((50, 60, 3), 200, np.uint8)).save(tmp_path / f"{k}.png")
    results = detections((1, [0, 0, 10, 10]), (2, [1, 1, 4, 4]), images=3)
    picture = tmp_path / "sub" / "sheet.png"
    verdict = judge(results, dataset(3))
    report = draw_sheet(verdict, dataset(3), str(tmp_path), picture, images=[0, 2])
    totals = report["totals"]
    assert (totals["objects"], totals["not_found"]) == (4, 2)
    assert (totals["right"], totals["background"] + totals["both"]) == (2, 2)
    assert [row["file"] for row in report["images"]] == ["0.png", "2.png"]
    pixels = np.asarray(Image.open(picture).convert("RGB")).reshape(-1, 3)
    for color in ((0, 158, 115), (0, 114, 178), (213, 94, 0)):  # found, right, missed or wrong
        assert (np.abs(pixels.astype(int) - color).max(axis=1) < 12).any()


def test_boxes_are_where_they_belong_and_labels_stay_in_the_image():
    blank = np.zeros((60, 80, 3), np.uint8)
    drawn = np.asarray(draw_boxes(blank, np.array([[20.0, 30, 60, 50]]), [""], [BLUE]))
    assert drawn[50, 40].any() and not drawn[40, 40].any() and not drawn[10, 10].any()
    for box in ([-5.0, -5, 20, 20], [70.0, 50, 90, 70], [0.0, 0, 80, 60]):
        twice = draw_boxes(blank, np.array([box]), ["a label"], [BLUE], scale=2.0)
        assert twice.size == (160, 120) and np.asarray(twice).any()
