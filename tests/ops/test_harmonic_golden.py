"""The harmonic operations against stored reference vectors, put together into whole heads."""

import functools
import json

import numpy as np
import pytest
import torch
from golden_kit import golden
from torch.nn import functional as F

from d2ext.ops import boxes as box_ops
from d2ext.ops.harmonic import (
    class_entropy,
    harmonic_factors,
    harmonic_iou_loss,
    task_contrastive_loss,
)

load = functools.partial(golden, "harmonic")


def close(actual, expected, dtype=torch.float64):
    rtol, atol = (1e-9, 1e-12) if dtype == torch.float64 else (2e-4, 2e-5)
    expected = np.asarray(expected, dtype=np.float64)
    if dtype == torch.float32:
        atol *= max(float(np.abs(expected).max()), 1e-6) if expected.size else 1.0
    got = actual.detach().double().numpy()
    np.testing.assert_allclose(got, expected, rtol=rtol, atol=atol)


def decode(deltas, anchors, config):
    """Boxes from deltas in the tensors' own precision (Detectron2's rounds to float32)."""
    x1, y1, x2, y2 = anchors.unbind(-1)
    w, h, cx, cy = x2 - x1, y2 - y1, (x1 + x2) / 2, (y1 + y2) / 2
    if config["decode"] == "linear":
        l, t, r, b = F.relu(deltas).unbind(-1)
        return torch.stack((cx - l * w, cy - t * h, cx + r * w, cy + b * h), -1)
    wx, wy, ww, wh = config["weights"]
    dx, dy, dw, dh = deltas.unbind(-1)
    limit = float(np.log(1000.0 / 16))
    pw, ph = (dw / ww).clamp(max=limit).exp() * w, (dh / wh).clamp(max=limit).exp() * h
    px, py = dx / wx * w + cx, dy / wy * h + cy
    return torch.stack((px - pw / 2, py - ph / 2, px + pw / 2, py + ph / 2), -1)


def encode(boxes, anchors, config):
    w, h = (anchors[:, 2:] - anchors[:, :2]).unbind(-1)
    gw, gh = (boxes[:, 2:] - boxes[:, :2]).unbind(-1)
    cx, cy = ((anchors[:, :2] + anchors[:, 2:]) / 2).unbind(-1)
    gx, gy = ((boxes[:, :2] + boxes[:, 2:]) / 2).unbind(-1)
    wx, wy, ww, wh = config["weights"]
    columns = (wx * (gx - cx) / w, wy * (gy - cy) / h, ww * (gw / w).log(), wh * (gh / h).log())
    return torch.stack(columns, -1)


def class_losses(logits, labels, config):
    """Per valid row: the class loss, and the plain cross entropy and -log p of positives."""
    if config["cls"] == "softmax":
        loss = F.cross_entropy(logits, labels.clamp(min=0), reduction="none")
        return loss, loss, loss
    classes = logits.shape[1]
    target = F.one_hot(labels.clamp(min=0), classes + 1)[:, :classes].to(logits.dtype)
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    loss = bce
    if config["cls"] == "focal":
        alpha, gamma = config["focal"]
        p = logits.sigmoid()
        loss = bce * (1 - (p * target + (1 - p) * (1 - target))) ** gamma
        if alpha >= 0:
            loss = loss * (alpha * target + (1 - alpha) * (1 - target))
    log_p = F.logsigmoid(logits).gather(1, labels.clamp(0, classes - 1)[:, None])[:, 0]
    return loss.sum(1), bce.sum(1), -log_p


def head(inputs, config, norms):
    """One head's losses by the paper's formulas; returns all named tensors of interest."""
    logits, deltas, labels = inputs["logits"], inputs["deltas"], inputs["labels"]
    classes = inputs["K"]
    used = logits[:, :classes] if config["cls"] != "softmax" else logits
    pos = ((labels >= 0) & (labels < classes)).nonzero()[:, 0]
    ce_all, bce_all, nll = class_losses(used, labels, config)
    ce = ce_all[pos]
    own = deltas[pos]
    if own.shape[1] > 4:
        own = own.view(len(pos), -1, 4)[torch.arange(len(pos)), labels[pos]]
    anchors, gt = inputs["anchors"][pos], inputs["gt"][pos]
    boxes = decode(own, anchors, config)
    iou = box_ops.pair_iou(boxes, gt)
    hiou = harmonic_iou_loss(iou, config["gamma"])
    kind = config["loc"]
    if kind == "smooth_l1":
        base = box_ops.smooth_l1_loss(own, encode(gt, anchors, config), config["beta"]).sum(1)
    elif kind == "none":
        base = torch.zeros_like(iou)
    else:
        base = getattr(box_ops, f"{kind}_loss")(boxes, gt)
    loc = base + config["alpha"] * hiou
    exponent = {"loss": ce, "bce": bce_all[pos], "gt_prob": nll[pos]}[config["bc_source"]]
    source = loc if config["br_source"] == "loc" else base
    beta_r, beta_c = harmonic_factors(ce, source, cls_exponent=exponent, detach=config["detach"])
    sigmoid = config["cls"] != "softmax"
    entropy = class_entropy(used[pos], sigmoid=sigmoid)
    scores = used.sigmoid() if sigmoid else used.softmax(-1)
    score = scores[pos, labels[pos]]
    if config["score"] == "max":
        score = scores[pos][:, :classes].max(-1).values
    tc = torch.zeros_like(iou)
    if config["tc"] != "off":
        detach = {f"detach_{n}": config[f"tc_detach_{n}"] for n in ("entropy", "iou", "score")}
        tc = task_contrastive_loss(
            score, iou, entropy, margin=config["margin"], mode=config["tc"], **detach
        )
    wc, wl = (ce, loc)
    if config["harmonic"]:
        wc, wl = (1 + beta_r) * ce, (1 + beta_c) * loc
    negative = ce_all[labels == classes].sum()
    out = {"ce": ce, "loc_base": base, "hiou": hiou, "iou": iou, "loc": loc, "tc": tc}
    out.update(beta_r=beta_r, beta_c=beta_c, score=score, entropy=entropy)
    out["loss_cls"] = (wc.sum() + negative) / norms[0]
    out["loss_box_reg"] = wl.sum() / norms[1]
    out["loss_tc"] = tc.sum() / norms[1]
    return out


