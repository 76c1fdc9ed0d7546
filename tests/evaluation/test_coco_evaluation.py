"""COCO figures equal pycocotools' and detectron2's, on both back ends."""

import copy
import json
import logging

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOEvaluator as UpstreamCOCOEvaluator
from detectron2.structures import BoxMode
from evaluation_data import (
    SIDE,
    as_results,
    make_dataset,
    make_instances,
    make_predictions,
    percent,
    pycocotools_figures,
    registering,
    run,
)

from d2ext.evaluation import COCOEvaluator, Predictions, backends

BACKENDS = ["faster", "reference"]
NAMES = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR@100", "ARs@100", "ARm@100", "ARl@100"]


@pytest.fixture(autouse=True)
def propagating_logger(monkeypatch):
    """Let caplog see our log also after a test that set up detectron2's logging, which stops it."""
    monkeypatch.setattr(logging.getLogger("d2ext"), "propagate", True)


@pytest.fixture
def register(tmp_path, request):
    yield from registering(tmp_path, request, "coco", with_ids=True)


def assert_equal_figures(result, dataset, reference):
    """All figures of one task, to 1e-10 (of 1; the figures are percentages)."""
    names = NAMES + [f"AP-class {c}" for c in sorted(c["id"] for c in dataset["categories"])]
    assert list(result) == names[:6] + NAMES[6:] + names[10:]
    np.testing.assert_allclose(list(result.values()), percent(reference), rtol=0, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("task", ["bbox", "segm"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_figures_equal_pycocotools(register, backend, task, seed):
    rng = np.random.default_rng(seed)
    dataset = make_dataset(rng)
    inputs, outputs = make_predictions(rng, dataset, masks=True)
    result = run(COCOEvaluator(register(dataset), backend=backend), inputs, outputs)
    assert list(result) == ["bbox", "segm"]
    reference = pycocotools_figures(dataset, as_results(dataset, inputs, outputs, task), task)
    assert_equal_figures(result[task], dataset, reference)
    assert 5 < result[task]["AP"] < 95
    assert np.isnan(result[task]["AP-class 11"])


@pytest.mark.parametrize("backend", BACKENDS)
def test_more_detections_than_count(register, backend):
    rng = np.random.default_rng(3)
    dataset = make_dataset(rng, num_images=4)
    inputs, outputs = make_predictions(rng, dataset, per_image=600, step=0.01)
    result = run(COCOEvaluator(register(dataset), backend=backend), inputs, outputs)
    reference = pycocotools_figures(dataset, as_results(dataset, inputs, outputs, "bbox"), "bbox")
    assert_equal_figures(result["bbox"], dataset, reference)

    limited = COCOEvaluator(register(dataset), backend=backend, max_dets_per_image=20)
    result = run(limited, inputs, outputs)["bbox"]
    results = as_results(dataset, inputs, outputs, "bbox")
    reference = percent(pycocotools_figures(dataset, results, "bbox", max_dets=20))
    mine = [value for name, value in result.items() if name.startswith("AP-")]
    np.testing.assert_allclose(mine, reference, rtol=0, atol=1e-8)
    assert "AR@20" in result


@pytest.mark.parametrize("backend", BACKENDS)
def test_many_masks(register, backend):
    """More than 255 in all, which pycocotools' own area of a list cannot take on NumPy 2."""
    rng = np.random.default_rng(16)
    dataset = make_dataset(rng)
    inputs, outputs = make_predictions(rng, dataset, per_image=40, masks=True)
    assert sum(len(output["instances"]) for output in outputs) > 255
    result = run(COCOEvaluator(register(dataset), backend=backend), inputs, outputs)
    reference = pycocotools_figures(dataset, as_results(dataset, inputs, outputs, "segm"), "segm")
    assert_equal_figures(result["segm"], dataset, reference)


@pytest.mark.parametrize("backend", BACKENDS)
def test_some_of_the_images(register, backend):
    rng = np.random.default_rng(5)
    dataset = make_dataset(rng)
    inputs, outputs = make_predictions(rng, dataset)
    chosen = [image["id"] for image in dataset["images"]][2:9]
    evaluator = COCOEvaluator(register(dataset), backend=backend)
    result = run(evaluator, inputs, outputs, img_ids=chosen)
    results = as_results(dataset, inputs, outputs, "bbox")
    reference = pycocotools_figures(dataset, results, "bbox", img_ids=chosen)
    assert_equal_figures(result["bbox"], dataset, reference)


@pytest.mark.parametrize("backend", BACKENDS)
def test_detectron2_gives_the_same_dictionary_and_file(register, backend, tmp_path):
    rng = np.random.default_rng(6)
    dataset = make_dataset(rng)
    inputs, outputs = make_predictions(rng, dataset, masks=True)
    name = register(dataset)
    theirs = run(
        UpstreamCOCOEvaluator(name, output_dir=str(tmp_path / "theirs"), use_fast_impl=False),
        inputs,
        outputs,
    )
    mine = run(
        COCOEvaluator(name, output_dir=str(tmp_path / "mine"), backend=backend), inputs, outputs
    )
    assert list(mine) == list(theirs)
    for task, figures in theirs.items():
        shared = {key: value for key, value in mine[task].items() if not key.startswith("AR")}
        assert list(shared) == list(figures)
        np.testing.assert_allclose(list(shared.values()), list(figures.values()), rtol=0, atol=1e-8)
    file = "coco_instances_results.json"
    written = json.loads((tmp_path / "mine" / file).read_text())
    assert written == json.loads((tmp_path / "theirs" / file).read_text())


def test_arrays_survive_the_file(register, tmp_path):
    rng = np.random.default_rng(7)
    dataset = make_dataset(rng)
    inputs, outputs = make_predictions(rng, dataset, masks=True)
    evaluator = COCOEvaluator(register(dataset), output_dir=str(tmp_path))
    run(evaluator, inputs, outputs)
    loaded = Predictions.load(tmp_path / "instances_predictions.npz")
    assert loaded.image_ids == [image["image_id"] for image in inputs]
    boxes = torch.cat([o["instances"].pred_boxes.tensor for o in outputs]).numpy()
    np.testing.assert_array_equal(loaded.boxes, boxes)
    assert loaded.boxes.dtype == loaded.scores.dtype == np.float32
    again = run(evaluator, inputs, outputs)
    kept = evaluator._buffer.merged()
    assert loaded.mask_counts == kept.mask_counts
    assert again["segm"]["AP"] > 0


@pytest.mark.parametrize("masks", [False, True])
def test_nothing_detected(register, caplog, masks):
    dataset = make_dataset(np.random.default_rng(8))
    inputs = [{"image_id": image["id"]} for image in dataset["images"]]
    outputs = [{"instances": make_instances([], [], [], masks)} for _ in inputs]
    name = register(dataset)
    with caplog.at_level(logging.WARNING):
        result = run(COCOEvaluator(name), inputs, outputs)
    assert "detected nothing" in caplog.text
    theirs = run(UpstreamCOCOEvaluator(name), inputs, outputs)
    assert set(result) == ({"bbox", "segm"} if masks else {"bbox"})
    for figures in result.values():
        assert all(np.isnan(value) for value in figures.values())
        assert set(theirs["bbox"]) == {key for key in figures if not key.startswith("AR")}


def test_nothing_processed(register, caplog):
    evaluator = COCOEvaluator(register(make_dataset(np.random.default_rng(8))))
    evaluator.reset()
    assert evaluator.evaluate() == {}
    assert "did not receive" in caplog.text


@pytest.mark.parametrize("backend", BACKENDS)
def test_images_without_objects_only(register, backend):
    """Detections in empty images only: no object decides anything, as in pycocotools."""
    dataset = make_dataset(np.random.default_rng(9), num_images=3)
    dataset["annotations"] = []
    inputs, outputs = make_predictions(np.random.default_rng(9), dataset)
    result = run(COCOEvaluator(register(dataset), backend=backend), inputs, outputs)
    assert all(np.isnan(value) for value in result["bbox"].values())


@pytest.mark.parametrize("backend", BACKENDS)
def test_annotation_files_made_at_home(register, backend, caplog):
    """No masks, areas or crowd flags, ids from 0."""
    rng = np.random.default_rng(10)
    dataset = make_dataset(rng, crowds=False)
    for obj in dataset["annotations"]:
        obj["area"] = obj["bbox"][2] * obj["bbox"][3]
    reference_dataset = copy.deepcopy(dataset)
    for obj in dataset["annotations"]:
        obj["id"] -= 1
        del obj["segmentation"], obj["area"], obj["iscrowd"]
    inputs, outputs = make_predictions(rng, dataset, masks=True)
    result = run(COCOEvaluator(register(dataset), backend=backend), inputs, outputs)
    assert list(result) == ["bbox"]
    assert "Masks are not evaluated" in caplog.text
    assert "no 'area'" in caplog.text
    results = as_results(dataset, inputs, outputs, "bbox")
    reference = pycocotools_figures(reference_dataset, results, "bbox")
    assert_equal_figures(result["bbox"], dataset, reference)


def test_annotations_stay_as_they_are(register):
    dataset = make_dataset(np.random.default_rng(11))
    inputs, outputs = make_predictions(np.random.default_rng(11), dataset, masks=True)
    evaluator = COCOEvaluator(register(dataset))
    before = copy.deepcopy(evaluator._load_truth())
    first = run(evaluator, inputs, outputs)
    for name, value in vars(before).items():
        np.testing.assert_equal(getattr(evaluator._load_truth(), name), value)
    np.testing.assert_equal(run(evaluator, inputs, outputs), first)


@pytest.mark.parametrize("backend", BACKENDS)
def test_standard_format_without_a_file(request, backend):
    """Image ids that are strings; converted in memory, the metadata untouched."""
    name = f"d2ext_test_{request.node.nodeid}"
    rng = np.random.default_rng(12)
    dataset = make_dataset(rng, category_ids=(0, 1, 2), crowds=False)
    records = []
    for image in dataset["images"]:
        objects = [
            {
                "bbox": obj["bbox"],
                "bbox_mode": BoxMode.XYWH_ABS,
                "category_id": obj["category_id"],
            }
            for obj in dataset["annotations"]
            if obj["image_id"] == image["id"]
        ]
        record = {"file_name": image["file_name"], "height": SIDE, "width": SIDE}
        records.append({**record, "image_id": f"i{image['id']}", "annotations": objects})
    for obj in dataset["annotations"]:
        obj["area"] = float(np.prod(np.asarray(obj["bbox"][2:], dtype=np.float32)))
    inputs, outputs = make_predictions(rng, dataset)
    results = as_results(dataset, inputs, outputs, "bbox")
    DatasetCatalog.register(name, lambda: records)
    MetadataCatalog.get(name).thing_classes = ["class 0", "class 1", "class 2"]
    try:
        inputs = [{"image_id": f"i{image['image_id']}"} for image in inputs]
        result = run(COCOEvaluator(name, backend=backend), inputs, outputs)
        assert not hasattr(MetadataCatalog.get(name), "json_file")
    finally:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)
    assert_equal_figures(result["bbox"], dataset, pycocotools_figures(dataset, results, "bbox"))


def test_infinite_detections_are_left_out(register, caplog):
    dataset = make_dataset(np.random.default_rng(13))
    inputs, outputs = make_predictions(np.random.default_rng(13), dataset)
    evaluator = COCOEvaluator(register(dataset))
    clean = run(evaluator, inputs, outputs)
    bad = make_instances([[0, 0, np.inf, 5], [0, 0, 5, 5]], [0.9, np.nan], [0, 1])
    outputs = outputs + [{"instances": bad}]
    inputs = inputs + [{"image_id": inputs[0]["image_id"]}]
    np.testing.assert_equal(run(evaluator, inputs, outputs), clean)
    assert "2 detections with NaN or infinity" in caplog.text


def test_mistakes_are_named(register):
    dataset = make_dataset(np.random.default_rng(14))
    name = register(dataset)
    image = [{"image_id": dataset["images"][0]["id"]}]
    instances = make_instances([[0, 0, 9, 9]], [0.5], [4])
    with pytest.raises(ValueError, match="predicts class 4, but .* has 4 classes"):
        run(COCOEvaluator(name), image, [{"instances": instances}])
    instances = make_instances([[0, 0, 9, 9]], [0.5], [0])
    with pytest.raises(ValueError, match="Image 5 is not among"):
        run(COCOEvaluator(name), [{"image_id": 5}], [{"instances": instances}])
    with pytest.raises(ValueError, match="evaluates 'instances'"):
        run(COCOEvaluator(name), image, [{"proposals": instances}])
    with pytest.raises(ValueError, match="backend 'slow' is unknown"):
        run(COCOEvaluator(name, backend="slow"), image, [{"instances": instances}])
    with pytest.raises(ValueError, match="not \\['keypoints'\\]"):
        COCOEvaluator(name, tasks=("keypoints",))
    with pytest.raises(FileNotFoundError, match="are expected at"):
        MetadataCatalog.get(f"{name}_gone").json_file = "nowhere/annotations.json"
        COCOEvaluator(f"{name}_gone")
    MetadataCatalog.remove(f"{name}_gone")


def test_masks_of_a_part_of_the_images_are_refused():
    part = make_instances([[0, 0, 9, 9]], [0.5], [0], masks=True)
    other = make_instances([[0, 0, 9, 9]], [0.5], [0])
    evaluator_inputs = [{"image_id": 1}, {"image_id": 2}]
    from d2ext.evaluation.predictions import PredictionBuffer

    buffer = PredictionBuffer()
    for image, instances in zip(evaluator_inputs, (part, other)):
        buffer.add(image["image_id"], instances)
    with pytest.raises(ValueError, match="have masks and others do not"):
        buffer.merged()


def test_backend_falls_back_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(backends, "_LOGGED", set())
    with caplog.at_level(logging.INFO):
        assert backends.resolve_backend("auto", "coco") == "faster"
        assert backends.resolve_backend("auto", "coco") == "faster"
    assert caplog.text.count("computed by faster-coco-eval") == 1
    monkeypatch.setitem(__import__("sys").modules, "faster_coco_eval", None)
    with caplog.at_level(logging.INFO):
        assert backends.resolve_backend("auto", "coco") == "reference"
    assert "computed by pycocotools" in caplog.text
    with pytest.raises(ImportError, match="pip install faster-coco-eval"):
        backends.resolve_backend("faster", "coco")


def test_tables_are_logged(register, caplog):
    dataset = make_dataset(np.random.default_rng(15))
    inputs, outputs = make_predictions(np.random.default_rng(15), dataset)
    with caplog.at_level(logging.INFO):
        run(COCOEvaluator(register(dataset)), inputs, outputs)
    assert "AP50" in caplog.text
    assert "| class 3" in caplog.text
