"""The sampling-free operations against stored reference vectors of the authors' modules."""

import functools

import numpy as np
import pytest
import torch
from golden_kit import golden
from torch.nn import functional as F

from d2ext.ops.boxes import smooth_l1_loss
from d2ext.ops.sampling_free import (
    class_adaptive_thresholds,
    frozen_ratio,
    guided_ratio,
    guided_scale,
    initial_gradient_mass,
    initial_loss,
    optimal_prior,
    prior_to_bias,
    sigma_weighted,
    softmax_prior_bias,
)

load = functools.partial(golden, "sampling_free")


def close(actual, expected, dtype=torch.float64):
    rtol, atol = (2e-9, 1e-13) if dtype == torch.float64 else (3e-4, 3e-6)
    if isinstance(actual, torch.Tensor):
        actual = actual.detach().double().numpy()
    np.testing.assert_allclose(np.squeeze(actual), np.squeeze(expected), rtol=rtol, atol=atol)


def tensor(data, key, dtype=torch.float64, grad=False):
    return torch.tensor(data[key], dtype=dtype, requires_grad=grad)


def bce_sum(logits, labels, negative):
    """Sum of the sigmoid cross entropy; rows neither positive nor ``negative`` count nothing."""
    classes = logits.shape[-1]
    positive = (labels >= 0) & (labels < classes)
    target = F.one_hot(torch.where(positive, labels, classes), classes + 1)[..., :classes]
    loss = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
    return loss[positive | negative].sum()


def test_bias_and_initial_loss():
    data = load("bias_init")
    for prior, bias in zip(data["in/pi"], data["r20/f64/bias"]):
        close(prior_to_bias(float(prior)), bias)
    for samples, foreground, classes, prior, bias, loss, total, mass in data["init_loss/table"]:
        close(prior_to_bias(prior), bias)
        close(initial_loss(prior, foreground, samples, classes), loss)
        sums = initial_gradient_mass(prior, foreground, samples, classes)
        np.testing.assert_allclose(sums, (total, mass), rtol=1e-8, atol=1e-8 * mass)


@pytest.mark.parametrize("weight", [0.5, 1.0, 2.0])
def test_guided_scalar(weight):
    data = load("guided_scalar")
    for i, (cls, reg) in enumerate(zip(data["in/cls"], data["in/reg"])):
        loss = torch.tensor(cls, dtype=torch.float64, requires_grad=True)
        scaled, _ = guided_scale(loss, [torch.tensor(reg, dtype=torch.float64)], weight)
        scaled.backward()
        if cls == 0:  # the authors' code divides by zero here
            assert scaled.item() == 0 and loss.grad.item() == 0
            continue
        key = f"r19_scale{weight:g}/f64"
        close(scaled, data[f"{key}/scaled"][i])
        close(loss.grad, data[f"{key}/dscaled_dcls"][i])


@pytest.mark.parametrize("k", [2, 3])
def test_frozen_sequence_with_learned_sigmas(k):
    data = load("guided_sequence")
    ratio, iters = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.long)
    key = f"r21c/k{k}/f64"
    for step, row in enumerate(data[f"in/k{k}/losses"]):
        losses = torch.tensor(row, dtype=torch.float64, requires_grad=True)
        sigmas = tensor(data, f"in/k{k}/sigmas", grad=True)
        ratio, iters = frozen_ratio(ratio, iters, losses.unbind(), int(data["in/warmup_iters"]))
        weighted, penalty = sigma_weighted([ratio * losses[0], *losses[1:]], sigmas)
        (sum(weighted) + penalty).backward()
        close(torch.stack(weighted), data[f"{key}/weighted"][step])
        close(penalty, data[f"{key}/log_prod_sigma"][step])
        close(ratio, data[f"{key}/ratio_after_call"][step])
        close(losses.grad, data[f"{key}/grad_losses"][step])
        close(sigmas.grad, data[f"{key}/grad_sigmas"][step])


def test_ratio_of_the_first_call_only():
    data, key = load("guided_sequence"), "r21c_nowarmup/k2/f64"
    ratio, iters = torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.long)
    for step, row in enumerate(data["in/k2/losses"]):
        ratio, iters = frozen_ratio(ratio, iters, torch.tensor(row).unbind(), 1)
        close(ratio, data[f"{key}/ratio_after_call"][step])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["f64", "f32"])
@pytest.mark.parametrize("code", ["r19", "r20"])
@pytest.mark.parametrize("case", ["normal", "init", "onepos", "nopos", "tiny_reg"])
def test_retinanet(case, code, dtype):
    data = load("retinanet")
    logits = tensor(data, f"{case}/in/logits", dtype, grad=True)
    deltas = tensor(data, f"{case}/in/deltas", dtype, grad=True)
    labels = torch.tensor(data[f"{case}/in/gt_labels_d2"]).long()
    classes = logits.shape[-1]
    positive = (labels >= 0) & (labels < classes)
    # The 2020 code counts ignored anchors as negatives and adds the images to the normaliser.
    negative = labels == classes if code == "r19" else ~positive
    extra = 0 if code == "r19" else len(labels)
    raw = bce_sum(logits, labels, negative) / max(int(positive.sum()) + extra, 1)
    target = tensor(data, f"{case}/in/reg_targets", dtype)
    reg = smooth_l1_loss(deltas[positive], target[positive], 0.11).sum()
    reg = reg / (4 * max(int(positive.sum()), 1))
    scaled, ratio = guided_scale(raw, [reg])
    (scaled + reg).backward()
    key = f"{case}/{code}/f64"
    close(reg, data[f"{key}/reg"], dtype)
    close(scaled, data[f"{key}/cls_scaled"], dtype)
    close(logits.grad, data[f"{key}/grad_logits"], dtype)
    close(deltas.grad, data[f"{key}/grad_deltas"], dtype)
    if case != "nopos":
        close(raw, data[f"{key}/cls_raw"], dtype)
        close(ratio, data[f"{key}/ratio"], dtype)


