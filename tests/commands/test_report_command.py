"""The report page: its numbers, what it escapes, and that it needs nothing from elsewhere."""

import json
import re

import numpy as np
import pytest
import torch
from commands_kit import call, read_json
from PIL import Image

from d2ext.analysis.report_page import make_page
from d2ext.analysis.run_data import differences, load_run


def write_run(folder, lr=0.1, alwa=False, **extra):
    """An output folder with six rows of figures."""
    import yaml

    folder.mkdir(parents=True)
    rows = []
    for k in range(6):
        row = {"iteration": 20 * k + 19, "loss_cls": 1.0 / (k + 1), "loss_box_reg": 0.5, "lr": lr,
               "total_loss": 1.0 / (k + 1) + 0.5, "time": 0.25, "data_time": 0.01}  # fmt: skip
        if alwa and k >= 2:
            row.update({"alwa/dense/w_cls": 0.5, "alwa/dense/w_box": 1.0})
        rows.append(row)
    rows[2].update({"bbox/AP": 10.0, "bbox/AP50": 20.0})
    rows[5].update({"bbox/AP": 12.5, "bbox/AP50": 25.0, "bbox/AP-<script>": 30.0, "bbox/AP-b": 5.0})
    (folder / "metrics.json").write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = {"SOLVER": {"BASE_LR": lr, "IMS_PER_BATCH": 8, "ALWA": {"ENABLED": alwa}}, **extra}
    if alwa:
        from d2ext.config import get_cfg

        config["SOLVER"]["ALWA"]["GROUPS"] = list(get_cfg().SOLVER.ALWA.GROUPS)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    return folder


def test_page_of_two_runs(tmp_path):
    a = write_run(tmp_path / "a", lr=0.1)
    b = write_run(tmp_path / "b", lr=0.2, alwa=True)
    pictures = a / "pictures"
    pictures.mkdir()
    Image.new("RGB", (8, 8)).save(pictures / "some.png")
    words = ("report", a, b, "--names", "<img src=x>", "b & c", "--title", "<i>t</i>")
    assert call(*words, "--output", tmp_path / "out") == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<img src=x>" not in page and "&lt;img src=x&gt;" in page
    assert "b &amp; c" in page and "<i>t" not in page
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="(?!data:)', page)  # nothing comes from elsewhere
    for heading in ("Losses", "Adaptive loss weights", "AP by class", "Evaluation over time",
                    "Learning rate and speed", "Config keys in which the runs differ",
                    "Pictures of &lt;img"):  # fmt: skip
        assert heading in page
    assert "<td>SOLVER.BASE_LR</td><td>0.1</td><td>0.2</td>" in page
    first, second = read_json(tmp_path / "out" / "report.json")
    assert first["steps"] == 120 and first["seconds_per_step"] == 0.25
    assert first["images_per_second"] == 32.0
    assert first["evaluation"] == {"bbox/AP": 12.5, "bbox/AP50": 25.0}
    assert first["class_AP"] == {"<script>": 30.0, "b": 5.0}
    assert second["total_loss"] == pytest.approx(1 / 6 + 0.5)


def test_raw_losses_are_divided_by_the_weight_of_their_time(tmp_path):
    run = load_run(write_run(tmp_path / "b", alwa=True))
    weighted = run.series("loss_cls")[1]
    expected = weighted / np.array([1, 1, 0.5, 0.5, 0.5, 0.5])
    np.testing.assert_allclose(run.raw_loss("loss_cls"), expected)
    np.testing.assert_allclose(run.raw_loss("loss_box_reg"), run.series("loss_box_reg")[1])
    assert run.raw_loss("total_loss") is None
    assert load_run(write_run(tmp_path / "a")).raw_loss("loss_cls") is None


def test_a_killed_and_resumed_run(tmp_path):
    folder = write_run(tmp_path / "a")
    with open(folder / "metrics.json", "a") as f:
        f.write(json.dumps({"iteration": 119, "loss_cls": 7.0}) + "\n" + '{"iteration": 139, "lo')
    run = load_run(folder)
    steps, values = run.series("loss_cls")
    assert steps.tolist() == [19, 39, 59, 79, 99, 119] and values[-1] == 7.0


def test_statistics_of_the_checkpoint(tmp_path):
    folder = write_run(tmp_path / "a", MODEL={"EFL": {"GAMMA_B": 2.0, "SCALE": 8.0}})
    model = {"criterion.cls_loss.pos_neg": torch.tensor([0.0, 0.5, 1.0]),
             "prior": torch.tensor(0.01), "fg_ratio": torch.tensor(0.02)}  # fmt: skip
    torch.save({"model": {**model, "weight": torch.zeros(3)}}, folder / "model_final.pth")
    run = load_run(folder)
    assert set(run.state()) == set(model)
    page = make_page([run])
    assert "Balance of classes" in page and "Training without sampling" in page
    torch.save({"model": torch.nn.Linear(1, 1)}, folder / "model_final.pth")  # would run code
    assert load_run(folder).state() == {}


def test_frequencies_go_by_class_name(tmp_path):
    from detectron2.data import MetadataCatalog

    from d2ext.analysis.report_page import _frequencies_by_name

    name = "test_frequencies_go_by_class_name"
    counts = [{"id": 2, "image_count": 20}, {"id": 1, "image_count": 10}]
    MetadataCatalog.get(name).set(thing_classes=["z", "a"], class_image_count=counts)
    try:
        run = load_run(write_run(tmp_path / "a", DATASETS={"TRAIN": [name]}))
        assert _frequencies_by_name(run, ["a", "z"]) == [20, 10]
        assert _frequencies_by_name(run, ["a", "unknown"]) is None
    finally:
        MetadataCatalog.remove(name)
    assert _frequencies_by_name(load_run(write_run(tmp_path / "b")), ["a"]) is None


def test_several_data_sets_are_in_the_numbers(tmp_path):
    """DATASETS.TEST with two of them puts their names before the figures."""
    rows = [{"iteration": 9, f"{data}/bbox/AP": ap, f"{data}/bbox/AP-b": ap, "alwa/bbox": 1.0}
            for data, ap in (("x_val", 1.0), ("y-val", 2.0), ("ema/x_val", 3.0))]  # fmt: skip
    (tmp_path / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = load_run(tmp_path)
    assert run.evaluated() == ["x_val/bbox/AP", "y-val/bbox/AP", "ema/x_val/bbox/AP"]
    assert run.class_ap() == {"b (x_val)": 1.0, "b (y-val)": 2.0}
    heads = ["x_val/bbox/AP", "y-val/bbox/AP", "ema/x_val/bbox/AP"]
    assert "".join(f"<th>{head}</th>" for head in heads) in make_page([run])
    (tmp_path / "metrics.json").write_text('{"iteration": 1, "sem_seg/mIoU": 1, "x": 0}\n')
    assert load_run(tmp_path).evaluated() == ["sem_seg/mIoU"]


def test_differences_and_missing_folder(tmp_path):
    runs = [load_run(write_run(tmp_path / str(k), lr=lr)) for k, lr in enumerate((0.1, 0.1, 0.3))]
    assert differences(runs[:2]) == {}
    assert differences(runs) == {"SOLVER.BASE_LR": [0.1, 0.1, 0.3]}
    with pytest.raises(FileNotFoundError, match="no metrics.json"):
        load_run(tmp_path)