def run(data, prefix, folder, config, norms, dtype):
    inputs = {"labels": torch.tensor(data[f"{prefix}in/labels"])}
    names = {"deltas": "deltas", "logits": "logits", "anchors": "anchors", "gt": "gt"}
    grads = data[f"{folder}/grad_deltas"]
    if f"{prefix}in/deltas_cs" in data.files and grads.shape[1] > 4:
        names["deltas"] = "deltas_cs"
    for name, key in names.items():
        inputs[name] = torch.tensor(data[f"{prefix}in/{key}"], dtype=dtype)
    columns = inputs["logits"].shape[1]
    # The ROI logits carry a background column whatever the class loss.
    inputs["K"] = int(data["in/K"]) if "in/K" in data.files else columns - 1
    for name in ("logits", "deltas"):
        inputs[name].requires_grad_()
    out = head(inputs, config, norms)
    (out["loss_cls"] + out["loss_box_reg"] + out["loss_tc"]).backward()
    out["grad_logits"], out["grad_deltas"] = inputs["logits"].grad, inputs["deltas"].grad
    compared = 0
    for name, value in out.items():
        key = f"{folder}/{name}"
        if key not in data.files or (name.startswith("beta") and not config["harmonic"]):
            continue
        if name in ("tc", "loss_tc") and config["tc"] == "off":
            continue
        close(value, data[key], dtype)
        compared += 1
    assert compared >= 8


CASES = [
    (name, case)
    for name in ("roi", "dense_retinanet", "dense_fcos", "dense_rpn")
    for case in load(name)["cases"].tolist()
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("name, case", CASES, ids=["/".join(c) for c in CASES])
def test_heads(name, case, dtype):
    data = load(name)
    config = json.loads(str(data[f"{case}/config_json"]))
    run(data, "", f"{case}/f64", config, data[f"{case}/norms"], dtype)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("scenario", ["no_positive", "all_positive", "extreme"])
def test_degenerate_heads_are_finite_and_exact(scenario, detach):
    data = load("edge")
    config = {**json.loads(str(data["config_json"])), "detach": detach}
    rows = len(data[f"{scenario}/in/labels"])
    folder = f"{scenario}/{'detach' if detach else 'grad'}/f64"
    run(data, f"{scenario}/", folder, config, (rows, rows), torch.float64)


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_grid_of_loss_pairs(detach, dtype):
    data, folder = load("pairs"), f"{'detach' if detach else 'grad'}/f64"
    ce = torch.tensor(data["ce"], dtype=dtype, requires_grad=True)
    loc = torch.tensor(data["loc"], dtype=dtype, requires_grad=True)
    beta_r, beta_c = harmonic_factors(ce, loc, detach=detach)
    cls, box = (1 + beta_r) * ce, (1 + beta_c) * loc
    (cls.sum() + box.sum()).backward()
    values = {"beta_r": beta_r, "beta_c": beta_c, "weighted_cls": cls, "weighted_loc": box}
    values.update(dF_dce=ce.grad, dF_dloc=loc.grad)
    for name, value in values.items():
        close(value, data[f"{folder}/{name}"], dtype)


def test_hiou_curve_and_slope():
    data = load("hiou")
    for row, gamma in enumerate(data["curve/gamma"]):
        iou = torch.tensor(data["curve/iou"], requires_grad=True)
        loss = harmonic_iou_loss(iou, float(gamma))
        loss.sum().backward()
        close(loss, data["curve/f64/loss"][row])
        close(iou.grad, data["curve/f64/dloss_diou"][row])


@pytest.mark.parametrize("gamma", [0.5, 0.8, 1.0])
def test_hiou_of_boxes(gamma):
    data = load("hiou")
    pred = torch.tensor(data["boxes/pred"], requires_grad=True)
    iou = box_ops.pair_iou(pred, torch.tensor(data["boxes/gt"]))
    loss = harmonic_iou_loss(iou, gamma)
    loss.sum().backward()
    close(iou, data["boxes/f64/iou"])
    close(loss, data[f"boxes/f64/loss_g{gamma}"])
    close(pred.grad, data[f"boxes/f64/grad_g{gamma}"])


def test_hiou_of_degenerate_boxes():
    data = load("hiou")
    iou = box_ops.pair_iou(torch.tensor(data["edge/pred"]), torch.tensor(data["edge/gt"]))
    close(iou, data["edge/f64/iou"])
    close(harmonic_iou_loss(iou, 0.8), data["edge/f64/loss_g0.8"])