@pytest.mark.parametrize("case", ["normal", "init", "onepos", "nopos"])
def test_rpn(case):
    data = load("rpn")
    logits = tensor(data, f"{case}/in/logits", grad=True)
    deltas = tensor(data, f"{case}/in/deltas", grad=True)
    labels = torch.tensor(data[f"{case}/in/gt_labels_d2"]).long()
    positive = labels == 0
    target = tensor(data, f"{case}/in/reg_targets")
    reg = smooth_l1_loss(deltas[positive], target[positive], 1 / 9).sum()
    reg = reg / (8 * max(int(positive.sum()), 1))
    scaled, _ = guided_scale(bce_sum(logits, labels, labels == 1), [reg])
    (scaled + reg).backward()
    key = f"{case}/r19/f64"
    close(scaled, data[f"{key}/cls_scaled"])
    close(logits.grad, data[f"{key}/grad_logits"])
    close(deltas.grad, data[f"{key}/grad_deltas"])


@pytest.mark.parametrize("case", ["normal", "agnostic", "onepos", "nopos"])
def test_roi_head(case):
    data = load("roi")
    logits = tensor(data, f"{case}/in/logits_d2", grad=True)
    labels = torch.tensor(data[f"{case}/in/gt_classes_d2"]).long()
    key = f"{case}/r19/f64"
    reg = tensor(data, f"{key}/reg").reshape(())
    scaled, _ = guided_scale(F.cross_entropy(logits, labels), [reg], 2.0)
    scaled.backward()
    close(scaled, data[f"{key}/cls_scaled"])
    close(logits.grad, data[f"{key}/grad_logits_d2"])


@pytest.mark.parametrize("case", ["normal", "onepos"])
def test_fcos(case):
    data = load("fcos")
    logits = tensor(data, f"{case}/in/logits", grad=True)
    labels = torch.tensor(data[f"{case}/in/gt_labels_d2"]).long()
    classes = logits.shape[-1]
    positives = int(((labels >= 0) & (labels < classes)).sum())
    raw = bce_sum(logits, labels, labels == classes) / positives
    reg, ctr = (tensor(data, f"{case}/r21c/f64/{name}") for name in ("reg", "ctr"))
    close(raw, data[f"{case}/r21c/f64/cls_raw"])
    # 2021, last form: the ratio follows box and centerness losses; at sigma 1 all is halved.
    ratio = guided_ratio(raw, [reg, ctr])
    close(ratio, data[f"{case}/r21c/f64/ratio"])
    close(ratio * raw / 2, data[f"{case}/r21c/f64/loss/cls_loss"])
    # 2021, first form: the box loss alone guides.
    scaled, _ = guided_scale(raw, [tensor(data, f"{case}/r21a/f64/loss/reg_loss")])
    close(scaled, data[f"{case}/r21a/f64/loss/cls_loss"])
    scaled.backward()
    close(logits.grad, data[f"{case}/r21a/f64/grad_logits"])


@pytest.mark.parametrize("name", ["retinanet", "faster_rcnn"])
def test_prior_from_overlaps(name):
    data = load("prior_diagnostic")
    low, high = (float(v) for v in data[f"{name}/iou_thresholds"])
    counts = np.zeros(3, dtype=np.int64)
    for i in range(int(data[f"{name}/num_images"])):
        iou = torch.tensor(data[f"{name}/iou_{i}"])
        best = iou.max(0).values
        foreground = best >= high
        # Low-quality matches: every anchor that attains an object's highest overlap.
        foreground |= (iou == iou.max(1, keepdim=True).values).any(0)
        background = (best < low) & ~foreground
        split = [foreground.sum(), background.sum(), (~foreground & ~background).sum()]
        np.testing.assert_array_equal(split, data[f"{name}/fg_bg_ignore"][i])
        counts += np.array([int(s) for s in split])
    prior = optimal_prior(int(counts[0]), int(counts[:2].sum()), int(data[f"{name}/num_classes"]))
    np.testing.assert_allclose(prior, data[f"{name}/prior"], rtol=1e-6)
    np.testing.assert_allclose(prior_to_bias(prior), data[f"{name}/bias"], rtol=1e-6)


@pytest.mark.parametrize("name", ["coco", "voc"])
def test_class_adaptive_thresholds(name):
    data = load("thresholds")
    counts = tensor(data, f"derived_{name}/class_counts")
    theta = class_adaptive_thresholds(counts, float(data[f"derived_{name}/fg_ratio"]))
    close(theta, data[f"derived_{name}/theta"])


@pytest.mark.parametrize("case", range(4))
def test_softmax_bias(case):
    data = load("softmax_init_derived")
    get = lambda name: data[f"case{case}/{name}"]  # noqa: E731
    counts, samples = torch.tensor(get("class_counts")), float(get("N"))
    frequencies = torch.cat([counts.double(), samples - counts.sum()[None].double()]) / samples
    by_frequency = softmax_prior_bias(counts, samples)
    close(by_frequency, get("bias_freq"))
    close(-(frequencies * by_frequency.log_softmax(0)).sum(), get("loss_freq"))
    close(softmax_prior_bias(counts, samples, uniform=True), get("bias_uniform"))
