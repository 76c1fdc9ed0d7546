"""AP on test images that are drawn again and again."""

import copy

import numpy as np
import pytest
from studies.bootstrap import image_bootstrap

from d2ext.evaluation.results import class_aps, detections_of, evaluate_results, truth_of


def _scene(rng, images=6):
    """Objects of two classes, most of them found, with some noise, and a crowd."""
    data = {
        "images": [],
        "annotations": [],
        "categories": [{"id": k, "name": f"{k}"} for k in (1, 2)],
    }
    results = []
    for image in range(images):
        data["images"].append({"id": image, "width": 200, "height": 200})
        for _ in range(4):
            box = [*rng.uniform(0, 120, 2), *rng.uniform(30, 60, 2)]
            category = int(rng.integers(1, 3))
            data["annotations"].append(
                {"id": len(data["annotations"]) + 1, "image_id": image, "category_id": category,
                 "bbox": box, "area": box[2] * box[3], "iscrowd": int(rng.random() < 0.1)}
            )  # fmt: skip
            near = [v + e for v, e in zip(box, rng.normal(0, 5, 4))]
            results.append(_found(rng, image, category, near))
        results.append(_found(rng, image, 1, [*rng.uniform(0, 120, 2), 40, 40]))
    return data, results


def _found(rng, image, category, box):
    score = float(rng.random())
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


def _ap(data, results):
    truth = truth_of(data)
    return np.mean(class_aps(evaluate_results(truth, detections_of(results, truth))))


@pytest.mark.parametrize("seed", range(3))
def test_drawn_images_are_images_that_are_there_several_times(seed):
    rng = np.random.default_rng(seed)
    data, results = _scene(rng)
    ones = np.ones((1, 6), dtype=int)
    assert image_bootstrap(results, data, weights=ones)[0] == pytest.approx(_ap(data, results))
    weights = np.array([[2, 0, 1, 3, 0, 1], [1, 1, 0, 0, 4, 1]])
    found = image_bootstrap(results, data, weights=weights)
    for weight, ap in zip(weights, found):
        assert ap == pytest.approx(_ap(*_repeated(data, results, weight)), abs=1e-9)


def _repeated(data, results, weight):
    """The set with as many copies of each image, under ids of their own."""
    rows = {"images": [], "annotations": [], "categories": data["categories"]}
    found = []
    for image, count in enumerate(weight):
        for k in range(count):
            new = image + 100 * k
            rows["images"].append({**data["images"][image], "id": new})
            for source, target in ((data["annotations"], rows["annotations"]), (results, found)):
                for row in source:
                    if row["image_id"] == image:
                        target.append({**copy.deepcopy(row), "image_id": new})
    for k, row in enumerate(rows["annotations"]):
        row["id"] = k + 1
    return rows, found


def test_two_detectors_get_the_same_draws():
    data, results = _scene(np.random.default_rng(0))
    first = image_bootstrap(results, data, draws=20)
    assert first == image_bootstrap(results, data, draws=20)
    assert len(first) == 20 and np.std(first) > 0
    assert image_bootstrap([], data, draws=3) == [0.0] * 3
