"""The harmonic loss through whole heads, with stored predictions, against stored references."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform, Box2BoxTransformLinear
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from golden_kit import golden
from model_kit import build, small_cfg
from torch import nn

from d2ext import get_cfg
from d2ext.modeling.losses import build_criterion
from d2ext.modeling.roi_heads import ExtFastRCNNOutputLayers

DATA = {
    name: golden("harmonic", name)
    for name in ("roi", "dense_retinanet", "dense_fcos", "dense_rpn", "edge")
}
CASES = [(n, c) for n in DATA if n != "edge" for c in DATA[n]["cases"].tolist()]


def config_of(case):
    """The stored case's description as a config, and the names of its class and box loss."""
    cfg = get_cfg()
    node = cfg.MODEL.HARMONIC
    node.ENABLED = node.ON_DENSE = node.ON_RPN = node.ON_ROI = True
    node.COUPLE = case["harmonic"]
    node.DETACH_BETAS = case["detach"]
    node.BETA_R_SOURCE, node.BETA_C_SOURCE = case["br_source"], case["bc_source"]
    node.ALPHA_HIOU, node.GAMMA = case["alpha"], case["gamma"]
    node.TC.WEIGHT = 0.0 if case["tc"] == "off" else 1.0
    node.TC.MARGIN_MODE = "subtract" if case["tc"] == "off" else case["tc"]
    node.TC.MARGIN, node.TC.SCORE = case["margin"], case["score"]
    node.TC.DETACH_ENTROPY = case["tc_detach_entropy"]
    node.TC.DETACH_IOU = case["tc_detach_iou"]
    node.TC.DETACH_SCORE = case["tc_detach_score"]
    box = case["loc"]
    if box == "none":  # the harmonic IoU loss is the box loss itself
        assert case["alpha"] == 1.0
        node.ALPHA_HIOU, box = 0.0, "harmonic_iou"
    return cfg, {"cls_loss": case["cls"], "box_loss": box}


def criterion_of(case, place, num_classes):
    cfg, names = config_of(case)
    alpha, gamma = case["focal"]
    return build_criterion(
        cfg, place=place, num_classes=num_classes, alpha=alpha, gamma=gamma,
        smooth_l1_beta=case["beta"], **names,
    )  # fmt: skip


def transform_of(case):
    if case["decode"] == "linear":
        return Box2BoxTransformLinear(normalize_by_size=True)
    return Box2BoxTransform(weights=case["weights"])


class Fixed(nn.Module):
    """A normaliser that gives the stored divisor."""

    def __init__(self, value):
        super().__init__()
        self.value = float(value)

    def forward(self, count, like):
        return self.value


@cache
def detector(name):
    return build(small_cfg(f"configs/COCO/{name}_R_50_FPN_1x.yaml"))


def fitted(model, **parts):
    """A detector of which only ``losses`` is called, with the parts of a case."""
    for name, part in parts.items():
        setattr(model, name, part)
    return model


def roi_losses(case, t, num_classes, norms):
    if case["cls"] != "softmax":
        assert t["logits"].shape[1] == num_classes + 1
    layers = ExtFastRCNNOutputLayers(
        ShapeSpec(channels=4),
        criterion=criterion_of(case, "roi", num_classes),
        box2box_transform=transform_of(case),
        num_classes=num_classes,
        cls_agnostic_bbox_reg=t["deltas"].shape[1] == 4,
    )
    half = len(t["labels"]) // 2  # two images, and the second may lack objects
    proposals = []
    for rows in (slice(0, half), slice(half, None)):
        image = Instances((1000, 1000), proposal_boxes=Boxes(t["anchors"][rows]))
        image.gt_classes = t["labels"][rows]
        image.gt_boxes = Boxes(t["gt"][rows])
        proposals.append(image)
    return layers.losses((t["logits"], t["deltas"]), proposals)


