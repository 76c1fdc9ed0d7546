"""LVIS figures equal lvis-api's, on both back ends and on NumPy 2."""

import copy
import json

import numpy as np
import pytest
from evaluation_data import (
    as_results,
    lvis_figures,
    make_annotation,
    make_dataset,
    make_instances,
    make_predictions,
    percent,
    random_boxes,
    registering,
    run,
)

from d2ext.evaluation import LVISEvaluator

BACKENDS = ["faster", "reference"]
CATEGORIES = tuple(range(1, 13))


@pytest.fixture
def register(tmp_path, request):
    yield from registering(tmp_path, request, "lvis", with_ids=False)


def check(register, tmp_path, backend, dataset, inputs, outputs, masks=False, max_dets=300):
    """Evaluate and compare every figure with lvis-api's."""
    evaluator = LVISEvaluator(register(dataset), backend=backend, max_dets_per_image=max_dets)
    result = run(evaluator, inputs, outputs)
    assert list(result) == (["bbox", "segm"] if masks else ["bbox"])
    for task, figures in result.items():
        results = as_results(dataset, inputs, outputs, task)
        reference = lvis_figures(dataset, results, task, tmp_path, max_dets)
        names = ["AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"]
        names += [f"AR{letter}@{max_dets}" for letter in ("", "s", "m", "l")]
        names += [f"AP-class {c}" for c in sorted(c["id"] for c in dataset["categories"])]
        assert list(figures) == names
        np.testing.assert_allclose(list(figures.values()), percent(reference), rtol=0, atol=1e-8)
    return result


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_figures_equal_lvis_api(register, tmp_path, backend, seed):
    rng = np.random.default_rng(seed)
    dataset = make_dataset(rng, category_ids=CATEGORIES, lvis=True)
    inputs, outputs = make_predictions(rng, dataset, masks=True)
    result = check(register, tmp_path, backend, dataset, inputs, outputs, masks=True)
    assert 5 < result["bbox"]["AP"] < 95


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("max_dets", [300, 40])
def test_limit_counts_detections_of_all_classes(register, tmp_path, backend, max_dets):
    """The scores have ten values, so the limit falls among equal ones."""
    rng = np.random.default_rng(3)
    dataset = make_dataset(rng, num_images=5, category_ids=CATEGORIES, lvis=True)
    inputs, outputs = make_predictions(rng, dataset, per_image=500)
    limited = check(register, tmp_path, backend, dataset, inputs, outputs, max_dets=max_dets)
    unlimited = run(
        LVISEvaluator(register(dataset), backend=backend, max_dets_per_image=10**6), inputs, outputs
    )
    assert limited["bbox"]["AP"] != unlimited["bbox"]["AP"]


@pytest.mark.parametrize("backend", BACKENDS)
def test_limit_is_exact(register, tmp_path, backend):
    """Three exact detections of three classes in one image, of which two count."""
    rng = np.random.default_rng(11)
    boxes = random_boxes(rng, 3)
    image = {"id": 1, "height": 220, "width": 220}
    dataset = {
        "images": [{**image, "neg_category_ids": [], "not_exhaustive_category_ids": []}],
        "annotations": [make_annotation(rng, c, 1, c, boxes[c - 1]) for c in (1, 2, 3)],
        "categories": [{"id": c, "name": f"class {c}", "frequency": "f"} for c in (1, 2, 3)],
    }
    outputs = [{"instances": make_instances(boxes, [0.5, 0.7, 0.5], [0, 1, 2])}]
    result = check(register, tmp_path, backend, dataset, [{"image_id": 1}], outputs, max_dets=2)
    assert result["bbox"]["AP-class 1"] > 99
    assert result["bbox"]["AP-class 2"] > 99
    assert result["bbox"]["AP-class 3"] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_federated_annotations_decide(register, tmp_path, backend):
    """A false detection counts only where its class was looked for, all of it."""
    rng = np.random.default_rng(4)
    box = random_boxes(rng, 1)[0]
    image = {"id": 1, "height": 220, "width": 220}
    categories = [{"id": c, "name": f"class {c}", "frequency": "r"} for c in (1, 2)]
    # Class 1 has an object in image 1; image 2 decides what becomes of a false detection of it.
    figures = {}
    for case, extra in {
        "unknown": {"neg_category_ids": [], "not_exhaustive_category_ids": []},
        "absent": {"neg_category_ids": [1], "not_exhaustive_category_ids": []},
        "not exhaustive": {"neg_category_ids": [1], "not_exhaustive_category_ids": [1]},
    }.items():
        dataset = {
            "images": [{**image, "neg_category_ids": [2], "not_exhaustive_category_ids": []}],
            "annotations": [make_annotation(rng, 1, 1, 1, box)],
            "categories": categories,
        }
        dataset["images"].append({**image, "id": 2, **extra})
        inputs = [{"image_id": 1}, {"image_id": 2}]
        exact = np.asarray(dataset["annotations"][0]["bbox"])
        exact[2:] += exact[:2]
        outputs = [
            {"instances": make_instances([exact], [0.6], [0])},
            {"instances": make_instances([box], [0.9], [0])},
        ]
        result = check(register, tmp_path, backend, dataset, inputs, outputs)
        figures[case] = result["bbox"]["AP"]
    assert figures["unknown"] == figures["not exhaustive"] > 99
    assert figures["absent"] == pytest.approx(50)


