"""The report page: its numbers, what it escapes, and that it needs nothing from elsewhere."""

import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from report_kit import CLASSES, write_data, write_evaluation, write_run

from d2ext.cli import main
from d2ext.report import load_run, make_page
from d2ext.report.page import _config
from d2ext.report.run import differences


def call(*words):
    return main([str(word) for word in words])


def read_json(path):
    return json.loads(Path(path).read_text())


def payload_of(page):
    text = re.search(r'<script type="application/json" id="payload">(.*?)</script>', page, re.S)
    return json.loads(text.group(1))


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
    assert page.count("<script") == 3  # the data, uPlot and the page's own
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert not re.search(r'(?:src|href)="(?!data:|#)', markup)  # nothing comes from elsewhere
    for heading in ("Losses", "Adaptive loss weights", "AP by class", "Evaluation over time",
                    "Learning rate and speed", "Config keys in which the runs differ",
                    "Pictures of &lt;img"):  # fmt: skip
        assert heading in page
    cell = '<td class="text">'
    assert f"{cell}SOLVER.BASE_LR</td>{cell}0.1</td>{cell}0.2</td>" in page
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
    (chart,) = payload_of(page)["balance"]
    assert chart["series"][0]["y"] == [1.0, 0.5, 0.0]
    torch.save({"model": torch.nn.Linear(1, 1)}, folder / "model_final.pth")  # would run code
    assert load_run(folder).state() == {}


