"""Losses of the heads without sampling against stored vectors of the authors' modules."""

import functools

import numpy as np
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, Instances
from golden_kit import golden
from model_kit import build, small_cfg
from torch.nn import functional as F

from d2ext.modeling.last_pixel import LastPixelTransform
from d2ext.modeling.losses import (
    BCELoss,
    Criterion,
    GuidedScale,
    LegacyLogIoULoss,
    Positives,
    SmoothL1Loss,
    SoftmaxLoss,
)
from d2ext.modeling.meta_arch.fcos import centerness_targets
from d2ext.modeling.roi_heads import ExtFastRCNNOutputLayers
from d2ext.modeling.sampling_free import PriorSums, SamplingFreeOptions, set_prior_bias

load = functools.partial(golden, "sampling_free")


def close(actual, expected, rtol=2e-9, atol=1e-13):
    actual = actual.detach().double().numpy() if isinstance(actual, torch.Tensor) else actual
    np.testing.assert_allclose(np.squeeze(actual), np.squeeze(expected), rtol=rtol, atol=atol)


def inputs(data, case, *names, dtype=torch.float64):
    for name in names:
        value = torch.tensor(data[f"{case}/in/{name}"])
        yield value.to(dtype) if value.is_floating_point() else value.long()


def leaves(*tensors):
    return [t.clone().requires_grad_() for t in tensors]


def split_levels(x, data, case):
    """(N, R, ...) into a list of levels, for a detector that joins them again."""
    anchors = int(data[f"{case}/in/A"])
    return x.split([int(h * w) * anchors for h, w in data[f"{case}/in/levels"]], dim=1)


@pytest.fixture
def exact_boxes(monkeypatch):
    """Boxes as exact as the reference; Detectron2's are float32 in a model of float64 too."""
    monkeypatch.setattr(Boxes, "__init__", lambda self, tensor: setattr(self, "tensor", tensor))


@pytest.fixture(scope="module")
def detectors():
    words = ["MODEL.SAMPLING_FREE.ENABLED", True]
    retinanet = [*words, "MODEL.RETINANET.BBOX_REG_WEIGHTS", (10.0, 10.0, 5.0, 5.0),
                 "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA", 0.11]  # fmt: skip
    path = "configs/COCO/retinanet_R_50_FPN_1x.yaml"
    negative = [*retinanet, "MODEL.SAMPLING_FREE.IGNORE_AS_NEGATIVE", True]
    frozen = [*retinanet, "MODEL.SAMPLING_FREE.GUIDE", "frozen",
              "MODEL.SAMPLING_FREE.LEARN_SIGMA", True]  # fmt: skip
    rcnn = small_cfg(
        "configs/COCO/faster_rcnn_R_50_FPN_1x.yaml", [*words, "MODEL.RPN.SMOOTH_L1_BETA", 1 / 9]
    )
    return {
        "r19": build(small_cfg(path, retinanet)),
        "r20": build(small_cfg(path, negative)),
        "r21c": build(small_cfg(path, frozen)),
        "rpn": build(rcnn).proposal_generator,
    }


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("code", ["r19", "r20", "r21c"])
@pytest.mark.parametrize("case", ["normal", "init", "onepos", "nopos", "tiny_reg"])
def test_retinanet(storage, exact_boxes, detectors, case, code, dtype):
    data, model = load("retinanet"), detectors[code].to(dtype)
    key = f"{case}/{code}/f64"
    logits, deltas, anchors, boxes = inputs(
        data, case, "logits", "deltas", "anchors", "gt_boxes", dtype=dtype
    )
    (labels,) = inputs(data, case, "gt_labels_d2")
    logits, deltas = leaves(logits, deltas)
    model.num_classes = logits.shape[-1]
    if code == "r21c":
        # As new: a step without positives keeps the ratio of the step before.
        model.criterion.guide.iters.zero_()
        model.criterion.guide.ratio.zero_()
    losses = model.losses(
        [Boxes(anchors)], split_levels(logits, data, case), labels,
        split_levels(deltas, data, case), boxes,
    )  # fmt: skip
    sum(losses.values()).backward()
    tolerance = {} if dtype == torch.float64 else {"rtol": 3e-4, "atol": 3e-6}
    if code == "r21c":
        assert list(losses) == ["loss_cls", "loss_box_reg", "loss_sigma"]
        close(losses["loss_cls"], data[f"{key}/loss/cls_loss"], **tolerance)
        close(losses["loss_box_reg"], data[f"{key}/loss/loc_loss"], **tolerance)
        close(losses["loss_sigma"], data[f"{key}/loss/cls_loss_loc_loss"], **tolerance)
        close(model.criterion.guide.ratio, data[f"{key}/ratio"], **tolerance)
    else:
        close(losses["loss_cls"], data[f"{key}/cls_scaled"], **tolerance)
        close(losses["loss_box_reg"], data[f"{key}/reg"], **tolerance)
    close(logits.grad, data[f"{key}/grad_logits"], **tolerance)
    close(deltas.grad, data[f"{key}/grad_deltas"], **tolerance)


