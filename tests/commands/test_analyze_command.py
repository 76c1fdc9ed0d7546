"""d2ext analyze writes the numbers that its parts compute."""

import json

import pytest
from commands_kit import call, read_json, tiny_project
from detectron2.data import DatasetCatalog, MetadataCatalog
from matplotlib.figure import Figure
from PIL import Image

from d2ext.analysis.consistency import score_iou_consistency
from d2ext.evaluation.results import class_aps, detections_of, evaluate_results, truth_of


@pytest.fixture
def unseen(monkeypatch):
    """Pictures stay empty files: most of a command's time goes into drawing them."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: path.touch())


def test_report_of_results(tmp_path):
    with tiny_project(tmp_path) as (name, _):
        DatasetCatalog.get(name)
        with open(MetadataCatalog.get(name).json_file) as f:
            data = json.load(f)
        results = []
        for k, item in enumerate(data["annotations"]):
            x, y, w, h = item["bbox"]
            box = [x, y, w, h * (0.5 + 0.5 * (k % 4) / 3)]
            row = {key: item[key] for key in ("image_id", "category_id")}
            results.append({**row, "bbox": box, "score": 0.3 + 0.2 * (k % 4)})
        (tmp_path / "results.json").write_text(json.dumps(results))
        out = tmp_path / "out"
        words = ("analyze", tmp_path / "results.json", "--dataset", name, "--train", name)
        assert call(*words, "--output", out) == 0
    report = read_json(out / "analysis.json")
    truth = truth_of(data)
    ap = class_aps(evaluate_results(truth, detections_of(results, truth)))
    ap = [value for value in ap if value is not None]
    assert report["AP"] == pytest.approx(sum(ap) / len(ap))
    direct = score_iou_consistency(results, data)
    assert report["consistency"]["pearson_hit"] == pytest.approx(direct["pearson_hit"])
    assert direct["pearson_hit"] > 0.9  # planted: higher scores fit better
    assert sum(r["objects"] for r in report["classes"]) == len(data["annotations"])
    assert report["frequency_of"] == "the training set"
    with Image.open(out / "analysis.png") as image:
        assert image.size[0] > 1000


@pytest.mark.usefixtures("unseen")
def test_file_as_data_set_and_a_wrong_name(tmp_path, capsys):
    data = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}],
    }
    (tmp_path / "data.json").write_text(json.dumps(data))
    (tmp_path / "results.json").write_text("[]")
    words = ("analyze", tmp_path / "results.json", "--output", tmp_path, "--dataset")
    assert call(*words, tmp_path / "data.json") == 0
    assert read_json(tmp_path / "analysis.json")["AP"] == 0
    assert call(*words, "no_such_data") == 1
    assert "'no_such_data' is not registered" in capsys.readouterr().err


@pytest.mark.usefixtures("unseen")
def test_registered_data_set_without_a_json_file(tmp_path):
    with tiny_project(tmp_path, "fcos_shapes", "voc") as (name, _):
        dicts = DatasetCatalog.get(name)
        results = []
        for item in dicts[1:]:  # all objects but those of the first image, exactly
            for thing in item["annotations"]:
                x1, y1, x2, y2 = thing["bbox"]
                row = {"image_id": item["image_id"], "category_id": thing["category_id"]}
                results.append({**row, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": 0.9})
        (tmp_path / "results.json").write_text(json.dumps(results))
        words = (tmp_path / "results.json", "--dataset", name, "--output", tmp_path / "out")
        assert call("analyze", *words) == 0
        assert call("show", "predict", *words) == 0
        assert call("data", "stats", name, "--output", tmp_path / "out") == 0
    report = read_json(tmp_path / "out" / "analysis.json")
    missed = len(dicts[0]["annotations"])
    assert report["errors"]["count"]["missed"] == missed
    totals = read_json(tmp_path / "out" / "predictions.json")["totals"]
    assert (totals["not_found"], totals["right"]) == (missed, len(results))
    stats = read_json(tmp_path / "out" / "stats.json")
    assert stats["objects"] == missed + len(results)


@pytest.mark.usefixtures("unseen")
@pytest.mark.parametrize("form, limit", [("coco", 100), ("lvis", 300)])
def test_as_many_detections_count_as_in_the_form_of_the_data_set(tmp_path, form, limit):
    image = {"id": 1, "file_name": "a.jpg"}
    if form == "lvis":
        image.update(neg_category_ids=[], not_exhaustive_category_ids=[])
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}
    data = {
        "images": [image],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [{"id": 1, **box}],
    }
    (tmp_path / "data.json").write_text(json.dumps(data))
    wrong = {**box, "bbox": [50, 50, 9, 9], "score": 0.9}
    words = ("analyze", tmp_path / "results.json", "--dataset", tmp_path / "data.json")
    for count, found in ((limit - 1, True), (limit, False)):
        results = [wrong] * count + [{**box, "score": 0.1}]
        (tmp_path / "results.json").write_text(json.dumps(results))
        assert call(*words, "--output", tmp_path) == 0
        assert (read_json(tmp_path / "analysis.json")["AP"] > 0) == found
    assert call(*words, "--output", tmp_path, "--max-detections", limit + 1) == 0
    assert read_json(tmp_path / "analysis.json")["AP"] > 0


@pytest.mark.usefixtures("unseen")
def test_results_of_two_runs_are_analyzed_into_two_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}],
    }
    (tmp_path / "data.json").write_text(json.dumps(data))
    for run in "ab":
        folder = tmp_path / "output" / run / "inference" / "x_val"
        folder.mkdir(parents=True)
        (folder / "coco_instances_results.json").write_text("[]")
        file = (folder / "coco_instances_results.json").relative_to(tmp_path)
        assert call("analyze", file, "--dataset", "data.json") == 0
    written = sorted(p.name for p in (tmp_path / "output" / "analyze").iterdir())
    assert written == [f"{run}_inference_x_val_coco_instances_results" for run in "ab"]


def test_results_of_another_set_are_refused(tmp_path, capsys):
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 9, 9]}
    data = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [{"id": 1, **box}],
    }
    (tmp_path / "data.json").write_text(json.dumps(data))
    words = (tmp_path / "results.json", "--dataset", tmp_path / "data.json", "--output", tmp_path)
    for other, what in (({"image_id": 7}, "image 7"), ({"category_id": 7}, "category 7")):
        rows = [{**box, "score": 0.9}, {**box, **other, "score": 0.8}]
        (tmp_path / "results.json").write_text(json.dumps(rows))
        for command in (("analyze",), ("show", "predict")):
            assert call(*command, *words) == 1
            assert f"detections of the {what}, which" in capsys.readouterr().err


HOSTILE = ["$x^{$", "a$b", "\\$\\frac", "new\nline", "\x1b[2J", "%s {0}"]


def test_class_and_file_names_are_only_text(tmp_path, capsys):
    """A "$" began mathematics, which ended in matplotlib's parser; others reached the terminal."""
    Image.new("RGB", (30, 20)).save(tmp_path / "$x^{$.png")
    categories = [{"id": k, "name": name} for k, name in enumerate(HOSTILE)]
    rows = [{"image_id": 1, "category_id": k, "bbox": [k, 0, 9, 9]} for k in range(len(HOSTILE))]
    data = {
        "images": [{"id": 1, "file_name": "$x^{$.png"}],
        "categories": categories,
        "annotations": [{"id": k + 1, "area": 81, **row} for k, row in enumerate(rows)],
    }
    (tmp_path / "$d$.json").write_text(json.dumps(data))
    (tmp_path / "$r$.json").write_text(json.dumps([{**row, "score": 0.9} for row in rows[1:]]))
    words = (tmp_path / "$r$.json", "--dataset", tmp_path / "$d$.json", "--output", tmp_path)
    assert call("analyze", *words) == 0
    assert call("show", "predict", *words, "--image-root", tmp_path) == 0
    assert call("data", "stats", tmp_path / "$d$.json", "--output", tmp_path) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out and "new\nline" not in out
    assert read_json(tmp_path / "analysis.json")["class_names"] == HOSTILE
