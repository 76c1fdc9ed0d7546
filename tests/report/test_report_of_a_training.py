"""From labelled photographs to the page: what a training leaves is all that a report needs."""

import json
from pathlib import Path

import pytest
from process_kit import call_python
from report_kit import write_data

ROOT = Path(__file__).resolve().parents[2]
TINY = ["MODEL.RESNETS.STEM_OUT_CHANNELS", "4", "MODEL.RESNETS.RES2_OUT_CHANNELS", "4",
        "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2", "SOLVER.WARMUP_ITERS", "0",
        "OUTPUT_DIR", "run"]  # fmt: skip


@pytest.mark.slow
def test_train_val_predict_and_report_of_own_data(tmp_path):
    write_data(tmp_path / "photos", images=12)
    words = ["train", "--data", "photos/data.json", "--config-file", "Demo/fcos_shapes", *TINY]
    done = call_python("-m", "d2ext", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "run"
    entries = json.loads((run / "index.json").read_text())["entries"]
    assert [(e["kind"], e["split"]) for e in entries] == [("data", "train"), ("data", "test")]
    (folder,) = (run / "inference").iterdir()
    for name in ("evaluation.json", "thresholds.json", "instances_predictions.npz"):
        assert (folder / name).is_file()
    words = ["predict", "photos", "--weights", "run/model_final.pth", "--threshold", "auto"]
    done = call_python("-m", "d2ext", *words, "--no-pictures", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    words = ["val", "--weights", "run/model_final.pth", "--data", "photos/data.json"]
    done = call_python("-m", "d2ext", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (run / "model_final.thresholds.json").is_file()
    # In a process that has registered nothing.
    done = call_python("-m", "d2ext", "report", "run", "--output", "report", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "report" / "report.html").read_text()
    for heading in ("Classes", "Confusion matrix", "Gallery", "Data", "Training"):
        assert heading in page
    assert page.count("data:image/jpeg") >= 2
