"""train_net.py on real detectors and a tiny Shapes data set: train, kill, resume, evaluate."""

import json
import signal
from pathlib import Path

import pytest
from engine_kit import differences, load, metrics, start_subprocess, state_of, train
from process_kit import PATIENCE

ROOT = Path(__file__).resolve().parents[2]

SMALL = (
    "DATASETS.TRAIN", "('tiny_train',)", "DATASETS.TEST", "('tiny_val',)",
    "DATALOADER.NUM_WORKERS", 1, "MODEL.WEIGHTS", "", "MODEL.DEVICE", "cpu",
    "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 5, "SOLVER.STEPS", "(4,)",
    "SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 0, "ENGINE.LOG_PERIOD", 1,
    "ENGINE.TENSORBOARD", False, "SEED", 1, "MODEL.ROI_HEADS.NUM_CLASSES", 3,
    "MODEL.FCOS.NUM_CLASSES", 3, "MODEL.DW.NUM_CLASSES", 3,
)  # fmt: skip


@pytest.mark.parametrize("name", ["fcos_shapes", "dw_shapes", "faster_rcnn_alwa_shapes"])
def test_resume_is_exact_on_real_detectors(tiny, tmp_path, name):
    """Running normalisers, sampled proposals and adaptive loss weights included."""
    path = ROOT / "configs" / "Demo" / f"{name}.yaml"
    words = ("--config-file", path, *SMALL, "SOLVER.ALWA.INTERVAL", 2)
    train(tiny, tmp_path / "a", *words)
    train(tiny, tmp_path / "b", *words, sabotage="kill 3", code=-signal.SIGKILL)
    text = train(tiny, tmp_path / "b", "--resume", *words)
    assert "Resumed at step 2" in text and "Missing on resume: nothing." in text
    finals = [state_of(tmp_path / run / "model_final.pth") for run in "ab"]
    assert differences(*finals) == []
    assert differences(metrics(tmp_path / "a"), metrics(tmp_path / "b")) == []


@pytest.mark.slow
def test_the_whole_story_as_a_user_starts_it(tiny, tmp_path):
    """Killed; resumed in a fresh interpreter, from nothing; evaluated."""
    out = tmp_path / "run"
    words = ("--config-file", ROOT / "configs" / "Demo" / "fcos_shapes.yaml", *SMALL)
    words = (*words, "MODEL.FCOS.SCORE_THRESH_TEST", 0.0)

    train(tiny, out, *words, sabotage="kill 3", code=-signal.SIGKILL)
    process = start_subprocess(tiny, out, "--resume", *words)
    text = process.communicate(timeout=PATIENCE)[0]
    assert process.returncode == 0, text
    assert "Resumed at step 2" in text, text
    assert load(out / "model_final.pth")["iteration"] == 4
    predictions = out / "inference" / "tiny_val" / "coco_instances_results.json"
    trained = predictions.read_text()
    assert len(json.loads(trained)) > 10
    predictions.unlink()

    text = train(tiny, out, "--eval-only", *words, "MODEL.WEIGHTS", out / "model_final.pth")
    assert predictions.read_text() == trained
    assert "copypaste: AP,AP50" in text


def test_wrong_words_are_refused_in_one_sentence(tiny, tmp_path):
    text = train(tiny, tmp_path / "run", "SOLVER.MAX_ITERS", 3, code=1)
    assert "There is no config key SOLVER.MAX_ITERS. Did you mean SOLVER.MAX_ITER" in text