@pytest.mark.parametrize("backend", BACKENDS)
def test_zero_areas_crowds_and_ignored_objects(register, tmp_path, backend):
    """lvis-api drops what has no area, does not know crowds, and honours 'ignore'."""
    rng = np.random.default_rng(5)
    dataset = make_dataset(rng, category_ids=CATEGORIES, lvis=True)
    for obj in dataset["annotations"]:
        obj["iscrowd"] = int(rng.random() < 0.3)
        obj["area"] *= rng.random() < 0.8
    inputs, outputs = make_predictions(rng, dataset)
    for output in outputs:
        output["instances"].pred_boxes.tensor[::4, 2] = output["instances"].pred_boxes.tensor[
            ::4, 0
        ]
    check(register, tmp_path, backend, dataset, inputs, outputs)
    for obj in dataset["annotations"]:
        obj["ignore"] = int(rng.random() < 0.3)
    check(register, tmp_path, backend, dataset, inputs, outputs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_detections_of_no_judged_class(register, backend):
    """All detections fall away; objects stay unfound."""
    rng = np.random.default_rng(7)
    dataset = make_dataset(rng, category_ids=CATEGORIES, lvis=True)
    for image in dataset["images"]:
        image["neg_category_ids"] = []
    inputs, outputs = make_predictions(rng, dataset)
    for output in outputs:
        output["instances"].pred_classes[:] = len(CATEGORIES) - 1
    result = run(LVISEvaluator(register(dataset), backend=backend), inputs, outputs)
    assert result["bbox"]["AP"] == 0
    assert result["bbox"]["AR@300"] == 0
    assert np.isnan(result["bbox"][f"AP-class {CATEGORIES[-1]}"])


def test_nothing_detected(register):
    dataset = make_dataset(np.random.default_rng(8), category_ids=CATEGORIES, lvis=True)
    inputs = [{"image_id": image["id"]} for image in dataset["images"]]
    outputs = [{"instances": make_instances([], [], [])} for _ in inputs]
    result = run(LVISEvaluator(register(dataset)), inputs, outputs)
    assert np.isnan(result["bbox"]["AP"])
    assert np.isnan(result["bbox"]["APr"])


def test_numpy_and_annotations_stay_as_they_are(register):
    import lvis.eval

    dataset = make_dataset(np.random.default_rng(9), category_ids=CATEGORIES, lvis=True)
    inputs, outputs = make_predictions(np.random.default_rng(9), dataset)
    evaluator = LVISEvaluator(register(dataset), backend="reference")
    before = copy.deepcopy(evaluator._load_truth())
    numpy_names = set(vars(np))
    run(evaluator, inputs, outputs)
    assert set(vars(np)) == numpy_names
    assert lvis.eval.np is np
    for name, value in vars(before).items():
        np.testing.assert_equal(getattr(evaluator._load_truth(), name), value)


def test_results_file_has_the_ids_of_lvis(register, tmp_path):
    rng = np.random.default_rng(10)
    dataset = make_dataset(rng, category_ids=CATEGORIES, lvis=True)
    inputs, outputs = make_predictions(rng, dataset)
    run(LVISEvaluator(register(dataset), output_dir=str(tmp_path / "out")), inputs, outputs)
    written = json.loads((tmp_path / "out" / "lvis_instances_results.json").read_text())
    assert written == as_results(dataset, inputs, outputs, "bbox")
