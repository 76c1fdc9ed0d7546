"""The model card, from the files of a run."""

import yaml
from report_kit import CLASSES, write_data, write_evaluation, write_run

from d2ext.report.card import make_card
from d2ext.run_index import record

ABOUT = {"version": "1.2", "detector": "ExtFCOS", "class_names": CLASSES, "config": "",
         "checkpoint_sha256": "abc"}  # fmt: skip


def test_card_of_a_run(tmp_path):
    run, data = write_run(tmp_path / "run"), write_data(tmp_path / "data")
    (tmp_path / "LICENSE").write_text("\nMIT License\n\nCopyright")
    record(run, "data", split="train", name="made_train", json_file=str(data),
           image_root=str(tmp_path / "data"), classes=CLASSES)  # fmt: skip
    write_evaluation(run, data)
    about = {**ABOUT, "thresholds": [0.1, 0.2, 0.3], "chosen_on": "made_val"}
    about["calibration"] = {"method": "isotonic", "source": "other_val"}
    text = make_card(about, run, run / "model_final.pth", "mit")
    header = yaml.safe_load(text.split("---")[1])
    assert header["license"] == "mit" and header["pipeline_tag"] == "object-detection"
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert headings == ["## Use", "## Data", "## Figures", "## Thresholds and calibration",
                        "## Limits", "## Licence", "## Where it comes from"]  # fmt: skip
    for part in ("| training | made_train | 8 |", "| evaluation | made_val | ",
                 "| made_val | the last step | ", "ball 0.10, cup",
                 "isotonic, fitted on other_val", "* Weights: mit.", "SHA-256 abc",
                 "* made_train: MIT License (LICENSE).", "made_val: The weakest class is",
                 "Fewer than 50 objects to learn from: "):  # fmt: skip
        assert part in text, part
    assert "<img" not in text and "Show detections" not in text


def test_card_without_a_run_says_what_is_not_known(tmp_path):
    text = make_card(ABOUT, None, tmp_path / "model.pth")
    assert "license" not in yaml.safe_load(text.split("---")[1])
    for part in ("names no data set", "There is no evaluation", "No thresholds were chosen",
                 "Scores are no probabilities", "Weights: not decided"):  # fmt: skip
        assert part in text, part
