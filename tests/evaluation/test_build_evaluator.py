"""The right evaluator for each data set, and evaluation in several processes."""

import json

import numpy as np
import pytest
from detectron2 import evaluation as upstream
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from evaluation_data import make_dataset, make_predictions, run
from process_kit import run_ranks

from d2ext.evaluation import (
    COCOEvaluator,
    LVISEvaluator,
    PascalVOCDetectionEvaluator,
    build_evaluator,
)


@pytest.fixture
def dataset_name(tmp_path, request):
    """A data set with COCO annotations; the test sets the evaluator's type."""
    name = f"d2ext_test_{request.node.nodeid}"
    dataset = make_dataset(np.random.default_rng(0), category_ids=(1, 2, 3))
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps(dataset))
    (tmp_path / "ImageSets" / "Main").mkdir(parents=True)
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("1\n")
    MetadataCatalog.get(name).set(
        json_file=str(file),
        thing_classes=["a", "b", "c"],
        dirname=str(tmp_path),
        year=2012,
        split="val",
    )
    yield name
    MetadataCatalog.remove(name)


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("coco", COCOEvaluator),
        ("lvis", LVISEvaluator),
        ("pascal_voc", PascalVOCDetectionEvaluator),
        (["coco"], COCOEvaluator),
        (None, COCOEvaluator),
    ],
)
def test_metadata_names_the_evaluator(dataset_name, kind, expected, tmp_path):
    if kind is not None:
        MetadataCatalog.get(dataset_name).evaluator_type = kind
    cfg = get_cfg()
    cfg.OUTPUT_DIR = str(tmp_path / "run")
    evaluator = build_evaluator(cfg, dataset_name)
    assert type(evaluator) is expected
    assert evaluator._output_dir == str(tmp_path / "run" / "inference")
    assert build_evaluator(cfg, dataset_name, "elsewhere")._output_dir == "elsewhere"


def test_several_evaluators(dataset_name):
    MetadataCatalog.get(dataset_name).evaluator_type = ["coco", "pascal_voc"]
    evaluator = build_evaluator(get_cfg(), dataset_name)
    assert isinstance(evaluator, upstream.DatasetEvaluators)
    assert [type(e) for e in evaluator._evaluators] == [COCOEvaluator, PascalVOCDetectionEvaluator]


def test_keypoints_and_proposals_are_detectron2s(dataset_name, tmp_path):
    MetadataCatalog.get(dataset_name).evaluator_type = "coco"
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "ProposalNetwork"
    assert type(build_evaluator(cfg, dataset_name, str(tmp_path))) is upstream.COCOEvaluator
    cfg = get_cfg()
    cfg.MODEL.KEYPOINT_ON = True
    assert type(build_evaluator(cfg, dataset_name, str(tmp_path))) is upstream.COCOEvaluator


def test_unknown_type_is_named(dataset_name):
    MetadataCatalog.get(dataset_name).evaluator_type = "oid"
    with pytest.raises(ValueError, match="'oid', which is not one of .*'coco', 'lvis'"):
        build_evaluator(get_cfg(), dataset_name)


def test_runs_under_inference_on_dataset(dataset_name):
    """Also what detectron2's printing expects of the result."""
    dataset = make_dataset(np.random.default_rng(0), category_ids=(1, 2, 3))
    inputs, outputs = make_predictions(np.random.default_rng(1), dataset)
    table = {image["image_id"]: output for image, output in zip(inputs, outputs)}
    evaluator = COCOEvaluator(dataset_name)
    result = upstream.inference_on_dataset(
        lambda batch: [table[image["image_id"]] for image in batch],
        [inputs[i : i + 2] for i in range(0, len(inputs), 2)],
        evaluator,
    )
    np.testing.assert_equal(result, run(evaluator, inputs, outputs))
    upstream.print_csv_format(result)


def test_other_ranks_return_nothing(dataset_name, monkeypatch):
    import detectron2.utils.comm as comm

    dataset = make_dataset(np.random.default_rng(0), category_ids=(1, 2, 3))
    inputs, outputs = make_predictions(np.random.default_rng(1), dataset)
    monkeypatch.setattr(comm, "is_main_process", lambda: False)
    monkeypatch.setattr(comm, "gather", lambda data, dst: [])
    assert run(COCOEvaluator(dataset_name), inputs, outputs) == {}


def _evaluate_half(rank, result_file, json_file):
    MetadataCatalog.get("d2ext_test_dist").set(json_file=json_file, thing_classes=["a", "b", "c"])
    with open(json_file) as f:
        inputs, outputs = make_predictions(np.random.default_rng(1), json.load(f), masks=True)
    half = slice(0, 6) if rank == 0 else slice(6, None)
    result = run(COCOEvaluator("d2ext_test_dist"), inputs[half], outputs[half])
    with open(f"{result_file}.{rank}", "w") as f:
        json.dump(result, f)


@pytest.mark.dist
def test_two_processes_equal_one(dataset_name, tmp_path):
    json_file = MetadataCatalog.get(dataset_name).json_file
    run_ranks(lambda rank: _evaluate_half(rank, tmp_path / "result", json_file))
    with open(json_file) as f:
        inputs, outputs = make_predictions(np.random.default_rng(1), json.load(f), masks=True)
    alone = run(COCOEvaluator(dataset_name), inputs, outputs)
    main = json.loads((tmp_path / "result.0").read_text())
    assert json.loads((tmp_path / "result.1").read_text()) == {}
    np.testing.assert_equal(main, json.loads(json.dumps(alone)))
