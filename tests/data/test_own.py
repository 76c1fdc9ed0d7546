"""Data of one's own under Detectron2's catalogs, and a config that fits them."""

import json
import os
from pathlib import Path

import own_data_kit as kit
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from d2ext import model_zoo
from d2ext._files import RunError
from d2ext.config import get_cfg
from d2ext.config.classes import class_count_keys, set_class_count
from d2ext.data.own import register_own_data, use_own_data


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("D2EXT_DATA", str(tmp_path / "cache"))


def test_registered_under_the_name_of_the_folder(tmp_path):
    kit.write_flat_voc(tmp_path / "Steel Plates!")
    data = register_own_data(str(tmp_path / "Steel Plates!"))
    assert data.names == {"train": "steel_plates_train", "val": "steel_plates_val"}
    assert MetadataCatalog.get("steel_plates_val").thing_classes == kit.CLASSES
    dicts = DatasetCatalog.get("steel_plates_train")
    assert len(dicts) == 7 and all(os.path.isfile(item["file_name"]) for item in dicts)
    assert {thing["category_id"] for item in dicts for thing in item["annotations"]} == {0, 1, 2}


def test_read_afresh_only_when_a_file_changes(tmp_path):
    kit.write_plain_yolo(tmp_path / "pets")
    first = register_own_data(str(tmp_path / "pets"))
    written = os.stat(os.path.join(first.folder, "train.json")).st_mtime_ns
    again = register_own_data(str(tmp_path / "pets"))
    assert again == first
    assert os.stat(os.path.join(first.folder, "train.json")).st_mtime_ns == written
    (tmp_path / "pets" / "pic_00.txt").write_text("")
    register_own_data(str(tmp_path / "pets"))
    contents = [json.loads((Path(first.folder) / f"{s}.json").read_text()) for s in first.names]
    count = sum(len(content["annotations"]) for content in contents)
    assert count == sum(map(len, kit.OBJECTS.values())) - 1


def test_behind_a_link_it_is_read_afresh_too(tmp_path):
    kit.write_voc_tree(tmp_path / "disk" / "pets")
    (tmp_path / "here").symlink_to(tmp_path / "disk")
    splits = tmp_path / "disk" / "pets" / "ImageSets" / "Main"
    (tmp_path / "disk" / "pets" / "Annotations" / "loop").symlink_to(tmp_path / "disk" / "pets")
    first = register_own_data(str(tmp_path / "here" / "pets"))
    before = len(DatasetCatalog.get(first.names["train"]))
    stems = (splits / "train.txt").read_text().split()
    (splits / "train.txt").write_text("\n".join(stems[1:]))
    again = register_own_data(str(tmp_path / "here" / "pets"))
    assert len(DatasetCatalog.get(again.names["train"])) == before - 1


def test_two_folders_of_one_name(tmp_path):
    for place in ("a", "b"):
        kit.write_coco(tmp_path / place / "data")
    names = [register_own_data(str(tmp_path / place / "data")).names["train"] for place in "ab"]
    assert len(set(names)) == 2


def test_lvis_form_is_loaded_and_counted(tmp_path):
    kit.write_lvis(tmp_path / "tail")
    data = register_own_data(str(tmp_path / "tail"))
    dicts = DatasetCatalog.get(data.names["train"])
    metadata = MetadataCatalog.get(data.names["train"])
    assert metadata.evaluator_type == "lvis" and len(metadata.class_image_count) == 3
    assert os.path.isfile(dicts[0]["file_name"]) and dicts[0]["neg_category_ids"] == [1]


def test_whichever_detector_gets_the_class_count(tmp_path):
    kit.write_coco(tmp_path / "pets")
    for config in ("fcos", "retinanet", "atss", "dw", "faster_rcnn"):
        cfg = get_cfg()
        cfg.merge_from_file(model_zoo.get_config_file(f"Demo/{config}_shapes"))
        cfg.DATASETS.DATA = str(tmp_path / "pets")
        use_own_data(cfg)
        assert set(class_count_keys(cfg).values()) == {3}
        assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("pets_train",), ("pets_val",))
    keys = class_count_keys(cfg)
    for name in ("RETINANET", "FCOS", "ATSS", "DW", "ROI_HEADS"):
        assert f"MODEL.{name}.NUM_CLASSES" in keys
    assert "MODEL.SEM_SEG_HEAD.NUM_CLASSES" not in keys


def test_an_override_that_disagrees_is_refused(tmp_path):
    kit.write_coco(tmp_path / "pets")
    cfg = get_cfg()
    cfg.DATASETS.DATA = str(tmp_path / "pets")
    with pytest.raises(RunError, match="MODEL.FCOS.NUM_CLASSES 20 disagrees with the data, which"):
        use_own_data(cfg, ["MODEL.FCOS.NUM_CLASSES", "20"])
    given = ["MODEL.FCOS.NUM_CLASSES", "3", "DATASETS.TEST", "('pets_test',)"]
    cfg.merge_from_list(given)
    use_own_data(cfg, given)
    assert cfg.DATASETS.TEST == ("pets_test",)
    set_class_count(cfg, 7)
    assert cfg.MODEL.ATSS.NUM_CLASSES == 7
