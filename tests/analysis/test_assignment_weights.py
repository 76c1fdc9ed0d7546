"""The picture of DW's weights shows what the loss uses."""

import numpy as np
import torch
from detectron2.structures import Boxes, Instances
from model_kit import build, shrink

from d2ext.analysis.assignment_picture import weigh_image
from d2ext.config import get_cfg


def make_item(boxes):
    instances = Instances((96, 128))
    instances.gt_boxes = Boxes(torch.tensor(boxes).reshape(-1, 4))
    instances.gt_classes = torch.zeros(len(boxes), dtype=torch.int64)
    image = torch.arange(3 * 96 * 128).remainder(255).reshape(3, 96, 128).to(torch.uint8)
    return {"image": image, "instances": instances}


def make_model():
    cfg = get_cfg()
    cfg.merge_from_file("configs/DualWeighting/dw_R_50_FPN_1x.yaml")
    shrink(cfg)
    # Group norm refuses groups of one channel on a map of one cell.
    cfg.MODEL.FPN.OUT_CHANNELS = 64
    return build(cfg).eval()


def test_weights_of_an_image():
    boxes = [[10.0, 12, 70, 80], [60.0, 20, 120, 90]]
    weights = weigh_image(make_model(), make_item(boxes))
    assert set(weights["gt"]) == {0, 1} and weights["level"].max() >= 2
    for i, (x1, y1, x2, y2) in enumerate(boxes):
        mine = weights["gt"] == i
        x, y, level = weights["x"][mine], weights["y"][mine], weights["level"][mine]
        assert ((x > x1) & (x < x2) & (y > y1) & (y < y2)).all()
        assert (x % 2 ** (level + 3) == 2 ** (level + 2)).all()  # the middle of a cell
        assert 1 - 1e-4 <= weights["pos_weight"][mine].sum() <= np.exp(2)
    assert (weights["relaxed"] >= 0).all() and (weights["relaxed"] <= 1).all()
