"""INPUT.MIN_BOX_SIZE: objects that are too small in the file are not learnt from."""

import pytest
from bad_data_kit import IMAGES, DataSet, config
from detectron2.structures import BoxMode

from d2ext.config import get_cfg
from d2ext.data.checks.dicts import without_small
from d2ext.engine import Trainer
from d2ext.model_zoo import get_config_file


def test_a_side_of_one_pixel_is_too_small_and_more_is_not():
    boxes = {
        "thin": ([3.0, 3.0, 1.0, 9.0], BoxMode.XYWH_ABS),
        "flat": ([3.0, 3.0, 13.0, 4.0], BoxMode.XYXY_ABS),
        "corners": ([3.0, 3.0, 4.5, 4.5], BoxMode.XYXY_ABS),
        "turned": ([9.0, 9.0, 1.5, 8.0, 30.0], BoxMode.XYWHA_ABS),
    }
    things = [{"bbox": b, "bbox_mode": m, "name": n} for n, (b, m) in boxes.items()]
    dicts = [{"annotations": things}, {"annotations": things[:1]}, {"file_name": "no labels"}]
    found = without_small(dicts, 1.0)
    assert [t["name"] for t in found[0]["annotations"]] == ["corners", "turned"]
    assert found[1] == {"annotations": []} and found[2] == dicts[2]
    assert len(dicts[0]["annotations"]) == 4


@pytest.mark.parametrize("size, kept", [(0.0, [2, 2, 2, 2]), (1.0, [0, 1, 2, 2])])
def test_an_image_without_other_objects_stays_and_counts_as_before(tmp_path, size, kept):
    data_set = DataSet(tmp_path, "coco")
    for number, box in ((0, [2, 2, 1, 9]), (1, [5, 5, 20, 1]), (2, [4, 4, 1, 1])):
        data_set.data["annotations"][number].update(bbox=box, area=box[2] * box[3])
    words = ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler",
             "DATALOADER.REPEAT_THRESHOLD", 1.0, "INPUT.MIN_BOX_SIZE", size)  # fmt: skip
    with data_set.registered() as name:
        loader = Trainer.build_train_loader(config(name, *words))
        assert loader.epoch_size == IMAGES
        batch = next(iter(loader))
    counts = {x["image_id"]: len(x["instances"]) for x in batch}
    assert [counts[k + 1] for k in range(IMAGES)] == kept


@pytest.mark.parametrize(
    "file",
    [
        "EqualizedFocalLoss/improved_baseline_R_101_FPN_24e_efl",
        "EqualizedFocalLoss/improved_baseline_R_50_FPN_openimages_efl",
        "YOLOX/yolox_ip_m_300e_eqfl",
    ],
)
def test_the_efl_authors_recipes_have_it(file):
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file(f"{file}.yaml"))
    assert cfg.INPUT.MIN_BOX_SIZE == 1.0 and get_cfg().INPUT.MIN_BOX_SIZE == 0.0
