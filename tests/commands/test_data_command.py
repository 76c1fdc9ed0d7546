"""d2ext data: what is drawn, converted, checked and counted."""

import json
import re
from pathlib import Path

import own_data_kit
import pytest
from commands_kit import call, read_json
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from d2ext.analysis.data_stats import data_stats
from d2ext.analysis.set_check import Split, check_sets
from d2ext.data import tiny_dataset
from d2ext.data.sources import read_data
from d2ext.data.voc_to_coco import voc_to_coco


@pytest.mark.parametrize("form", ["coco", "lvis"])
def test_shapes_are_drawn_and_pass_the_check(tmp_path, form):
    out = tmp_path / "shapes"
    words = ("data", "shapes", "--form", form, "--train", 4, "--val", 2, "--classes", 3)
    assert call(*words, "--output", out) == 0
    (train,) = (out / "annotations").glob("*_train.json")
    data = read_json(train)
    assert len(data["images"]) == 4 and len(data["categories"]) == 3
    root = out / "train" if form == "coco" else out
    check = ("data", "check", train, "--image-root", root, "--output", tmp_path / "check")
    assert call(*check) == 0
    assert read_json(tmp_path / "check" / "check.json") == {}
    assert call(*words, "--output", out) == 1  # not over what is there


def test_check_fails_on_a_planted_box(tmp_path, capsys):
    data = {
        "images": [{"id": 1, "file_name": "a.jpg", "width": 50, "height": 40}],
        "categories": [{"id": 1, "name": "x"}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 1, 0, 9]}],
    }
    (tmp_path / "data.json").write_text(json.dumps(data))
    assert call("data", "check", tmp_path / "data.json", "--output", tmp_path / "out") == 1
    report = read_json(tmp_path / "out" / "check.json")
    example = "a.jpg: annotation id 1: box 1, 1, 1, 10 in 50 x 40"
    assert report == {"zero area": {"count": 1, "files": 1, "examples": [example]}}
    assert "1 x zero area" in capsys.readouterr().out


def test_voc_becomes_the_boxes_that_detectron2_reads(tmp_path):
    with tiny_dataset("voc", num_images=3) as name:
        dicts = DatasetCatalog.get(name)
        meta = MetadataCatalog.get(name)
        words = ("data", "voc2coco", meta.dirname, "--split", "train", "--output", tmp_path)
        assert call(*words, "--classes", *meta.thing_classes) == 0
        with pytest.raises(FileNotFoundError, match="the splits are train"):
            voc_to_coco(meta.dirname, "nothing")
    data = read_json(tmp_path / "instances_train.json")
    assert [c["name"] for c in data["categories"]] == list(meta.thing_classes)
    expected = {
        Path(d["file_name"]).name: [
            (a["category_id"], BoxMode.convert(a["bbox"], a["bbox_mode"], BoxMode.XYWH_ABS))
            for a in d["annotations"]
        ]
        for d in dicts
    }
    for image in data["images"]:
        mine = [
            (a["category_id"] - 1, a["bbox"])
            for a in data["annotations"]
            if a["image_id"] == image["id"]
        ]
        assert mine == expected[image["file_name"]]
        assert (image["width"], image["height"]) == (96, 96) or image["width"] > 0


def test_an_xml_file_belongs_to_the_image_of_its_name(tmp_path):
    """<filename> is what is left behind when files are renamed."""
    own_data_kit.write_voc_tree(tmp_path)
    path = tmp_path / "Annotations" / "pic_03.xml"
    path.write_text(path.read_text().replace("pic_03.png", "pic_04.png"))
    data = voc_to_coco(tmp_path)
    names = [f"{stem}.png" for stem in own_data_kit.OBJECTS]
    assert [row["file_name"] for row in data["images"]] == names
    (tmp_path / "JPEGImages" / "pic_05.png").unlink()
    with pytest.raises(FileNotFoundError, match="pic_05.xml has no image"):
        voc_to_coco(tmp_path)


def test_difficult_objects(tmp_path):
    folder = tmp_path / "Annotations"
    folder.mkdir()
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>5</xmax><ymax>9</ymax></bndbox>"
    (folder / "a.xml").write_text(
        "<annotation><size><width>20</width><height>10</height></size>"
        f"<object><name>x</name><difficult>1</difficult>{box}</object>"
        f"<object><name>y</name>{box}</object></annotation>"
    )
    assert [a["iscrowd"] for a in voc_to_coco(tmp_path)["annotations"]] == [0, 0]
    crowd = voc_to_coco(tmp_path, difficult="crowd")["annotations"]
    assert [a["iscrowd"] for a in crowd] == [1, 0]
    assert crowd[0]["bbox"] == [0, 0, 5, 9]
    dropped = voc_to_coco(tmp_path, difficult="drop")
    assert [a["category_id"] for a in dropped["annotations"]] == [2]
    assert dropped["images"][0]["file_name"] == "a.jpg"
    with pytest.raises(ValueError, match="class 'x'"):
        voc_to_coco(tmp_path, classes=["y"])