@pytest.mark.parametrize("case", ["normal", "init", "onepos", "nopos"])
def test_rpn(storage, exact_boxes, detectors, case):
    data, rpn = load("rpn"), detectors["rpn"].double()
    logits, deltas, anchors, boxes = inputs(data, case, "logits", "deltas", "anchors", "gt_boxes")
    (labels,) = inputs(data, case, "gt_labels_d2")
    logits, deltas = leaves(logits, deltas)
    # The RPN's own labels: 1 object, 0 background.
    own = torch.where(labels < 0, labels, 1 - labels).to(torch.int8)
    losses = rpn.losses(
        [Boxes(anchors)], [x.squeeze(2) for x in split_levels(logits, data, case)],
        list(own), split_levels(deltas, data, case), list(boxes),
    )  # fmt: skip
    sum(losses.values()).backward()
    key = f"{case}/r19/f64"
    close(losses["loss_rpn_cls"], data[f"{key}/cls_scaled"])
    close(losses["loss_rpn_loc"], data[f"{key}/reg"])
    close(logits.grad, data[f"{key}/grad_logits"])
    close(deltas.grad, data[f"{key}/grad_deltas"])


@pytest.mark.parametrize("case", ["normal", "agnostic", "onepos", "nopos"])
def test_roi_head(storage, exact_boxes, case):
    data, key = load("roi"), f"{case}/r19/f64"
    logits, deltas, boxes, gt_boxes = inputs(
        data, case, "logits_d2", "deltas_d2", "proposals", "gt_boxes"
    )
    (labels,) = inputs(data, case, "gt_classes_d2")
    logits, deltas = leaves(logits, deltas)
    predictor = ExtFastRCNNOutputLayers(
        ShapeSpec(channels=4),
        criterion=Criterion(
            cls_loss=SoftmaxLoss(), box_loss=SmoothL1Loss(1.0),
            guide=GuidedScale(weight=2.0, place="roi"),
        ),
        sampling_free=SamplingFreeOptions(),
        box2box_transform=Box2BoxTransform((10.0, 10.0, 5.0, 5.0)),
        num_classes=logits.shape[1] - 1,
        cls_agnostic_bbox_reg=deltas.shape[1] == 4,
    )  # fmt: skip
    proposals = Instances((100, 100), proposal_boxes=Boxes(boxes), gt_classes=labels)
    proposals.gt_boxes = Boxes(gt_boxes)
    losses = predictor.losses((logits, deltas), [proposals])
    sum(losses.values()).backward()
    close(losses["loss_cls"], data[f"{key}/cls_scaled"])
    close(losses["loss_box_reg"], data[f"{key}/reg"])
    close(logits.grad, data[f"{key}/grad_logits_d2"])
    close(deltas.grad, data[f"{key}/grad_deltas_d2"])


