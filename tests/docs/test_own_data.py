"""The walk of docs/own_data.md on generated data: YOLO labels, check, training, report, predict."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from process_kit import call_python

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples" / "own_data"


@pytest.fixture
def data(tmp_path):
    """Six images of one bright rectangle each, labelled as YOLO does."""
    folder = tmp_path / "my_data"
    for name in ("images", "labels"):
        (folder / name).mkdir(parents=True)
    rng = np.random.RandomState(0)
    for k in range(6):
        pixels = rng.randint(0, 60, (96, 128, 3)).astype(np.uint8)
        pixels[24:72, 32:96, k % 2] = 255
        Image.fromarray(pixels).save(folder / "images" / f"{k}.png")
        (folder / "labels" / f"{k}.txt").write_text(f"{k % 2} 0.5 0.5 0.5 0.5\n")
    return folder


def run(*words, cwd, data):
    env = {"PYTHONPATH": str(EXAMPLES), "MY_DATA": str(data)}
    done = call_python(*words, cwd=cwd, env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_from_labels_to_report(data, tmp_path):
    script = EXAMPLES / "yolo_to_coco.py"
    for split in ("train", "val"):
        words = [
            data / "images",
            data / "labels",
            data / f"{split}.json",
            "--classes",
            "red",
            "green",
        ]
        assert "6 objects in 6 images" in run(script, *words, cwd=tmp_path, data=data)
    first = json.loads((data / "train.json").read_text())["annotations"][0]
    assert first["bbox"] == [32.0, 24.0, 64.0, 48.0] and first["category_id"] == 1
    d2ext = ["-m", "d2ext"]
    words = ["data", "check", data / "train.json", "--image-root", data / "images"]
    run(*d2ext, *words, cwd=tmp_path, data=data)
    out = tmp_path / "output" / "my_run"
    run(
        ROOT / "train_net.py", "--import", "my_data", "--fast-dev-run",
        "--config-file", ROOT / "configs" / "Demo" / "fcos_shapes.yaml",
        "DATASETS.TRAIN", "('my_train',)", "DATASETS.TEST", "('my_val',)",
        "MODEL.FCOS.NUM_CLASSES", 2, "OUTPUT_DIR", out, cwd=tmp_path, data=data,
    )  # fmt: skip
    run(*d2ext, "report", out, "--output", tmp_path / "report", cwd=tmp_path, data=data)
    assert list((tmp_path / "report").rglob("*.html"))
    words = ["predict", "--weights", out / "model_final.pth", "--threshold", 0, data / "images"]
    run(*d2ext, *words, "--output", tmp_path / "found", cwd=tmp_path, data=data)
    found = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert [c["name"] for c in found["categories"]] == ["red", "green"]
    assert len(found["images"]) == 6