def test_stats(tmp_path):
    def item(key, image, category, side, crowd=0):
        return {"id": key, "image_id": image, "category_id": category, "iscrowd": crowd,
                "bbox": [0, 0, side, side], "area": side * side}  # fmt: skip

    data = {
        "images": [{"id": k, "file_name": f"{k}.jpg"} for k in (1, 2, 3)],
        "categories": [{"id": 1, "name": "x"}, {"id": 2, "name": "y"}],
        "annotations": [item(1, 1, 2, 10), item(2, 1, 2, 50), item(3, 2, 2, 100),
                        item(4, 2, 1, 32), item(5, 3, 1, 9, crowd=1),
                        item(6, 99, 1, 9), item(7, 99, 1, 9, crowd=1)],  # no such image
    }  # fmt: skip
    (tmp_path / "data.json").write_text(json.dumps(data))
    assert call("data", "stats", tmp_path / "data.json", "--output", tmp_path / "out") == 0
    stats = read_json(tmp_path / "out" / "stats.json")
    assert stats == json.loads(json.dumps(data_stats(data)))
    assert stats["images_without_objects"] == 1 and stats["crowds"] == 1
    assert stats["classes"] == [
        {"name": "y", "images": 2, "objects": 3}, {"name": "x", "images": 1, "objects": 1}
    ]  # fmt: skip
    assert stats["sizes"] == {"small": 1, "medium": 2, "large": 1}
    assert stats["objects_per_image"] == {"median": 2.0, "largest": 2}
    with Image.open(tmp_path / "out" / "stats.png") as image:
        assert image.size[0] > 1000


def test_import_writes_what_train_reads(tmp_path, capsys):
    own_data_kit.write_voc_tree(tmp_path / "pets")
    out = tmp_path / "out"
    assert call("data", "import", tmp_path / "pets", out) == 0
    text = capsys.readouterr().out
    assert "Pascal VOC, 3 classes: bird, cat, dog" in text and "val: 2 images" in text
    again = read_data(str(out / "data.yaml"))
    assert again.splits == read_data(str(tmp_path / "pets")).splits
    assert call("data", "import", tmp_path / "pets", out) == 1
    assert "already exists" in capsys.readouterr().err


def test_split_deals_out_afresh(tmp_path, capsys):
    own_data_kit.write_voc_tree(tmp_path / "pets")
    words = ["data", "split", tmp_path / "pets", tmp_path / "out", "--split", "0.5,0.3,0.2"]
    assert call(*words) == 0
    assert "split into 5 train, 3 val, 2 test" in capsys.readouterr().out
    counts = [len(read_json(tmp_path / "out" / f"{s}.json")["images"]) for s in own_data_kit.SPLITS]
    assert counts == [5, 3, 2]


@pytest.mark.parametrize("split", ["1.5", "all", "0.5,0.1", "0.8,0.2,0"])
def test_a_split_that_is_none(tmp_path, capsys, split):
    own_data_kit.write_voc_tree(tmp_path / "pets")
    assert call("data", "import", tmp_path / "pets", tmp_path / "out", "--split", split) == 1
    assert f"The split '{split}' is not a share" in capsys.readouterr().err


def kinds_of(capsys, *words):
    code = call("data", "check", *words, "--json")
    found = json.loads(capsys.readouterr().out)
    return code, found


def test_check_of_a_folder_looks_at_all_splits(tmp_path, capsys, monkeypatch):
    """A leak, a missing class, an object twice, a tiny one, a box of no extent."""
    monkeypatch.setenv("D2EXT_DATA", str(tmp_path / "cache"))
    folder = tmp_path / f"leaky_{tmp_path.name}"
    own_data_kit.write_voc_tree(folder)
    code, found = kinds_of(capsys, folder, "--output", tmp_path / "out")
    assert (code, found["not_checked"]) == (0, [])
    clean = set(found["problems"])
    labels = folder / "Annotations"
    # The picture of a training image under the name of a validation image.
    val = own_data_kit.SPLITS["val"][0]
    own_data_kit.draw(folder / "JPEGImages", own_data_kit.SPLITS["train"][0]).rename(
        folder / "JPEGImages" / f"{val}.png"
    )
    own_data_kit.draw(folder / "JPEGImages", own_data_kit.SPLITS["train"][0])
    text = (labels / "pic_01.xml").read_text()
    thing = text[text.index("<object>") : text.index("</object>") + len("</object>")]
    tiny = re.sub("<xmax>.*?</xmax>", "<xmax>16</xmax>", thing)
    none = re.sub("<xmin>.*?</xmin>", "<xmin>46</xmin>", thing)
    (labels / "pic_01.xml").write_text(text.replace(thing, thing + thing + tiny + none))
    for stem in own_data_kit.SPLITS["test"]:
        path = labels / f"{stem}.xml"
        path.write_text(path.read_text().replace("<name>bird</name>", "<name>cat</name>"))
    code, found = kinds_of(capsys, folder, "--output", tmp_path / "out", "--longest", "96")
    assert code == 1  # boxes without extent are no matter of taste
    expected = {
        "near-duplicate across splits", "class absent from a split", "near-duplicate box",
        "tiny object", "zero area",
    }  # fmt: skip
    assert expected <= set(found["problems"]) and clean <= set(found["problems"])
    leak = found["problems"]["near-duplicate across splits"]["examples"][0]
    assert "pic_00.png" in leak and val in leak and "(train, val)" in leak
    assert found["problems"]["near-duplicate box"]["count"] == 1


def test_check_says_what_it_did_not_look_at(tmp_path, capsys):
    own_data_kit.write_coco_one(tmp_path)
    words = [tmp_path / "labels.json", "--output", tmp_path / "out"]
    code, found = kinds_of(capsys, *words)
    assert code == 0 and found["not_checked"] == ["10 images of labels (their folder is not known)"]
    code, found = kinds_of(capsys, *words, "--image-root", tmp_path / "pictures")
    assert found["not_checked"] == []


def test_images_that_look_unlabelled(tmp_path):
    content = own_data_kit.coco(list(own_data_kit.OBJECTS) * 2)
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] != 3]
    found, _ = check_sets([Split("all", content, "")], 640)
    assert [(p.kind, p.file) for p in found if p.kind == "looks unlabelled"] == [
        ("looks unlabelled", "pic_02.png")
    ]
