"""Detectors on awkward input: nothing turns into NaN and every parameter has a gradient."""

import copy

import pytest
import torch
from detectron2.structures import Boxes, Instances, pairwise_iou
from model_kit import build, make_batch, small_cfg, train_step

PATHS = {
    "retinanet": "configs/COCO/retinanet_R_50_FPN_1x.yaml",
    "fcos": "configs/COCO/fcos_R_50_FPN_1x.yaml",
    "atss": "configs/COCO/atss_R_50_FPN_1x.yaml",
    "faster": "configs/COCO/faster_rcnn_R_50_FPN_1x.yaml",
    "cascade": "configs/VOC/cascade_rcnn_R_50_FPN.yaml",
    "dw": "configs/DualWeighting/dw_R_50_FPN_1x_refine.yaml",
}
ATSS_FORMS = {
    "points": ["MODEL.ATSS.REGRESSION", "point"],
    "iou": ["MODEL.ATSS.QUALITY", "iou", "MODEL.ATSS.SCORE", "product"],
    "two_anchors": ["MODEL.ATSS.ANCHOR_SCALES", [6.0, 8.0], "MODEL.ATSS.ANCHOR_OFFSET", 0.0],
    "plain_head": ["MODEL.ATSS.LEVEL_SCALES", False, "MODEL.ATSS.CONV_BIAS", False],
}


@pytest.fixture(scope="module", params=list(PATHS))
def model(request):
    return build(small_cfg(PATHS[request.param]))


def check_step(model, batch):
    losses, grads = train_step(model, batch)
    assert all(torch.isfinite(v) for v in losses.values()), losses
    assert all(torch.isfinite(g).all() for g in grads.values())
    return losses, grads


@pytest.mark.parametrize("counts", [(3, 2), (4, 0), (0, 0)], ids=["objects", "half", "none"])
def test_every_parameter_has_a_gradient(model, counts):
    losses, grads = check_step(model, make_batch(counts))
    wanted = {n for n, p in model.named_parameters() if p.requires_grad}
    assert grads.keys() == wanted
    if counts == (0, 0):
        for key, value in losses.items():
            if "cls" in key and key != "loss_cls_pos":
                assert value > 0, key
            else:
                assert value == 0, key


def test_a_thousand_objects(model):
    check_step(model, make_batch((1000, 3)))


def test_odd_boxes(model):
    """Zero area, outside the image, larger than the image, twice the same."""
    batch = make_batch((6, 1))
    batch[0]["instances"].gt_boxes = Boxes(
        torch.tensor(
            [
                [20.0, 20, 20, 40],
                [30, 30, 30, 30],
                [-300, -300, -200, -200],
                [500, 500, 600, 600],
                [-50, -50, 400, 400],
                [-50, -50, 400, 400],
            ]
        )
    )
    check_step(model, batch)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_bad_pixels_at_inference_give_no_bad_boxes(model, bad):
    batch = make_batch((1, 1))
    batch[0]["image"] = batch[0]["image"].float()
    batch[0]["image"][:, 10:20, 10:20] = bad
    model.eval()
    with torch.no_grad():
        outputs = model(copy.deepcopy(batch))
    for output in outputs:
        assert torch.isfinite(output["instances"].pred_boxes.tensor).all()
        assert torch.isfinite(output["instances"].scores).all()


@pytest.mark.parametrize("form", list(ATSS_FORMS))
def test_forms_of_atss(form):
    model = build(small_cfg(PATHS["atss"], ATSS_FORMS[form]))
    _, grads = check_step(model, make_batch())
    assert grads.keys() == {n for n, p in model.named_parameters() if p.requires_grad}
    model.eval()
    with torch.no_grad():
        for output in model(make_batch()):
            assert isinstance(output["instances"], Instances)


def test_atss_learns_an_image_by_heart():
    """A few dozen steps on two images must find their objects: boxes, classes, quality agree."""
    model = build(small_cfg(PATHS["atss"], ["MODEL.RESNETS.NORM", "BN"]))
    batch = make_batch((2, 0), seed=3)
    batch[0]["instances"].gt_boxes = Boxes(torch.tensor([[8.0, 8, 40, 44], [50, 40, 92, 90]]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for _ in range(60):
        train_step(model, batch)
        optimizer.step()
    model.eval()
    with torch.no_grad():
        found = model(batch)[0]["instances"]
    best = found[:2]
    iou = pairwise_iou(best.pred_boxes, batch[0]["instances"].gt_boxes)
    assert iou.max(dim=0).values.min() > 0.6
    matched = batch[0]["instances"].gt_classes[iou.argmax(dim=1)]
    assert torch.equal(best.pred_classes, matched)


def test_unknown_choices_of_atss_are_refused():
    for key, value in (("QUALITY", "iuo"), ("SCORE", "root"), ("REGRESSION", "boxes")):
        with pytest.raises(ValueError, match=f"MODEL.ATSS.{key} is '{value}'; it must be one of"):
            build(small_cfg(PATHS["atss"], [f"MODEL.ATSS.{key}", value]))
