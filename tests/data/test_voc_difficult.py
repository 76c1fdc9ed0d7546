"""DATALOADER.VOC_DIFFICULT: what Pascal VOC calls difficult is trained on, or left out."""

import pytest
from bad_data_kit import CLASSES, IMAGES, DataSet, config

from d2ext.engine import Trainer
from d2ext.engine.build_data import build_test_loader


@pytest.fixture
def name(tmp_path):
    data_set = DataSet(tmp_path, "voc")
    for k, number in ((0, 0), (1, 1), (2, 0), (2, 1)):  # image 2 has nothing else
        path = tmp_path / "Annotations" / f"{k}.xml"
        head, *things = path.read_text().split("<object>")
        things[number] = things[number].replace("<difficult>0", "<difficult>1")
        path.write_text("<object>".join([head, *things]))
    with data_set.registered() as registered:
        yield registered


@pytest.mark.parametrize("choice", ["train", "drop"])
def test_difficult_objects(name, choice):
    loader = Trainer.build_train_loader(config(name, "DATALOADER.VOC_DIFFICULT", choice))
    seen = {
        x["image_id"]: [CLASSES[t["category_id"]] for t in x["annotations"]] for x in loader.dataset
    }
    both = ["cat", "dog"]
    want = {"0": ["dog"], "1": ["cat"], "3": both}
    assert seen == (dict.fromkeys("0123", both) if choice == "train" else want)
    # The evaluation looks at all images and reads the files by itself.
    cfg = config(name, "DATALOADER.VOC_DIFFICULT", choice)
    assert len(build_test_loader(cfg, name).dataset) == IMAGES


def test_a_set_that_knows_no_difficult_objects_is_refused(tmp_path):
    with DataSet(tmp_path, "coco").registered() as name:
        cfg = config(name, "DATALOADER.VOC_DIFFICULT", "drop")
        with pytest.raises(ValueError, match=r"none of DATASETS.TRAIN is a set of Pascal VOC"):
            Trainer.build_train_loader(cfg)
