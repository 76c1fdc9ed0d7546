"""Exported files in the place of checkpoints, and without d2ext."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import register_coco_instances
from export_kit import spread_detector
from model_kit import build, small_cfg
from PIL import Image

from d2ext import Predictor, export
from d2ext.cli import main
from d2ext.engine import Trainer
from d2ext.evaluation.thresholds import Thresholds
from d2ext.model_zoo import get_config_file

pytestmark = pytest.mark.export

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "deploy" / "detect.py"


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A checkpoint with thresholds beside it, and what was exported from it."""
    folder = tmp_path_factory.mktemp("deploy")
    overrides = ["DATASETS.TRAIN", ("d2ext_shapes_train",), "MODEL.FCOS.SCORE_THRESH_TEST", 0.0]
    overrides += ["INPUT.MIN_SIZE_TEST", 160, "INPUT.MAX_SIZE_TEST", 224]
    cfg = small_cfg(get_config_file("Base-FCOS"), overrides, num_classes=20)
    model = build(cfg)
    with torch.no_grad():
        model.head.cls_score.weight.mul_(30)
    Trainer(
        model=model,
        data_loader=[],
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        output_dir=str(folder),
        config=cfg,
    ).save_checkpoint("model_final")
    weights = folder / "model_final.pth"
    Thresholds(0.02, {}).save(folder / "thresholds.json")
    made = {"checkpoint": weights}
    for name, flags in (("images", []), ("pixels", ["--pixels"])):
        made[name] = folder / f"{name}.onnx"
        words = ["--weights", str(weights), "--output", str(made[name]), "--no-check", *flags]
        assert main(["export", *words]) == 0
    return made


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    rng = np.random.RandomState(0)
    pixels = np.kron(rng.randint(0, 256, (24, 30, 3)), np.ones((10, 10, 1))).astype(np.uint8)
    path = tmp_path_factory.mktemp("pictures") / "noise.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.mark.parametrize("form, box, score", [("images", 2e-3, 1e-5), ("pixels", 0.5, 5e-3)])
def test_predictor_takes_the_file(files, picture, form, box, score):
    """A resize of bytes inside differs from the one outside in its rounding."""
    own = Predictor(None, files["checkpoint"])
    other = Predictor(None, files[form])
    assert other.class_names == own.class_names and len(own.class_names) == 20
    expected, found = (p([str(picture)] * 2)[1]["instances"] for p in (own, other))
    assert len(found) == len(expected) > 0
    pairs = export.check.match(*(
        [x.numpy() for x in (i.pred_boxes.tensor[:20], i.scores[:20], i.pred_classes[:20])]
        for i in (expected, found)
    ))  # fmt: skip
    assert pairs["box"] <= box and pairs["score"] <= score and pairs["missing"] <= 2, pairs


def test_the_file_knows_itself(files):
    about = export.load_exported(files["images"])[1]
    assert about["thresholds"] == [0.02] * 20
    assert len(about["checkpoint_sha256"]) == 64 and about["version"]
    assert about["detector"] == "ExtFCOS" and "SCORE_THRESH_TEST" in about["config"]


@pytest.fixture
def own_findings(files, picture, tmp_path):
    """A data set whose objects are the best detections of the checkpoint: its AP is high."""
    predictor = Predictor(None, files["checkpoint"])
    found = predictor(str(picture))["instances"][:12]
    boxes = found.pred_boxes.tensor
    sides = (boxes[:, 2:] - boxes[:, :2]).tolist()
    objects = [
        {
            "id": k,
            "image_id": 1,
            "category_id": int(label) + 1,
            "bbox": [x, y, *side],
            "area": side[0] * side[1],
            "iscrowd": 0,
        }
        for k, (label, (x, y, _, _), side) in enumerate(
            zip(found.pred_classes, boxes.tolist(), sides), 1
        )
    ]
    height, width = found.image_size
    content = {
        "images": [{"id": 1, "file_name": picture.name, "height": height, "width": width}],
        "annotations": objects,
        "categories": [{"id": k, "name": n} for k, n in enumerate(predictor.class_names, 1)],
    }
    (tmp_path / "found.json").write_text(json.dumps(content))
    register_coco_instances("own_findings", {}, str(tmp_path / "found.json"), str(picture.parent))
    yield "own_findings"
    DatasetCatalog.remove("own_findings")
    MetadataCatalog.remove("own_findings")


@pytest.mark.slow
def test_val_gives_the_same_figures(files, own_findings, tmp_path, capsys):
    found = {}
    for name in ("checkpoint", "images"):
        words = ["--weights", str(files[name]), "--dataset", own_findings, "--json"]
        words += ["--output", str(tmp_path / name), "--opts", "DATALOADER.NUM_WORKERS", "0"]
        assert main(["val", *words]) == 0
        found[name] = json.loads(capsys.readouterr().out)
    assert found["checkpoint"]["bbox/AP"] > 50
    assert abs(found["checkpoint"]["bbox/AP"] - found["images"]["bbox/AP"]) < 0.05
    assert found["images"]["images_per_second"] > 0


def test_predict_takes_the_file(files, picture, tmp_path):
    words = ["--weights", str(files["images"]), "--output", str(tmp_path), "--threshold", "0.02"]
    assert main(["predict", str(picture), *words, "--no-pictures"]) == 0
    data = json.loads((tmp_path / "predictions.json").read_text())
    assert data["annotations"] and len(data["categories"]) == 20


