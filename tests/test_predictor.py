"""Prediction in Python and on the command line, with what a checkpoint says of itself."""

import csv
import functools
import http.server
import json
import threading
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from model_kit import build, small_cfg
from PIL import Image

import d2ext
from d2ext._files import RunError
from d2ext.analysis.drawing import draw_instances
from d2ext.cli import main
from d2ext.engine import Trainer
from d2ext.engine.description import config_of, describe_run, read_description
from d2ext.model_zoo import get_config_file

NAMES = ["circle", "square", "ring"]


@pytest.fixture(scope="module")
def cfg():
    from detectron2.data import MetadataCatalog

    name = "predictor_test_train"
    MetadataCatalog.get(name).thing_classes = NAMES
    overrides = ["DATASETS.TRAIN", (name,), "MODEL.FCOS.SCORE_THRESH_TEST", 0.0]
    overrides += ["INPUT.MIN_SIZE_TEST", 160, "INPUT.MAX_SIZE_TEST", 256]
    return small_cfg(get_config_file("Base-FCOS"), overrides)


@pytest.fixture(scope="module")
def checkpoint(cfg, tmp_path_factory):
    """Written by the trainer itself."""
    model = build(cfg)
    with torch.no_grad():  # scores that tell boxes apart
        model.head.cls_score.weight.mul_(30)
    folder = tmp_path_factory.mktemp("run")
    trainer = Trainer(
        model=model,
        data_loader=[],
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        output_dir=str(folder),
        config=cfg,
    )
    trainer.save_checkpoint("model_final")
    return folder / "model_final.pth"


@pytest.fixture(scope="module")
def image():
    return np.random.RandomState(0).randint(0, 256, (70, 90, 3)).astype(np.uint8)


def test_checkpoint_holds_config_and_names(cfg, checkpoint):
    description = read_description(str(checkpoint))
    assert description["class_names"] == NAMES
    again = config_of(description["config"])
    assert yaml.safe_load(again.dump()) == yaml.safe_load(cfg.dump())
    torch.load(checkpoint, weights_only=True)


def test_upstream_loads_the_checkpoint(cfg, checkpoint):
    model = build(cfg, seed=1)
    DetectionCheckpointer(model).load(str(checkpoint))
    saved = torch.load(checkpoint)["model"]
    assert all(torch.equal(v, saved[k]) for k, v in model.state_dict().items())


def test_trainer_without_config_describes_nothing():
    assert describe_run(None) == {}


def test_predicts_what_the_model_predicts(checkpoint, image):
    predictor = d2ext.Predictor(None, checkpoint)
    assert predictor.class_names == NAMES
    found = predictor(image)["instances"]
    with torch.no_grad():
        expected = predictor.model([predictor.prepare(image)])[0]["instances"]
    assert len(found) > 0 and found.image_size == (70, 90)
    assert torch.equal(found.pred_boxes.tensor, expected.pred_boxes.tensor)
    assert torch.equal(found.scores, expected.scores)


def test_array_pil_and_file_are_one_image(checkpoint, image, tmp_path):
    predictor = d2ext.Predictor(None, checkpoint, batch_size=2)
    pil = Image.fromarray(image[:, :, ::-1].copy())
    file = tmp_path / "a.png"
    pil.save(file)
    outputs = predictor([image, pil, str(file), file])
    assert len(outputs) == 4
    for output in outputs:
        assert torch.allclose(output["instances"].scores, outputs[0]["instances"].scores)
    other = predictor(image[:, :, ::-1])["instances"].scores
    assert not torch.equal(other, outputs[0]["instances"].scores)


def test_threshold_and_config_by_name(checkpoint, image):
    everything = d2ext.Predictor(None, checkpoint)(image)["instances"]
    threshold = float(everything.scores[3])
    some = d2ext.Predictor(None, checkpoint, score_thresh=threshold)(image)["instances"]
    assert len(some) == int((everything.scores >= threshold).sum()) < len(everything)
    zoo = d2ext.predictor.load_config("Demo/fcos_shapes")
    assert zoo.MODEL.FCOS.NUM_CLASSES == 20


def test_refusals(cfg, checkpoint, image, tmp_path):
    plain = tmp_path / "plain.pth"
    torch.save({"model": torch.load(checkpoint)["model"]}, plain)
    with pytest.raises(ValueError, match="holds no config"):
        d2ext.Predictor(None, plain)
    with pytest.raises(ValueError, match="Neither a config nor a checkpoint"):
        d2ext.Predictor()
    predictor = d2ext.Predictor(cfg, plain)
    assert predictor.class_names == NAMES  # from the data set of the config
    with pytest.raises(ValueError, match=r"\(4, 5, 7\)"):
        predictor(np.zeros((4, 5, 7), np.uint8))
    with pytest.raises(ValueError, match="no pixels"):
        predictor(np.zeros((0, 5, 3), np.uint8))
    with pytest.raises(TypeError, match="not a int"):
        predictor(3)
    with pytest.raises(FileNotFoundError, match="no image file '.*none.jpg'"):
        predictor(tmp_path / "none.jpg")
    (tmp_path / "text.jpg").write_text("no image")
    with pytest.raises(ValueError, match="text.jpg' is not an image that Pillow can read"):
        predictor(tmp_path / "text.jpg")
    other = cfg.clone()
    other.defrost()
    other.INPUT.FORMAT = "HSV"  # which would get BGR without a word
    with pytest.raises(ValueError, match="INPUT.FORMAT is HSV, .* BGR or RGB only"):
        d2ext.Predictor(other, plain)


