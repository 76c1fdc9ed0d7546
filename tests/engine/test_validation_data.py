"""The validation loss with what a model may want besides images: proposals, pictures."""

import pickle

import numpy as np
import pytest
from detectron2.structures import BoxMode
from model_kit import build, small_cfg

from d2ext.data import tiny_dataset
from d2ext.engine import Trainer
from d2ext.engine.hooks import ValidationLoss, validation_loss
from d2ext.engine.validation_data import ValidationBatches
from d2ext.model_zoo import get_config_file


@pytest.fixture(scope="module")
def names():
    with tiny_dataset("coco", num_images=2) as one, tiny_dataset("coco", num_images=2) as other:
        yield one, other


def rcnn_cfg(names, *words):
    return small_cfg(
        get_config_file("Demo/faster_rcnn_shapes"),
        ["DATASETS.TRAIN", names, "DATASETS.TEST", names, "DATALOADER.NUM_WORKERS", 0,
         "INPUT.MIN_SIZE_TEST", 96, *words],
    )  # fmt: skip


def write_proposals(path, name, side):
    """A box of that side for each image of a data set."""
    ids = [item["image_id"] for item in Trainer.build_test_loader(rcnn_cfg((name,)), name).dataset]
    boxes = [np.array([[0, 0, side, side]], np.float32) for _ in ids]
    scores = [np.zeros(1, np.float32) for _ in ids]
    content = {"ids": ids, "boxes": boxes, "objectness_logits": scores}
    path.write_bytes(pickle.dumps({**content, "bbox_mode": BoxMode.XYXY_ABS}))
    return str(path)


def test_precomputed_proposals_come_from_the_file_of_each_data_set(names, tmp_path):
    files = tuple(write_proposals(tmp_path / f"{k}.pkl", n, 20 + k) for k, n in enumerate(names))
    cfg = rcnn_cfg(
        names, "MODEL.LOAD_PROPOSALS", True, "DATASETS.PROPOSAL_FILES_TEST", files,
        "MODEL.PROPOSAL_GENERATOR.NAME", "PrecomputedProposals",
    )  # fmt: skip
    batches = [batch for batch, _ in ValidationBatches(cfg)()]
    sides = [batch[0]["proposals"].proposal_boxes.tensor[0, 2].item() for batch in batches]
    assert sides == [20, 20, 21, 21]
    losses = ValidationLoss(1, build(cfg), ValidationBatches(cfg)).measure()
    assert {"loss_cls", "loss_box_reg", "total_loss"} == set(losses)


def test_no_picture_is_drawn_or_kept(names, monkeypatch):
    """Its storage stays at step 0, which is a step to draw at, whatever VIS_PERIOD is."""
    storages = []

    class Storage(validation_loss.EventStorage):
        def __init__(self, *args):
            super().__init__(*args)
            storages.append(self)

    monkeypatch.setattr(validation_loss, "EventStorage", Storage)
    cfg = rcnn_cfg(names[:1], "VIS_PERIOD", 7)
    model = build(cfg)
    assert ValidationLoss(1, model, ValidationBatches(cfg)).measure()["total_loss"] > 0
    assert len(storages) == 1 and storages[0]._vis_data == []
    assert model.vis_period == 7
