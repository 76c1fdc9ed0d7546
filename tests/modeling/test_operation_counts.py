"""What a step's labels and losses cost, in counts that no load of the machine changes.

Labelling, losses and their backward pass, on predictions that are there already.
"""

import pytest
import torch
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from model_kit import build, small_cfg

from d2ext.ops import host
from d2ext.testing import count_ops

SIZE = 64
FEW, MANY = 3, 200

RETINANET, FCOS, ATSS = (f"configs/Base-{name}.yaml" for name in ("RetinaNet", "FCOS", "ATSS"))
DW = "configs/DualWeighting/dw_R_50_FPN_1x.yaml"
SAMPLING_FREE = ["MODEL.SAMPLING_FREE.ENABLED", True]
HARMONIC = ["MODEL.HARMONIC.ENABLED", True]


def cls_loss(name):
    return ["MODEL.DENSE.CLS_LOSS", name]


DETECTORS = {
    "RetinaNet": (RETINANET, []),
    "RetinaNet, EFL": (RETINANET, cls_loss("efl")),
    "RetinaNet, IoU loss": (RETINANET, ["MODEL.DENSE.BOX_LOSS", "giou"]),
    "RetinaNet, Sampling-Free": (RETINANET, SAMPLING_FREE),
    "RetinaNet, Harmonic": (RETINANET, HARMONIC),
    "FCOS": (FCOS, []),
    "FCOS, BCE": (FCOS, cls_loss("bce")),
    "FCOS, QFL": (FCOS, cls_loss("qfl")),
    "FCOS, EFL": (FCOS, cls_loss("efl")),
    "FCOS, EQFL": (FCOS, cls_loss("eqfl")),
    "FCOS, GHM-C": (FCOS, cls_loss("ghmc")),
    "FCOS, Sampling-Free": (FCOS, SAMPLING_FREE),
    "FCOS, Harmonic": (FCOS, HARMONIC),
    "FCOS, Harmonic and EFL": (FCOS, [*HARMONIC, *cls_loss("efl")]),
    "ATSS": (ATSS, []),
    "ATSS, EFL": (ATSS, cls_loss("efl")),
    "ATSS, Harmonic": (ATSS, HARMONIC),
    "DualWeightingFCOS": (DW, []),
}


def make_targets(num_images, num_objects):
    targets = []
    for _ in range(num_images):
        corner = torch.rand(num_objects, 2) * SIZE / 2
        size = 8 + torch.rand(num_objects, 2) * (SIZE / 2 - 8)
        boxes = Boxes(torch.cat([corner, corner + size], dim=1))
        classes = torch.randint(0, 3, (num_objects,))
        targets.append(Instances((SIZE, SIZE), gt_boxes=boxes, gt_classes=classes))
    return targets


def count_step(model, num_images, num_objects):
    """Operations of labels, losses and backward of one step, given the predictions."""
    model.train()
    images = ImageList(torch.zeros(num_images, 3, SIZE, SIZE), [(SIZE, SIZE)] * num_images)
    with torch.no_grad():
        features = model.backbone(torch.randn(num_images, 3, SIZE, SIZE))
        features = [features[name] for name in model.head_in_features]
        predictions = [[x.requires_grad_() for x in levels] for levels in model.head(features)]
    targets = make_targets(num_images, num_objects)
    # Not step 0, in which some figures are read for the log.
    with EventStorage(1), count_ops() as ops:
        losses = model.forward_training(images, features, predictions, targets)
        sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    return ops


@pytest.mark.parametrize("name", DETECTORS)
def test_a_step_costs_the_same_for_any_number_of_images_and_objects(name, monkeypatch):
    # Count what a GPU would be waited for.
    monkeypatch.setattr(host, "asking_is_free", lambda tensor: False)
    path, overrides = DETECTORS[name]
    model = build(small_cfg(path, overrides))
    count_step(model, 2, FEW)  # a process's first step makes what is kept
    steps = [count_step(model, *shape) for shape in ((2, FEW), (8, FEW), (2, MANY))]
    totals = [ops.total for ops in steps]
    assert totals[0] == totals[1] == totals[2], totals
    for ops in steps:
        assert ops.num_syncs <= 1, ops.syncs