def test_weights_that_do_not_fit_are_refused(cfg, checkpoint, tmp_path):
    other = cfg.clone()
    other.defrost()
    other.MODEL.FCOS.NUM_CLASSES = 5
    with pytest.raises(ValueError, match="does not fit the config: 2 parameters.*cls_score"):
        d2ext.Predictor(other, checkpoint)
    (tmp_path / "text.pth").write_text("no checkpoint")
    with pytest.raises(ValueError, match="text.pth' is not a checkpoint"):
        d2ext.Predictor(None, tmp_path / "text.pth")
    with pytest.raises(FileNotFoundError, match="no checkpoint '.*none.pth'"):
        d2ext.Predictor(None, tmp_path / "none.pth")


def test_command_writes_pictures_and_coco_json(checkpoint, image, tmp_path, capsys):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        Image.fromarray(image).save(tmp_path / folder / "same.png")
    (tmp_path / "two" / "notes.txt").write_text("no image")
    output = tmp_path / "out"
    arguments = ["predict", "--weights", str(checkpoint), "--output", str(output)]
    arguments += ["--threshold", "0", "--batch-size", "2"]
    assert main([*arguments, str(tmp_path / "one"), str(tmp_path / "*" / "same.png")]) == 0
    data = json.loads((output / "predictions.json").read_text())
    assert [i["file_name"][-12:] for i in data["images"]] == ["one/same.png", "two/same.png"]
    assert [c["name"] for c in data["categories"]] == NAMES
    assert {a["image_id"] for a in data["annotations"]} == {1, 2}
    assert len({a["id"] for a in data["annotations"]}) == len(data["annotations"]) > 0
    pictures = sorted(p.name for p in output.glob("*.png"))
    assert pictures == ["same.png", "same_2.png"]
    assert np.asarray(Image.open(output / "same.png")).shape == image.shape

    found = d2ext.Predictor(None, checkpoint)(tmp_path / "one" / "same.png")["instances"]
    first = [a for a in data["annotations"] if a["image_id"] == 1]
    x, y, w, h = first[0]["bbox"]
    assert np.allclose([x, y, x + w, y + h], found.pred_boxes.tensor[0], atol=1e-2)
    assert capsys.readouterr().out.startswith(f"{len(data['annotations'])} detections in 2 images")


def test_command_refuses_what_is_no_image(checkpoint, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["predict", "--weights", str(checkpoint), str(tmp_path / "no*.jpg")]) == 1
    assert "names no image or video" in capsys.readouterr().err
    (tmp_path / "text.jpg").write_text("no image")
    assert main(["predict", "--weights", str(checkpoint), str(tmp_path)]) == 1
    assert "text.jpg' is not an image" in capsys.readouterr().err
    (tmp_path / "text.avi").write_text("no video")
    assert main(["predict", "--weights", str(checkpoint), str(tmp_path / "*.avi")]) == 1
    assert "OpenCV cannot open" in capsys.readouterr().err


def test_command_predicts_a_video(checkpoint, image, tmp_path):
    clip = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(clip), cv2.VideoWriter_fourcc(*"MJPG"), 10, (90, 70))
    assert writer.isOpened()
    for _ in range(3):
        writer.write(image)
    writer.release()
    output = tmp_path / "out"
    arguments = ["--weights", str(checkpoint), "--output", str(output), "--no-pictures"]
    assert main(["predict", str(clip), *arguments, "--batch-size", "2"]) == 0
    data = json.loads((output / "predictions.json").read_text())
    assert [i["frame"] for i in data["images"]] == [0, 1, 2]