def test_several_data_sets_are_in_the_numbers(tmp_path):
    """DATASETS.TEST with two of them puts their names before the figures."""
    rows = [{"iteration": 9, f"{data}/bbox/AP": ap, f"{data}/bbox/AP-b": ap, "alwa/bbox": 1.0}
            for data, ap in (("x_val", 1.0), ("y-val", 2.0), ("ema/x_val", 3.0))]  # fmt: skip
    (tmp_path / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = load_run(tmp_path)
    assert run.evaluated() == ["x_val/bbox/AP", "y-val/bbox/AP", "ema/x_val/bbox/AP"]
    assert run.class_ap() == {"b (x_val)": 1.0, "b (y-val)": 2.0}
    heads = ["x_val/bbox/AP", "y-val/bbox/AP", "ema/x_val/bbox/AP"]
    cells = "".join(f'<th scope="col">{head}</th>' for head in heads)
    assert cells in make_page([run])
    (tmp_path / "metrics.json").write_text('{"iteration": 1, "sem_seg/mIoU": 1, "x": 0}\n')
    assert load_run(tmp_path).evaluated() == ["sem_seg/mIoU"]


def test_differences_and_missing_folder(tmp_path):
    runs = [load_run(write_run(tmp_path / str(k), lr=lr)) for k, lr in enumerate((0.1, 0.1, 0.3))]
    assert differences(runs[:2]) == {}
    assert differences(runs) == {"SOLVER.BASE_LR": [0.1, 0.1, 0.3]}
    with pytest.raises(FileNotFoundError, match="no metrics.json"):
        load_run(tmp_path)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Two runs that were evaluated on one data set."""
    folder = tmp_path_factory.mktemp("evaluated")
    data = write_data(folder / "data")
    runs = []
    for k in range(2):
        run = write_run(folder / f"run{k}", lr=0.1 * (k + 1))
        write_evaluation(run, data, seed=k)
        runs.append(run)
    return data, runs


def test_figures_of_the_page_are_those_of_the_analysis(evaluated):
    from d2ext.analysis.results_report import analyze_results
    from d2ext.evaluation import Predictions

    data, folders = evaluated
    page = make_page([load_run(folder) for folder in folders])
    payload = payload_of(page)
    annotations = read_json(data)
    for folder, shown in zip(folders, payload["sets"][0]["runs"]):
        found = Predictions.load(str(folder / "inference" / "made_val/instances_predictions.npz"))
        ids = np.array([1, 8, 15])[found.classes]
        want = analyze_results(list(found.iter_json(ids)), annotations, annotations)
        assert f"AP {want['AP']:.1f}" in page
        f1 = np.array(shown["curves"]["f1"], dtype=float)
        np.testing.assert_allclose(f1, want["curves"]["f1"])
        cells = {tuple(c[:2]): c[2] for c in shown["confusion"][0]["cells"]}
        objects = len(annotations["annotations"])
        assert sum(n for (true, _), n in cells.items() if true < 3) == objects
        for row in want["classes"]:
            assert f"{row['AP']:.1f}" in page


def test_gallery_shows_each_kind_and_how_its_images_were_chosen(evaluated):
    _, folders = evaluated
    gallery = payload_of(make_page([load_run(f) for f in folders], images=6))["galleries"][0]
    images = gallery["images"]
    assert len(images) == 6 and gallery["total"] == 8
    assert all(i["src"].startswith("data:image/jpeg") and i["why"] for i in images)
    assert {"worst", "best"} <= {why for i in images for why in i["why"]}
    for image in images:
        assert image["shown"] == [96, 64]  # in their own resolution
        assert all(len(run["found"]) == len(image["gt"]) for run in image["runs"])


def test_the_worst_images_are_of_more_than_one_class():
    """One class with a wall of boxes in most images used to fill all places."""
    from d2ext.report.gallery import _diverse

    wall = {f"wall{k}": {(1, "background"): 50.0 + k} for k in range(20)}
    other = {f"other{k}": {(2 + k, "missed"): 3.0} for k in range(4)}
    chosen = _diverse({**wall, **other}, 8)
    assert sum(key.startswith("other") for key in chosen) == 4


def test_pictures_keep_to_the_budget(evaluated):
    _, folders = evaluated
    small = payload_of(make_page([load_run(folders[0])], budget=8000))["galleries"][0]["images"]
    assert sum(len(i["src"]) for i in small) < 20000 and len(small) == 8


def test_data_page_counts_splits_and_shows_what_checks_find(tmp_path):
    data = write_data(tmp_path / "data", images=4)
    content = read_json(data)
    content["annotations"][0]["bbox"][2] = 0
    data.write_text(json.dumps(content))
    run = write_run(tmp_path / "run")
    write_evaluation(run, data)
    page = make_page([load_run(run)])
    shown = payload_of(page)["data"]
    assert [(s["split"], s["images"]) for s in shown["splits"]] == [("train", 4), ("test", 4)]
    assert {row[0] for row in shown["classes"]} == set(CLASSES)
    assert shown["findings"][0]["kind"] == "zero area" and shown["findings"][0]["pictures"]
    together = shown["together"]
    for k, name in enumerate(together["names"]):
        row = next(r for r in shown["classes"] if r[0] == name)
        assert together["count"][k][k] == row[1]


def test_only_keys_that_something_reads_are_in_front(tmp_path):
    from d2ext.model_zoo import get_config

    runs = []
    for k in range(2):
        cfg = get_config("Demo/fcos_shapes")
        cfg.MODEL.FCOS.PRIOR_PROB = 0.01 * (k + 1)
        cfg.MODEL.DW.NUM_CONVS = k + 1  # of another detector
        folder = write_run(tmp_path / str(k))
        (folder / "config.yaml").write_text(cfg.dump())
        runs.append(load_run(folder))
    found = _config(runs)
    assert [row[0] for row in found["rows"]] == ["MODEL.FCOS.PRIOR_PROB"]
    assert [row[0] for row in found["unread"]] == ["MODEL.DW.NUM_CONVS"]
    cfg.MODEL.META_ARCHITECTURE = "DualWeightingFCOS"
    (folder / "config.yaml").write_text(cfg.dump())
    rows = {row[0]: row[1:] for row in _config([runs[0], load_run(folder)])["rows"]}
    assert rows["MODEL.META_ARCHITECTURE"] == ["ExtFCOS", "DualWeightingFCOS"]
    assert rows["MODEL.DW.NUM_CONVS"] == ["(not read)", 2]


def test_hostile_and_damaged_files_lose_what_is_in_them_alone(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "pictures").mkdir()
    (run / "pictures" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(40))
    (run / "pictures" / "post.png").write_text("%!PS\nshowpage\n")
    Image.new("RGB", (8, 8)).save(run / "pictures" / "good.png")
    bomb = "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
    for old, new in zip("abcdefgh", "bcdefghi"):
        bomb += f"{new}: &{new} [{', '.join(['*' + old] * 10)}]\n"
    (run / "config.yaml").write_text(bomb + "loop: &l [*l]\nSOLVER: {BASE_LR: 0.5}\n")
    with open(run / "metrics.json", "ab") as stream:
        stream.write(b'{"iteration": "text", "loss_x": 1}\n{"iteration": 200, "loss_y": 1e400, ')
        stream.write(b'"total_loss": ' + b"9" * 400 + b', "loss_z": NaN, "bbox/AP": "\xff"}\n')
        stream.write(b"[" * 100000 + b"\n" + b'{"iteration": ' + b"1" * 5000 + b"}\n\xff\xfe\n")
        stream.write(b'{"iteration": Infinity, "loss_cls": 1}\n')
    (run / "last_checkpoint").write_bytes(b"\xff\x00")
    (run / "index.json").write_text('{"entries": [{"kind": "pictures"}, 7, {"kind": 1}]}')
    folder = run / "inference" / "x"
    folder.mkdir(parents=True)
    (folder / "instances_predictions.npz").write_bytes(b"PK\x03\x04" + bytes(30))
    (folder / "evaluation.json").write_text('{"json_file": "/dev/zero", "name": "x"}')
    loaded = load_run(run)
    assert loaded.config["SOLVER.BASE_LR"] == 0.5 and loaded.config["i"] == "(too large to show)"
    assert loaded.last("total_loss") == pytest.approx(1 / 6 + 0.5)
    assert call("report", run, run, "--output", tmp_path / "out") == 0
    page = (tmp_path / "out" / "report.html").read_text()
    assert "good" in page and 'alt="broken"' not in page and 'alt="post"' not in page


def test_many_losses_take_no_time(tmp_path):
    """1500 of them took over 90 seconds to draw."""
    run = tmp_path / "run"
    run.mkdir()
    rows = [{"iteration": k, **{f"loss_{n}": 1.0 / (k + n + 1) for n in range(1500)}}
            for k in range(40)]  # fmt: skip
    (run / "metrics.json").write_text("".join(json.dumps(row) + "\n" for row in rows))
    start = time.process_time()
    page = make_page([load_run(run)])
    assert time.process_time() - start < 20
    (group,) = payload_of(page)["training"]
    assert len(group["charts"]) == 1500 and group["folded"]


def test_curves_keep_their_extremes():
    from d2ext.report.training import _thin

    steps = np.arange(10000.0)
    values = np.sin(steps / 50)
    values[7777] = 99.0
    x, y = _thin(steps, values)
    assert len(x) <= 401 and y.max() == 99.0 and x[0] == 0 and np.all(np.diff(x) > 0)


def test_page_needs_no_browser_to_be_read(evaluated):
    """Tables are in the HTML, so that they print, and names in it are text."""
    _, folders = evaluated
    page = make_page([load_run(folders[0])])
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.S)
    assert "&lt;img src=x onerror" in markup and "<img src=x" not in page
    assert "What to look at first" in markup and "Kinds of error" in markup
    assert "<img src=x" not in json.dumps(payload_of(page)).replace("<img src=x onerror", "")


def test_twenty_runs_stay_one_page(evaluated):
    _, folders = evaluated
    page = make_page([load_run(folders[k % 2], f"run {k}") for k in range(20)])
    payload = payload_of(page)
    assert len(payload["runs"]) == 20 and len(payload["galleries"][0]["images"][0]["runs"]) == 20
    table = re.search(r'<table class="sortable" id="classes0">.*?</table>', page, re.S).group(0)
    heads, cells = table.count("<th "), table.count("<td ") + table.count("<td>")
    assert heads == 4 + 20 + 19 and cells == 3 * heads
    assert len(page) < 600_000
