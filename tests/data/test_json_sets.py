"""Dataset dicts of a checked file are those of Detectron2's loaders, and nothing is patched."""

import copy
import logging
from functools import partial

import lvis
import pycocotools.coco
import pytest
import torch
from bad_data_kit import DataSet, logged
from detectron2.config import LazyCall
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.datasets import register_coco_instances
from detectron2.data.datasets.coco import load_coco_json
from detectron2.data.datasets.lvis import load_lvis_json, register_lvis_instances
from detectron2.data.samplers import RepeatFactorTrainingSampler
from omegaconf import OmegaConf

from d2ext.data.checks import BadDataError, load_checked
from d2ext.data.checks.json_sets import JsonSet
from d2ext.engine import lazy_data

POINTS = [3, 4, 2, 0, 0, 0, 20, 15.5, 1]
RUNS = {"size": [30, 40], "counts": [100, 50, 1050]}


def coco_file(tmp_path):
    """Masks of each kind, key points, crowds, unsorted ids and entries of no consequence."""
    data_set = DataSet(tmp_path, "coco")
    data = data_set.data
    things = data["annotations"]
    things[0].update(keypoints=POINTS, num_keypoints=2)
    things[1].update(segmentation=RUNS, iscrowd=1, keypoints=[])
    things[2].update(segmentation={**RUNS, "counts": "d3Q1"})
    things[3].update(segmentation=[])
    del things[4]["segmentation"], things[4]["iscrowd"]
    things[5]["segmentation"].append([1, 2, 3, 4])  # one piece is too short
    things[6]["segmentation"] = [[1, 2, 3]]  # nothing of it is left
    things[7]["image_id"] = 99  # an image that is not there
    for row in data["categories"]:
        row["id"] *= 7
    for thing in things:
        thing["category_id"] *= 7
    data["categories"].reverse()
    data["images"].reverse()
    data_set.write()
    return data_set


def metadata(name):
    return MetadataCatalog.get(name).as_dict()


@pytest.mark.parametrize("named", [True, False])
def test_coco_is_detectron2s(tmp_path, named):
    data_set = coco_file(tmp_path)
    names = ("json_theirs", "json_ours") if named else (None, None)
    root = str(tmp_path / "train")
    try:
        theirs = load_coco_json(str(data_set.file), root, names[0])
        ours = JsonSet(str(data_set.file), root, "coco", names[1])
        content = copy.deepcopy(data_set.data)
        assert ours.dicts(content) == theirs
        assert content == data_set.data  # key points are not overwritten
        assert [[*item] for item in theirs] == [[*item] for item in ours.dicts(content)]
        assert sum(len(item["annotations"]) for item in theirs) == 6
        if named:
            assert {**metadata("json_ours"), "name": ""} == {**metadata("json_theirs"), "name": ""}
    finally:
        for name in filter(None, names):
            MetadataCatalog.remove(name)


@pytest.mark.parametrize("classes", [None, "lvis_v0.5", "lvis_v1", "lvis_cocofied"])
def test_lvis_is_detectron2s(tmp_path, classes):
    names = (classes and f"{classes}_theirs", classes and f"{classes}_ours")
    data_set = DataSet(tmp_path, "lvis")
    data_set.data["images"][1].update(neg_category_ids=[2], not_exhaustive_category_ids=[1])
    data_set.data["images"].reverse()
    data_set.write()
    root = f"{tmp_path}/"
    try:
        theirs = load_lvis_json(str(data_set.file), root, names[0])
        assert JsonSet(str(data_set.file), root, "lvis", names[1]).dicts(data_set.data) == theirs
        if classes:
            assert {**metadata(names[1]), "name": ""} == {**metadata(names[0]), "name": ""}
    finally:
        for name in filter(None, names):
            MetadataCatalog.remove(name)


def test_a_file_without_annotations(tmp_path):
    data_set = DataSet(tmp_path, "coco")
    del data_set.data["annotations"]
    data_set.write()
    assert JsonSet(str(data_set.file), "x", "coco").dicts(data_set.data) == load_coco_json(
        str(data_set.file), "x"
    )


@pytest.mark.parametrize("form", ["coco", "lvis"])
def test_what_detectron2_registers_is_known(form):
    register = {"coco": register_coco_instances, "lvis": register_lvis_instances}[form]
    load = {"coco": load_coco_json, "lvis": load_lvis_json}[form]
    expected = JsonSet("file.json", "images/", form, "json_known")
    try:
        register("json_known", {}, "file.json", "images/")
        assert JsonSet.of(DatasetCatalog["json_known"]) == expected
    finally:
        DatasetCatalog.remove("json_known")
        MetadataCatalog.remove("json_known")
    assert JsonSet.of(expected) == expected
    assert JsonSet.of(partial(load, "file.json", image_root="images/")) == expected._replace(
        name=None
    )
    # With more than the file says, or done by a function of the user's, it is called.
    assert JsonSet.of(partial(load, "a", "b", "c", ["area"])) is None
    assert JsonSet.of(lambda: load("a", "b")) is None and JsonSet.of(dict) is None


def test_nothing_is_patched_while_a_set_loads(tmp_path):
    """A function that loads another set and a file meets what is always there."""
    data_set, seen = DataSet(tmp_path, "coco"), []
    with data_set.registered() as name:
        other = DatasetCatalog[name]
        before = (pycocotools.coco.COCO, lvis.LVIS, other)

        def load():
            seen.append((pycocotools.coco.COCO, lvis.LVIS, DatasetCatalog[name]))
            return DatasetCatalog.get(name)

        DatasetCatalog.register("json_other", load)
        try:
            assert load_checked("json_other") == load_checked(name) == other()
        finally:
            DatasetCatalog.remove("json_other")
    assert seen == [before]


