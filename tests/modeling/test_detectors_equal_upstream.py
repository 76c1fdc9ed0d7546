"""With everything off, ours compute what Detectron2's own detectors compute."""

import copy

import pytest
import torch
from model_kit import WIDE, build, make_batch, relative_error, small_cfg, train_step

from d2ext.testing import upstream_fcos

REGION = ["MODEL.PROPOSAL_GENERATOR.NAME", "RPN", "MODEL.ROI_HEADS.NAME"]
CASES = {
    "retinanet": (
        "configs/COCO/retinanet_R_50_FPN_1x.yaml",
        ["MODEL.META_ARCHITECTURE", "RetinaNet"],
    ),
    "faster": ("configs/COCO/faster_rcnn_R_50_FPN_1x.yaml", [*REGION, "StandardROIHeads"]),
    "mask": ("configs/COCO/mask_rcnn_R_50_FPN_1x.yaml", [*REGION, "StandardROIHeads"]),
    "cascade": ("configs/COCO/cascade_mask_rcnn_R_50_FPN_1x.yaml", [*REGION, "CascadeROIHeads"]),
}


def pair(name, overrides=()):
    """(ours, upstream's) with equal weights."""
    if name == "fcos":
        cfg = small_cfg("configs/COCO/fcos_R_50_FPN_1x.yaml", overrides)
        ours, theirs = build(cfg), upstream_fcos(cfg)
    else:
        path, swap = CASES[name]
        ours = build(small_cfg(path, overrides))
        theirs = build(small_cfg(path, [*overrides, *swap]))
    assert list(ours.state_dict()) == list(theirs.state_dict())
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


def check_equal(name, batch, overrides=(), steps=1):
    ours, theirs = pair(name, overrides)
    for step in range(steps):
        losses, grads = train_step(ours, batch, seed=step)
        expected, expected_grads = train_step(theirs, batch, seed=step)
        assert list(losses) == list(expected)
        for key, value in expected.items():
            assert relative_error(losses[key], value) <= 1e-6, key
        assert grads.keys() == expected_grads.keys()
        # One scale for all: the gradient of a bias before a GroupNorm is nothing but rounding.
        top = max(float(value.abs().max()) for value in expected_grads.values())
        for key, value in expected_grads.items():
            assert float((grads[key] - value).abs().max()) <= 1e-6 * top, key


@pytest.mark.parametrize("name", ["retinanet", "fcos", "faster", "mask", "cascade"])
@pytest.mark.parametrize("counts", [(3, 2), (4, 0), (0, 0)], ids=["objects", "half", "none"])
def test_losses_and_gradients(name, counts):
    masks = name in ("mask", "cascade")
    check_equal(name, make_batch(counts, masks=masks), steps=2 if name == "retinanet" else 1)


@pytest.mark.parametrize("loss", ["giou", "diou", "ciou"])
def test_box_losses_of_upstream(loss):
    # With a narrow backbone Detectron2's own CIoU loss is NaN.
    for name, node in (("retinanet", "RETINANET"), ("faster", "ROI_BOX_HEAD")):
        check_equal(name, make_batch(), [*WIDE, f"MODEL.{node}.BBOX_REG_LOSS_TYPE", loss])


def test_smooth_l1_beta_and_loss_weights():
    check_equal("retinanet", make_batch(), ["MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", 0.1])
    weights = ["MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT", 2.0, "MODEL.RPN.LOSS_WEIGHT", 0.5]
    check_equal("faster", make_batch(), [*weights, "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", 0.5])


def test_sigmoid_and_class_agnostic_roi_head():
    check_equal("faster", make_batch(), ["MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True])
    check_equal("faster", make_batch(), ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", True])


def test_federated_loss(monkeypatch):
    from detectron2.modeling.roi_heads import fast_rcnn

    monkeypatch.setattr(fast_rcnn, "get_fed_loss_cls_weights", lambda **_: torch.arange(1.0, 41.0))
    head = "MODEL.ROI_BOX_HEAD."
    keys = [head + "USE_FED_LOSS", True, head + "USE_SIGMOID_CE", True]
    keys += [head + "FED_LOSS_NUM_CLASSES", 8, "MODEL.ROI_HEADS.NUM_CLASSES", 40]
    check_equal("faster", make_batch(num_classes=40), keys)
    # Ours asks for CLS_LOSS alone.
    keys[2:4] = [head + "CLS_LOSS", "bce"]
    losses, _ = train_step(build(small_cfg(CASES["faster"][0], keys)), make_batch(num_classes=40))
    assert torch.isfinite(losses["loss_cls"])


@pytest.mark.parametrize("name", ["retinanet", "fcos", "faster"])
def test_detections(name):
    """At a low threshold, so that there are many and the best of each level are really chosen."""
    low = ["MODEL.RETINANET.SCORE_THRESH_TEST", 0.005, "MODEL.FCOS.SCORE_THRESH_TEST", 0.01]
    low += ["MODEL.RETINANET.TOPK_CANDIDATES_TEST", 50, "MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0]
    ours, theirs = pair(name, low)
    if name == "fcos":
        theirs.test_score_thresh = 0.01
    for module in (ours, theirs):
        torch.manual_seed(3)
        module.eval()
        for key, p in module.named_parameters():  # scores that are neither equal nor saturated
            if "cls_score" in key or "objectness" in key:
                p.data.copy_(torch.randn(p.shape) * (0.002 if "weight" in key else 1.0))
    batch = make_batch()
    with torch.no_grad():
        actual, expected = ours(copy.deepcopy(batch)), theirs(copy.deepcopy(batch))
    found = 0
    for a, e in zip(actual, expected):
        a, e = a["instances"], e["instances"]
        assert len(a) == len(e)
        found += len(e)
        assert torch.equal(a.pred_classes, e.pred_classes)
        assert torch.equal(a.scores, e.scores)
        assert torch.equal(a.pred_boxes.tensor, e.pred_boxes.tensor)
    assert found > 0