@pytest.mark.parametrize("code", ["r21a", "r21c"])
@pytest.mark.parametrize("case", ["normal", "onepos"])
def test_fcos(case, code):
    data, key = load("fcos"), f"{case}/{code}/f64"
    logits, ltrb, target, ctr = inputs(
        data, case, "logits", "ltrb_pred", "ltrb_target", "ctr_logits"
    )
    (labels,) = inputs(data, case, "gt_labels_d2")
    logits, ltrb, ctr = leaves(logits, ltrb, ctr)
    index = ((labels >= 0) & (labels < logits.shape[-1])).flatten().nonzero()[:, 0]
    true = target.flatten(0, 1)[index]
    weights = centerness_targets(true)
    last = code == "r21c"
    # The first form has a learned factor too, which is 1 at the start.
    guide = GuidedScale(guides=("box", "ctr") if last else ("box",),
                        mode="frozen" if last else "per_step", learn_sigma=last)  # fmt: skip
    criterion = Criterion(cls_loss=BCELoss(), box_loss=LegacyLogIoULoss(), guide=guide).double()
    transform, points = LastPixelTransform(normalize_by_size=False), torch.zeros_like(true)
    boxes = transform.apply_deltas(true, points)
    ctr_loss = F.binary_cross_entropy_with_logits(ctr.flatten()[index], weights)
    losses = criterion(
        logits.flatten(0, 1), labels.flatten(),
        Positives(index, ltrb.flatten(0, 1)[index], points, boxes, transform),
        cls_normalizer=len(index), box_normalizer=weights.sum(), box_weights=weights,
        others={"ctr": ctr_loss},
    )  # fmt: skip
    sum(losses.values()).backward()
    names = {"cls": "cls_loss", "box": "reg_loss", "ctr": "centerness_loss"}
    for ours, theirs in names.items():
        close(losses[ours], data[f"{key}/loss/{theirs}"])
    close(logits.grad, data[f"{key}/grad_logits"])
    close(ltrb.grad, data[f"{key}/grad_ltrb"])
    close(ctr.grad, data[f"{key}/grad_ctr"])
    if last:
        close(losses["sigma"], data[f"{key}/loss/cls_loss_reg_loss_centerness_loss"])
        close(guide.ratio, data[f"{key}/ratio"])
        close(guide.sigma.grad, data[f"{key}/grad_params"])


@pytest.mark.parametrize("k", [2, 3])
def test_frozen_guide_over_nine_steps(k):
    data, key = load("guided_sequence"), f"r21c/k{k}/f64"
    names = ("box", "ctr")[: k - 1]
    guide = GuidedScale(
        guides=names, mode="frozen", warmup=int(data["in/warmup_iters"]), learn_sigma=True
    ).double()
    with torch.no_grad():
        guide.sigma.copy_(torch.tensor(data[f"in/k{k}/sigmas"]))
    for step, row in enumerate(data[f"in/k{k}/losses"]):
        guide.zero_grad()
        with torch.no_grad():  # a validation pass in between must not count
            guide({"cls": torch.tensor(7.0), **{n: torch.tensor(1.0) for n in names}})
        values = torch.tensor(row, requires_grad=True)
        losses = guide(dict(zip(("cls", *names), values.unbind())))
        sum(losses.values()).backward()
        close(torch.stack([losses[n] for n in ("cls", *names)]), data[f"{key}/weighted"][step])
        close(losses["sigma"], data[f"{key}/log_prod_sigma"][step])
        close(guide.ratio, data[f"{key}/ratio_after_call"][step])
        close(values.grad, data[f"{key}/grad_losses"][step])
        close(guide.sigma.grad, data[f"{key}/grad_sigmas"][step])


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_prior_from_overlaps(name):
    data = load("prior_diagnostic")
    num_classes = int(data[f"{name}/num_classes"])
    thresholds = [float(t) for t in data[f"{name}/iou_thresholds"]]
    matcher = Matcher(thresholds, [0, -1, 1], allow_low_quality_matches=True)
    sums = PriorSums(num_classes)
    for i in range(int(data[f"{name}/num_images"])):
        _, kind = matcher(torch.tensor(data[f"{name}/iou_{i}"]))
        labels = torch.where(kind == 0, num_classes, torch.where(kind == 1, 0, -1))
        split = [(labels == v).sum().item() for v in (0, num_classes, -1)]
        assert split == data[f"{name}/fg_bg_ignore"][i].tolist()
        sums.add(labels)
    measured = sums.result()
    np.testing.assert_allclose(measured.prior(), data[f"{name}/prior"], rtol=1e-6)
    layer = torch.nn.Conv2d(2, 3 * num_classes, 1)
    set_prior_bias(layer, measured.prior())
    close(layer.bias, np.full(3 * num_classes, data[f"{name}/bias"]), rtol=1e-6)
