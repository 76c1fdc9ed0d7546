"""The walk of docs/own_data.md on generated data: train, evaluate, report, predict."""

import json

import own_data_kit as kit
import pytest
from process_kit import call_python

from d2ext.data.sources import read_data

WRITERS = [
    kit.write_flat_voc,
    kit.write_yolo,
    kit.write_yolo_polygons,
    kit.write_roboflow_coco,
    kit.write_labelme,
]


def run(*words, cwd):
    env = {"D2EXT_DATA": str(cwd / "cache")}
    done = call_python("-m", "d2ext", *words, cwd=cwd, env=env)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow
def test_from_labels_to_report(tmp_path):
    kit.write_flat_voc(tmp_path / "my_photos")
    out = tmp_path / "output" / "my_photos"
    text = run(
        "train", "--data", "my_photos", "--minutes", "0.2", "--fast-dev-run", "OUTPUT_DIR", out,
        "MODEL.DEVICE", "cpu", cwd=tmp_path,
    )  # fmt: skip
    assert "Pascal VOC: 7 train, 3 val images; 3 classes: bird, cat, dog" in text
    assert "Chosen for these data" in text and (out / "recipe.yaml").exists()
    words = ["val", "--weights", out / "model_final.pth", "--data", "my_photos"]
    text = run(*words, cwd=tmp_path)
    assert "images a second" in text and "AP by class: bird" in text
    evaluated = out / "val" / "my_photos_val"
    assert all((evaluated / f"{name}.png").exists() for name in ("analysis", "scores"))
    figures = json.loads((evaluated / "figures.json").read_text())
    assert figures["images"] == 3 and figures["parameters"] > 1e6 and figures["gflops"] > 0.01
    assert (out / "model_final.thresholds.json").exists()
    run("report", out, "--output", tmp_path / "report", cwd=tmp_path)
    assert list((tmp_path / "report").rglob("*.html"))
    words = ["predict", "--weights", out / "model_final.pth", "--threshold", 0]
    run(*words, "--output", tmp_path / "found", tmp_path / "my_photos" / "steel pictures",
        cwd=tmp_path)  # fmt: skip
    found = json.loads((tmp_path / "found" / "predictions.json").read_text())
    assert [c["name"] for c in found["categories"]] == kit.CLASSES
    assert len(found["images"]) == 10


@pytest.mark.slow
@pytest.mark.parametrize("writer", WRITERS, ids=lambda writer: writer.__name__[6:])
def test_every_form_trains_as_it_is(writer, tmp_path):
    writer(tmp_path / "pets")
    text = run(
        "train", "--data", "pets", "--config-file", "Demo/fcos_shapes", "--fast-dev-run",
        "OUTPUT_DIR", "out", "MODEL.DEVICE", "cpu", cwd=tmp_path,
    )  # fmt: skip
    assert read_data(str(tmp_path / "pets")).form in text
    rows = (tmp_path / "out" / "metrics.json").read_text().splitlines()
    assert "bbox/AP-dog" in json.loads(rows[-1])
