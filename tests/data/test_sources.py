"""Every form of labels gives the same data: boxes to a hundredth of a pixel, classes, splits."""

import json

import numpy as np
import own_data_kit as kit
import pytest
from PIL import Image

from d2ext.data.checks import BadDataError
from d2ext.data.sources import read_data

# Writer -> (form told, splits that it has).
ALL = ("train", "val", "test")
FORMS = {
    kit.write_voc_tree: ("Pascal VOC", ALL),
    kit.write_flat_voc: ("Pascal VOC", ()),
    kit.write_yolo: ("YOLO", ALL),
    kit.write_yolo_polygons: ("YOLO polygons", ALL),
    kit.write_roboflow_yolo: ("YOLO", ALL),
    kit.write_plain_yolo: ("YOLO", ()),
    kit.write_coco: ("COCO", ALL),
    kit.write_coco_one: ("COCO", ()),
    kit.write_roboflow_coco: ("COCO", ALL),
    kit.write_lvis: ("LVIS", ("train", "val")),
    kit.write_labelme: ("LabelMe", ()),
    kit.write_labelme_polygons: ("LabelMe", ()),
    kit.write_csv: ("CSV", ALL),
    kit.write_pixel_boxes: ("pixel boxes", ("train", "test")),
    kit.write_deeppcb: ("DeepPCB", ("train", "test")),
}


def found(data):
    """Image stem -> sorted (class, box), whatever the split."""
    result = {}
    for content in data.splits.values():
        names = {row["id"]: row["name"] for row in content["categories"]}
        stems = {row["id"]: _stem(row["file_name"]) for row in content["images"]}
        result.update({stem: [] for stem in stems.values()})
        for row in content["annotations"]:
            x, y, w, h = row["bbox"]
            thing = (names[row["category_id"]], x, y, x + w, y + h)
            result[stems[row["image_id"]]].append(thing)
    return result


def _stem(name):
    return name.split("/")[-1].split(".")[0].replace("_test", "")


@pytest.mark.parametrize("writer", FORMS, ids=lambda writer: writer.__name__[6:])
def test_every_form_gives_the_same(writer, tmp_path):
    writer(tmp_path)
    data = read_data(str(tmp_path))
    form, splits = FORMS[writer]
    assert data.form == form
    names = ["open", "short", "mousebite"] if form == "DeepPCB" else kit.CLASSES
    assert data.classes[:3] == names and len(data.classes) == (6 if form == "DeepPCB" else 3)
    things = found(data)
    wanted = {s for split in splits or ALL for s in _stems(split, splits)}
    assert set(things) == wanted
    for stem, rows in things.items():
        expected = [(names[kit.CLASSES.index(n)], *box) for n, *box in kit.OBJECTS[stem]]
        assert [row[0] for row in rows] == [row[0] for row in expected], stem
        np.testing.assert_allclose([r[1:] for r in rows], [r[1:] for r in expected], atol=0.01)
    for split in splits:
        stems = {_stem(row["file_name"]) for row in data.splits[split]["images"]}
        assert stems == set(_stems(split, splits))
    if not splits:
        counts = {k: len(v["images"]) for k, v in data.splits.items()}
        assert counts == {"train": 7, "val": 3}  # by class, of 15 objects in 10 images
        assert any("split into 7 train, 3 val" in note for note in data.notes)
    for content in data.splits.values():
        assert [row["name"] for row in content["categories"]] == data.classes
        for row in content["images"]:
            assert (row["width"], row["height"]) == kit.SIZE
    if "polygons" in writer.__name__:
        for content in data.splits.values():
            for row in content["annotations"]:
                assert len(row["segmentation"][0]) == 8
                assert row["area"] == pytest.approx(row["bbox"][2] * row["bbox"][3])


def _stems(split, splits):
    if split == "train" and splits and "val" not in splits:  # a list named trainval
        return kit.SPLITS["train"] + kit.SPLITS["val"]
    return kit.SPLITS[split]


def test_lvis_keeps_its_lists(tmp_path):
    kit.write_lvis(tmp_path)
    data = read_data(str(tmp_path))
    image, category = data.splits["train"]["images"][0], data.splits["train"]["categories"][0]
    assert image["neg_category_ids"] == [1] and image["not_exhaustive_category_ids"] == [2]
    assert category["frequency"] == "f" and category["image_count"] == 3


def test_paths_of_files(tmp_path):
    kit.write_yolo(tmp_path / "yolo")
    kit.write_coco_one(tmp_path / "coco")
    assert read_data(str(tmp_path / "yolo" / "data.yaml")).form == "YOLO"
    assert len(read_data(str(tmp_path / "coco" / "labels.json")).splits["train"]["images"]) == 7
    kit.write_csv(tmp_path / "csv")
    assert set(read_data(str(tmp_path / "csv" / "boxes.csv")).splits) == set(ALL)
    kit.write_coco(tmp_path / "parts")
    path = tmp_path / "parts" / "annotations" / "instances_train2017.json"
    assert set(read_data(str(path)).splits) == {"train", "val"}


@pytest.mark.parametrize(
    "header",
    [
        ("image", "x", "y", "width", "height", "label"),
        ("path", "x1", "y1", "x2", "y2", "category"),
    ],
)
def test_columns_of_other_names(tmp_path, header):
    kit.write_csv(tmp_path, header)
    if header[1] == "x":  # the third and fourth numbers are then sides
        text = (tmp_path / "boxes.csv").read_text().splitlines()
        rows = [line.split(",") for line in text[1:]]
        for row in rows:
            row[3] = str(float(row[3]) - float(row[1]))
            row[4] = str(float(row[4]) - float(row[2]))
        (tmp_path / "boxes.csv").write_text("\n".join([text[0], *map(",".join, rows)]))
    things = found(read_data(str(tmp_path)))
    assert {s: [r[1:] for r in rows] for s, rows in things.items()} == {
        s: [tuple(r[1:]) for r in rows] for s, rows in kit.OBJECTS.items()
    }