def dense_losses(case, t, num_classes, norms):
    with_centerness = case["decode"] == "linear"
    model = fitted(
        detector("fcos" if with_centerness else "retinanet"),
        criterion=criterion_of(case, "dense", num_classes),
        normalizer=Fixed(norms[0]),
        box2box_transform=transform_of(case),
        num_classes=num_classes,
    )
    third = len(t["labels"]) // 3
    levels = [slice(0, third), slice(third, None)]
    arguments = (
        [Boxes(t["anchors"][rows]) for rows in levels],
        [t["logits"][None, rows] for rows in levels],
        t["labels"][None],
        [t["deltas"][None, rows] for rows in levels],
        t["gt"][None],
    )
    if not with_centerness:
        return model.losses(*arguments)
    losses = model.losses(*arguments, [t["logits"][None, rows, :1] * 0 for rows in levels])
    losses.pop("loss_fcos_ctr")
    return losses


def rpn_losses(case, t, num_classes, norms):
    model = fitted(
        detector("faster_rcnn").proposal_generator,
        criterion=criterion_of(case, "rpn", 1),
        box2box_transform=transform_of(case),
        batch_size_per_image=float(norms[0]),
        loss_weight={},
    )
    labels = torch.where(t["labels"] < 0, t["labels"], 1 - t["labels"])  # objects are 1 here
    return model.losses(
        [Boxes(t["anchors"])], [t["logits"][None, :, 0]], [labels], [t["deltas"][None]], [t["gt"]]
    )


HEADS = {
    "roi": roi_losses, "dense_retinanet": dense_losses, "dense_fcos": dense_losses,
    "dense_rpn": rpn_losses,
}  # fmt: skip


def inputs_of(data, prefix, class_specific):
    t = {
        name: torch.tensor(data[f"{prefix}in/{name}"], dtype=torch.float32)
        for name in ("logits", "anchors", "gt")
    }
    key = "deltas_cs" if class_specific else "deltas"
    t["deltas"] = torch.tensor(data[f"{prefix}in/{key}"], dtype=torch.float32).requires_grad_()
    t["labels"] = torch.tensor(data[f"{prefix}in/labels"]).long()
    t["logits"].requires_grad_()
    return t


def compare(losses, t, data, folder):
    """Named losses and both gradients against a stored folder, within float32's precision."""
    with_tc = any(name.endswith("tc") for name in losses)
    assert len(losses) == 3 if with_tc else 2
    sum(losses.values()).backward()
    pairs = {
        "loss_cls": next(v for k, v in losses.items() if k.endswith("cls")),
        "loss_box_reg": next(v for k, v in losses.items() if k.endswith(("reg", "loc"))),
        "grad_logits": t["logits"].grad,
        "grad_deltas": t["deltas"].grad,
    }
    if with_tc:
        pairs["loss_tc"] = next(v for k, v in losses.items() if k.endswith("tc"))
    for name, actual in pairs.items():
        expected = data[f"{folder}/{name}"]
        top = float(np.abs(expected).max())
        np.testing.assert_allclose(
            actual.detach().double().numpy(), expected, rtol=1e-4, atol=1e-5 * top + 1e-9,
            err_msg=name,
        )  # fmt: skip


@pytest.mark.filterwarnings("ignore:Harmonic IoU loss with gamma")
@pytest.mark.parametrize("name, case", CASES, ids=["/".join(c) for c in CASES])
def test_heads(name, case):
    data = DATA[name]
    config = json.loads(str(data[f"{case}/config_json"]))
    folder = f"{case}/f64"
    t = inputs_of(data, "", data[f"{folder}/grad_deltas"].shape[1] > 4)
    with EventStorage():
        losses = HEADS[name](config, t, int(data["in/K"]), data[f"{case}/norms"])
    assert any(k.endswith("tc") for k in losses) == (config["tc"] != "off")
    compare(losses, t, data, folder)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("scenario", ["no_positive", "all_positive", "extreme"])
def test_degenerate_heads(scenario, detach):
    data = DATA["edge"]
    config = {**json.loads(str(data["config_json"])), "detach": detach}
    t = inputs_of(data, f"{scenario}/", False)
    with EventStorage():
        losses = roi_losses(config, t, t["logits"].shape[1] - 1, None)
    assert all(torch.isfinite(v) for v in losses.values())
    compare(losses, t, data, f"{scenario}/{'detach' if detach else 'grad'}/f64")