def test_command_writes_yolo_text_and_csv(checkpoint, image, tmp_path):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        Image.fromarray(image).save(tmp_path / folder / "same.png")
    output = tmp_path / "out"
    words = ["--weights", str(checkpoint), "--output", str(output), "--threshold", "0"]
    words += ["--no-pictures", "--yolo", "--csv"]
    assert main(["predict", str(tmp_path / "one"), str(tmp_path / "two"), *words]) == 0
    data = json.loads((output / "predictions.json").read_text())
    with open(output / "predictions.csv", newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(data["annotations"]) > 0
    assert sorted(p.name for p in (output / "labels").iterdir()) == ["same.txt", "same_2.txt"]
    lines = (output / "labels" / "same_2.txt").read_text().splitlines()
    mine = [a for a in data["annotations"] if a["image_id"] == 2]
    assert len(lines) == len(mine)
    label, cx, cy, w, h, score = map(float, lines[0].split())
    box = [(cx - w / 2) * 90, (cy - h / 2) * 70, w * 90, h * 70]
    assert box == pytest.approx(mine[0]["bbox"], abs=1e-3) and score == mine[0]["score"]
    row = rows[-len(mine)]
    assert row["file"].endswith("two/same.png") and row["name"] == NAMES[int(label)]
    sides = [float(row["x2"]) - float(row["x1"]), float(row["y2"]) - float(row["y1"])]
    assert sides == pytest.approx(box[2:], abs=2e-3)


def test_command_fetches_addresses(checkpoint, image, tmp_path, capsys):
    Image.fromarray(image).save(tmp_path / "photo.png")
    (tmp_path / "photo.png").rename(tmp_path / "camera")

    class Handler(http.server.SimpleHTTPRequestHandler):
        extensions_map = {"": "image/png"}

        def log_message(self, *words):
            pass

    handler = functools.partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/camera?now=1"
        words = [
            "--weights",
            str(checkpoint),
            "--output",
            str(tmp_path / "out"),
            "--threshold",
            "0",
        ]
        words.append("--quiet")
        assert main(["predict", url, *words]) == 0
        assert main(["predict", url.replace("camera", "none"), *words]) == 1
        server.shutdown()
        thread.join()
    data = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [i["file_name"] for i in data["images"]] == [url] and data["annotations"]
    assert (tmp_path / "out" / "camera.png").is_file()
    said = capsys.readouterr().err
    assert "none?now=1 cannot be fetched (" in said and said.count("\n") == 1
    assert main(["predict", url, *words]) == 1  # as where there is no network
    assert "cannot be fetched (Connection refused); correct" in capsys.readouterr().err


def test_drawing_marks_boxes_and_masks(checkpoint, image):
    found = d2ext.Predictor(None, checkpoint)(image)["instances"][:1]
    found.pred_boxes.tensor[:] = torch.tensor([20.0, 30.0, 60.0, 50.0])
    blank = np.zeros((70, 90, 3), np.uint8)
    drawn = np.asarray(draw_instances(blank, found, NAMES))
    assert drawn[50, 40].any() and not drawn[40, 40].any() and not drawn[60, 80].any()
    found.pred_masks = torch.zeros(1, 70, 90, dtype=torch.bool)
    found.pred_masks[0, 35:45, 30:50] = True
    assert np.asarray(draw_instances(blank, found, NAMES))[40, 40].any()


def test_command_predicts_what_it_can_and_overwrites_no_input(checkpoint, image, tmp_path, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("a.png", "a_2.png", "A.bmp", "a.jpg"):
        Image.fromarray(image).save(photos / name)
    Image.fromarray(np.zeros((1, 5000, 3), np.uint8)).save(photos / "thin.png")
    (photos / "broken.png").write_text("no image")
    words = ["predict", "--weights", str(checkpoint), "--quiet", str(photos)]
    assert main([*words, "--output", str(photos)]) == 1
    assert "is a folder of inputs" in capsys.readouterr().err
    assert len(list(photos.iterdir())) == 6
    assert main([*words, "--output", str(tmp_path / "out")]) == 1
    said = capsys.readouterr()
    assert (
        said.out == "" and said.err.count("\n") == 1 and "broken.png' is not an image" in said.err
    )
    data = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert len(data["images"]) == 5
    assert len(list((tmp_path / "out").glob("*.png"))) == 5


def test_each_class_has_the_threshold_of_its_evaluation(checkpoint, image, tmp_path, capsys):
    from d2ext.evaluation.thresholds import Thresholds

    weights = tmp_path / "model_final.pth"
    weights.write_bytes(Path(checkpoint).read_bytes())
    with pytest.raises(RunError, match="There are no thresholds"):
        d2ext.Predictor(None, weights, score_thresh="auto")
    everything = d2ext.Predictor(None, weights)(image)["instances"]
    scores = {c: everything.scores[everything.pred_classes == c] for c in range(3)}
    classes = {NAMES[c]: float(s.median()) for c, s in scores.items() if len(s)}
    Thresholds(0.5, classes).save(tmp_path / "model_final.thresholds.json")
    found = d2ext.Predictor(None, weights, score_thresh="auto")(image)["instances"]
    for c, all_of_it in scores.items():
        kept = found.scores[found.pred_classes == c]
        want = all_of_it[all_of_it >= classes.get(NAMES[c], 0.5)]
        torch.testing.assert_close(kept, want)
    assert 0 < len(found) < len(everything)
    Image.fromarray(image[:, :, ::-1].copy()).save(tmp_path / "a.png")
    words = ["predict", str(tmp_path / "a.png"), "--weights", str(weights), "--no-pictures"]
    words += ["--output", str(tmp_path / "out"), "--threshold"]
    assert main([*words, "auto"]) == 0
    assert f"{len(found)} detections" in capsys.readouterr().out
    for bad in ("7", "-1", "nan", "automatic"):
        with pytest.raises(SystemExit):
            main([*words, bad])