def test_one_list_of_classes_for_all_splits(tmp_path):
    """Categories of another order in another split are brought into one."""
    kit.write_roboflow_coco(tmp_path)
    path = tmp_path / "valid" / "_annotations.coco.json"
    data = json.loads(path.read_text())
    ids = {row["id"]: 10 - row["id"] for row in data["categories"]}
    for row in data["categories"]:
        row["id"] = ids[row["id"]]
    for row in data["annotations"]:
        row["category_id"] = ids[row["category_id"]]
    path.write_text(json.dumps(data))
    read = read_data(str(tmp_path))
    assert found(read) == {s: [(n, *b) for n, *b in rows] for s, rows in kit.OBJECTS.items()}
    assert len({json.dumps(part["categories"]) for part in read.splits.values()}) == 1


def test_boxes_without_extent_are_left_out(tmp_path):
    """VOC's +1 would make one of a pixel out of a slip of the hand."""
    kit.write_flat_voc(tmp_path)
    path = tmp_path / "labels xml" / "pic_03.xml"
    path.write_text(path.read_text().replace("<xmax>54</xmax>", "<xmax>23</xmax>", 1))
    data = read_data(str(tmp_path))
    assert [problem.kind for problem in data.problems] == ["zero area"]
    assert len(found(data)["pic_03"]) == 1


def drop(pattern):
    return lambda root: next(root.rglob(pattern)).unlink()


def edit(pattern, old, new):
    def change(root):
        path = sorted(root.rglob(pattern))[0]
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return change


@pytest.mark.parametrize(
    "writer, harm, sentence",
    [
        (
            kit.write_yolo,
            edit("pic_00.txt", "0 0.", "9 0."),
            "label 9, and there are 3 class names",
        ),
        (kit.write_yolo, edit("pic_00.txt", "0 0.", "0 0.1 0."), "a class and 5 numbers"),
        (kit.write_yolo, edit("pic_00.txt", "0 0.", "0 x0."), "is not a YOLO label"),
        (kit.write_yolo, edit("data.yaml", "images/val", "images/gone"), "does not exist"),
        (kit.write_flat_voc, edit("*.xml", "<name>bird</name>", ""), "object 1 has no <name>"),
        (kit.write_flat_voc, edit("*.xml", "<width>120", "<width>600"), "wrong image size"),
        (kit.write_flat_voc, edit("*.xml", "<xmin>11", "<xmin>left"), "write four numbers"),
        (kit.write_coco, edit("*train*.json", "pic_00.png", "pic_77.png"), "pic_77.png"),
        (kit.write_labelme, edit("*.json", '"label": "bird"', '"label": ""'), "no 'label'"),
        (kit.write_csv, edit("boxes.csv", "10.0", "ten"), "is not four numbers"),
        (kit.write_pixel_boxes, edit("test.txt", "pic_08", "pic_00"), "one split"),
        (kit.write_pixel_boxes, edit("pic_00.txt", "10 8 42 30 1", "10 8 42"), "x1 y1 x2 y2"),
    ],
)
def test_mistakes_end_in_a_sentence(writer, harm, sentence, tmp_path):
    writer(tmp_path)
    harm(tmp_path)
    with pytest.raises(BadDataError, match=sentence):
        read_data(str(tmp_path))


def test_yolo_without_names(tmp_path):
    kit.write_plain_yolo(tmp_path)
    (tmp_path / "classes.txt").unlink()
    data = read_data(str(tmp_path))
    assert data.classes == ["class_0", "class_1", "class_2"]
    assert "no list of class names" in data.notes[0]


def test_what_is_not_there(tmp_path):
    with pytest.raises(BadDataError, match="does not exist; give a folder"):
        read_data(str(tmp_path / "nowhere"))
    kit.draw(tmp_path, "pic_00")
    with pytest.raises(BadDataError, match="has no labels that d2ext knows"):
        read_data(str(tmp_path))


def test_near_duplicates_stay_on_one_side(tmp_path):
    """Ten pictures, each saved again a little brighter."""
    for stem in kit.OBJECTS:
        path = kit.draw(tmp_path, stem)
        kit.write(tmp_path / f"{stem}.xml", kit.xml(stem, path.name))
        again = Image.fromarray(np.asarray(Image.open(path)) // 2 + 60)
        again.save(tmp_path / f"copy_of_{stem}.png")
        kit.write(tmp_path / f"copy_of_{stem}.xml", kit.xml(stem, f"copy_of_{stem}.png"))
    data = read_data(str(tmp_path), (0.7, 0.3))
    sides = {}
    for split, content in data.splits.items():
        for row in content["images"]:
            sides.setdefault(row["file_name"][-10:], set()).add(split)
    assert len(sides) == 10 and all(len(side) == 1 for side in sides.values())
    assert "10 near-duplicate images" in data.notes[-1]


def test_the_split_does_not_move_with_the_folder(tmp_path):
    names = []
    for place in ("one", "two"):
        kit.write_flat_voc(tmp_path / place)
        content = read_data(str(tmp_path / place)).splits["val"]
        names.append([row["file_name"] for row in content["images"]])
    assert names[0] == names[1]
