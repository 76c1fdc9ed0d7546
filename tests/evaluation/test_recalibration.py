"""Maps from scores to probabilities, and what is seen above a score."""

import json

import numpy as np
import pytest

from d2ext._files import RunError
from d2ext.evaluation.recalibration import METHODS, Recalibration, fit, isotonic, temperature
from d2ext.evaluation.results import judge
from d2ext.evaluation.thresholds import figures_at


def drawn(method="isotonic", count=4000, seed=0):
    """Scores, and whether they are right: less often than they say, as a method can correct it."""
    rng = np.random.RandomState(seed)
    score = rng.uniform(0.01, 0.99, count)
    odds = score / (1 - score)
    chance = score**3 if method == "isotonic" else 1 / (1 + odds**-0.3)
    return score, rng.uniform(size=count) < chance


def test_isotonic_pools_neighbours_that_fall():
    score = np.array([0.1, 0.2, 0.3, 0.4, 0.5, 0.5])
    right = np.array([0, 1, 0, 1, 1, 0], dtype=float)
    x, y = isotonic(score, right)
    expected = {0.1: 0.0, 0.2: 0.5, 0.3: 0.5, 0.4: 2 / 3, 0.5: 2 / 3}
    assert np.interp(list(expected), x, y) == pytest.approx(list(expected.values()), abs=1e-5)
    assert (x[0], x[-1]) == (0.0, 1.0) and (np.diff(x) > 0).all() and (np.diff(y) >= 0).all()


def test_temperature_is_that_of_the_highest_likelihood():
    rng = np.random.RandomState(0)
    logit = rng.normal(0, 4, 20000)  # three times too sure
    right = rng.uniform(size=len(logit)) < 1 / (1 + np.exp(-logit / 3))
    assert temperature(1 / (1 + np.exp(-logit)), right) == pytest.approx(3.0, rel=0.05)


def verdict_of(score, right, names=("a", "b")):
    """A data set of one object an image, found or missed by one detection of each class in turn."""
    data = {"images": [], "annotations": [], "categories": []}
    data["categories"] = [{"id": k + 1, "name": name} for k, name in enumerate(names)]
    results = []
    for k, (s, r) in enumerate(zip(score, right)):
        data["images"].append({"id": k, "width": 100, "height": 100})
        box = {"image_id": k, "category_id": k % len(names) + 1}
        data["annotations"].append(
            {**box, "id": k + 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0}
        )
        place = [10, 10, 20, 20] if r else [60, 60, 20, 20]
        results.append({**box, "bbox": place, "score": float(s)})
    return judge(results, data)


@pytest.mark.parametrize("method", METHODS)
def test_scores_become_shares_and_keep_their_order(method):
    score, right = drawn(method)
    how = fit(verdict_of(score, right), [1, 2], ["a", "b"], method=method, source="half")
    new_score, new_right = drawn(method, seed=1)
    found = how.apply(new_score, np.zeros(len(new_score), int), ["a", "b"])
    high = new_score > 0.8
    before = abs(new_score[high].mean() - new_right[high].mean())
    after = abs(found[high].mean() - new_right[high].mean())
    assert before > 0.1 and after < 0.05
    order = np.argsort(new_score)
    assert (np.diff(found[order]) > 0).all() and found.min() >= 0 and found.max() <= 1


def test_rare_classes_take_the_map_of_all():
    score, right = drawn(count=400)
    verdict = verdict_of(score, right, names=("a", "b"))
    few = verdict.category == 2
    verdict.kind[few] = "right"  # nothing wrong to learn from
    how = fit(verdict, [1, 2], ["a", "b"], method="isotonic", source="")
    assert set(how.classes) == {"a"}
    own, other = how.apply([0.5, 0.5], [0, 1], ["a", "b"])
    assert own != other
    verdict.kind[:] = "right"
    with pytest.raises(RunError, match="0 wrong detections; a calibration needs 10 of both"):
        fit(verdict, [1, 2], ["a", "b"], method="isotonic", source="few")


def test_it_lies_beside_the_weights_or_in_their_file(tmp_path):
    how = Recalibration("temperature", 2.0, {"a": [[0.0, 1.0], [0.1, 0.9]]}, "set")
    weights = tmp_path / "model.pth"
    assert Recalibration.of(weights) is None
    about = {"calibration": {"method": "temperature", "overall": 3.0, "classes": {}, "source": ""}}
    assert Recalibration.of(weights, about).overall == 3.0
    path = how.save(weights)
    assert Recalibration.of(weights, about) == how
    for bad in ({}, [], {"overall": "x", "classes": {}}, {"overall": 1, "classes": {"a": [1]}}):
        path.write_text(json.dumps(bad))
        with pytest.raises(RunError, match="holds no calibration"):
            Recalibration.of(weights)


def test_what_is_seen_from_a_score_on():
    """Three objects: one found with IoU 0.75, one missed, one found below the score."""
    row = {"category_id": 1, "iscrowd": 0, "area": 400}
    data = {
        "images": [{"id": 1, "width": 100, "height": 100}],
        "categories": [{"id": 1, "name": "a"}],
        "annotations": [
            {**row, "id": k, "image_id": 1, "bbox": [30 * k, 10, 20, 20]} for k in range(3)
        ],
    }
    thing = {"image_id": 1, "category_id": 1}
    results = [
        {**thing, "bbox": [0, 10, 20, 15], "score": 0.9},
        {**thing, "bbox": [70, 70, 20, 20], "score": 0.8},
        {**thing, "bbox": [60, 10, 20, 20], "score": 0.2},
    ]
    (found,) = figures_at(judge(results, data), [1], [0.5])
    assert (found["precision"], found["recall"]) == (0.5, pytest.approx(1 / 3))
    # (0.25 / 0.5 for the box, 1 wrong detection, 2 objects) over four things.
    assert found["lrp"] == pytest.approx((0.5 + 1 + 2) / 4)
    (all_shown,) = figures_at(judge(results, data), [1], [0.1])
    assert all_shown["lrp"] == pytest.approx((0.5 + 0 + 1 + 1) / 4)