def test_a_function_of_ones_own_is_called_and_its_dicts_are_checked(tmp_path):
    data_set = DataSet(tmp_path, "coco")
    data_set.data["annotations"][0]["bbox"] = [3, 3, 0, 5]
    with data_set.registered() as name:
        load = DatasetCatalog[name]
        DatasetCatalog[name] = lambda: load()
        with logged() as lines:
            dicts = load_checked(name)
        assert [len(item["annotations"]) for item in dicts] == [1, 2, 2, 2]
        (line,) = lines
        assert "1 x zero area" in line and "object 1" in line
        with pytest.raises(BadDataError, match="1 x zero area"):
            load_checked(name, bad_annotations="refuse")


@pytest.mark.parametrize("filter_empty, min_keypoints, left", [(False, 0, 4), (True, 0, 3),
                                                               (True, 2, 1)])  # fmt: skip
def test_images_are_chosen_as_detectron2_does(tmp_path, filter_empty, min_keypoints, left):
    data_set = DataSet(tmp_path, "coco")
    things = data_set.data["annotations"]
    things[0]["keypoints"], things[4]["keypoints"] = POINTS, [3, 4, 2, 0, 0, 0, 0, 0, 0]
    del things[2:4]  # all of the second image
    options = {"filter_empty": filter_empty, "min_keypoints": min_keypoints}
    with data_set.registered() as name:
        dicts = lazy_data.load_dataset([name, name], **options)
        assert dicts == get_detection_dataset_dicts([name, name], **options)
        assert len(dicts) == 2 * left
        with pytest.raises(BadDataError, match=f"No valid data found in {name}: .* 3 key points"):
            lazy_data.load_dataset(name, min_keypoints=3)


def test_a_data_set_of_another_kind_stays_what_it_is():
    class Numbers(torch.utils.data.Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            return index

    made = Numbers()
    DatasetCatalog.register("json_numbers", lambda: made)
    try:
        assert lazy_data.load_dataset("json_numbers") is made
        assert list(lazy_data.load_dataset(["json_numbers"] * 2)) == [0, 1, 2, 0, 1, 2]
    finally:
        DatasetCatalog.remove("json_numbers")


def list_of(names):
    return DatasetCatalog.get(names)


def copy_of():
    """A mapper that changes nothing."""
    return dict


def lazy_config(name):
    """Loaders as those of Detectron2's LazyConfigs; the sampler refers to the data set."""
    dataset = LazyCall(get_detection_dataset_dicts)(names=name)
    counts = LazyCall(RepeatFactorTrainingSampler.repeat_factors_from_category_frequency)(
        dataset_dicts="${dataloader.train.dataset}", repeat_thresh=0.5
    )
    loaders = {
        "train": LazyCall(build_detection_train_loader)(
            dataset=dataset,
            mapper=LazyCall(copy_of)(),
            sampler=LazyCall(RepeatFactorTrainingSampler)(repeat_factors=counts),
            total_batch_size=2,
        ),
        "test": LazyCall(build_detection_test_loader)(
            dataset=LazyCall(get_detection_dataset_dicts)(names=name, filter_empty=False),
            mapper=LazyCall(copy_of)(),
        ),
    }
    return OmegaConf.create(
        {"dataloader": loaders, "train": {"device": "cpu"}}, flags={"allow_objects": True}
    )


def test_loaders_of_a_lazy_config(tmp_path):
    data_set = DataSet(tmp_path, "coco")
    things = data_set.data["annotations"]
    for thing in things[2:4]:
        thing["bbox"] = [3, 3, 0, 5]  # all of the second image
    with data_set.registered() as name:
        cfg = lazy_config(name)
        before = copy.deepcopy(cfg)
        with logged() as lines:
            train = lazy_data.build_train_loader(cfg, seed=1)
            test = lazy_data.build_loader(cfg, "test")
            assert len(lazy_data.load_dataset(name)) == 3
        assert cfg == before
        assert len(lines) == 2 and "left out" in lines[0] and "kept" in lines[1]
        assert [item["image_id"] for item in train.dataset] == [1, 3, 4]
        assert len(train.make_indices(1)._int_part) == 3  # the sampler's, too
        assert [len(item["annotations"]) for item in test.dataset] == [2, 2, 2, 2]
        things[0]["bbox"] = [1, 2]
        data_set.file.unlink()
        data_set.write()
        for build in (lazy_data.build_train_loader, partial(lazy_data.build_loader, key="test")):
            with pytest.raises(BadDataError, match="malformed box"):
                build(cfg)


def test_a_lazy_config_says_what_it_does_not_check(tmp_path, caplog):
    with DataSet(tmp_path, "coco").registered() as name:
        cfg = lazy_config(name)
        cfg.dataloader.test.dataset = LazyCall(list_of)(names=name)
        logger = logging.getLogger("d2ext.engine.lazy_data")
        logger.addHandler(caplog.handler)
        try:
            assert len(lazy_data.build_loader(cfg, "test").dataset) == 4
        finally:
            logger.removeHandler(caplog.handler)
    assert "Unchecked: dataloader.test.dataset is not made by" in caplog.text