def test_the_script_of_the_docs(files, picture):
    """In an interpreter that cannot import d2ext."""
    code = (
        "import sys; sys.modules['d2ext'] = None; sys.argv = sys.argv[1:]; exec(open(sys.argv[0])"
    )
    code += ".read())"
    command = [sys.executable, "-c", code, str(SCRIPT), str(files["pixels"]), str(picture)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    found = Predictor(None, files["pixels"], score_thresh=0.02)(str(picture))["instances"]
    assert len(lines) == len(found) > 0
    name, label, score, *box = lines[0].split()
    assert name == str(picture) and float(score) == pytest.approx(float(found.scores[0]), abs=1e-3)
    assert [float(v) for v in box] == pytest.approx(found.pred_boxes.tensor[0].tolist(), abs=0.06)


def test_foreign_files_are_refused(tmp_path):
    class Net(torch.nn.Module):
        def forward(self, x):
            return x + 1

    path = tmp_path / "other.ts"
    torch.jit.save(torch.jit.trace(Net(), torch.zeros(1)), path)
    with pytest.raises(ValueError, match="was not exported by d2ext"):
        export.load_exported(path)
    with pytest.raises(FileNotFoundError, match="There is no exported detector"):
        export.load_exported(tmp_path / "none.onnx")
    with pytest.raises(ValueError, match="is not an exported detector"):
        export.load_exported(__file__)
    all_boxes = tmp_path / "raw.ts"
    export.export(spread_detector("ExtRetinaNet"), all_boxes, with_nms=False)
    with pytest.raises(ValueError, match="selects no detections"):
        export.ExportedModel(all_boxes)


def test_calibrated_scores_of_a_file(files, picture, tmp_path):
    from d2ext.evaluation.recalibration import Recalibration

    weights = tmp_path / "model_final.pth"
    weights.symlink_to(files["checkpoint"])
    scores = Predictor(None, files["images"])(str(picture))["instances"].scores
    middle = float(scores.median())
    Thresholds(middle, {}).save(tmp_path / "thresholds.json")
    with pytest.raises(ValueError, match="no calibration for .*; fit one with 'd2ext calibrate'"):
        Predictor(None, weights, calibrated=True)
    half = [[0.0, 1.0], [0.0, 0.5]]
    Recalibration("isotonic", half, {}, "some").save(weights)
    output = tmp_path / "elsewhere" / "detector.onnx"
    assert main(["export", "--weights", str(weights), "--output", str(output), "--no-check"]) == 0
    raw, new, less = (
        Predictor(None, output, score_thresh=least, calibrated=calibrated)(str(picture))[
            "instances"
        ]
        for least, calibrated in (("auto", False), ("auto", True), (middle, True))
    )
    assert len(new) == len(raw) > len(scores) / 3 > 0  # the thresholds are of the raw scores
    assert float(new.scores[0]) == pytest.approx(float(raw.scores[0]) / 2, abs=1e-3)
    assert len(less) == 0


def test_a_folder_of_safetensors_is_a_checkpoint(files, picture, tmp_path, capsys):
    from d2ext.engine import Checkpointer
    from d2ext.evaluation.recalibration import Recalibration
    from d2ext.predictor import describe_weights

    folder = tmp_path / "hub"
    weights = tmp_path / "run" / "model_final.pth"
    weights.parent.mkdir()
    weights.symlink_to(files["checkpoint"])
    Thresholds(0.02, {}).save(weights.parent / "thresholds.json")
    words = ["export", "--weights", str(weights), "--format", "safetensors"]
    assert main([*words, "--card", "--output", str(folder)]) == 0
    assert sorted(p.name for p in folder.iterdir()) == [
        "README.md", "config.yaml", "model.safetensors"
    ]  # fmt: skip
    # Nothing about the machine it was trained on is published.
    config = (folder / "config.yaml").read_text()
    assert "OUTPUT_DIR" not in config and str(tmp_path.parent) not in config
    own, other = (Predictor(None, w, score_thresh="auto") for w in (weights, folder))
    assert other.class_names == own.class_names and other.score_thresh == own.score_thresh
    expected, found = (p(str(picture))["instances"] for p in (own, other))
    assert len(found) > 0 and torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.scores, expected.scores)
    about = describe_weights(str(folder))
    assert about["detector"] == "ExtFCOS" and about["thresholds"] == [0.02] * 20
    # What the folder knows goes on into what is exported from it, and into a training.
    Recalibration("temperature", 2.0, {}, "some").save(folder / "model.safetensors")
    output = tmp_path / "detector.onnx"
    words = ["export", "--weights", str(folder), "--output", str(output), "--no-check"]
    assert main(words) == 0
    again = export.load_exported(output)[1]
    assert again["thresholds"] == about["thresholds"]
    assert again["calibration"]["overall"] == 2.0
    model = build(own.cfg)
    Checkpointer(model).load(str(folder))
    for key, value in own.model.state_dict().items():
        assert torch.equal(model.state_dict()[key], value), key
    capsys.readouterr()
    (tmp_path / "README.md").write_text("# My project\n")
    assert main([*words, "--card"]) == 1
    assert "README.md is no model card of d2ext" in capsys.readouterr().err
    (folder / "config.yaml").unlink()
    with pytest.raises(ValueError, match="holds no config"):
        Predictor(None, folder)
