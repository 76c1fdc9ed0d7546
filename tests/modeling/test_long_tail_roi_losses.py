"""EQL v2 and seesaw loss against their papers' formulas, written out entry by entry."""

import math

import pytest
import torch
from model_kit import build, small_cfg

from d2ext.config import get_cfg
from d2ext.modeling.losses import EQLv2Loss, SeesawLoss, build_cls_loss


def make_step(rows=12, classes=4, columns=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, columns, generator=g, dtype=torch.float64) * 2
    return logits.requires_grad_(), torch.randint(-1, classes + 1, (rows,), generator=g)


def slow_eql_v2(logits, labels, pos_grad, neg_grad, first, classes, objectness):
    """Loss summed, and what it adds to the statistics, with the defaults of the paper."""
    total = 0.0
    add_pos, add_neg = [0.0] * classes, [0.0] * classes
    for row, label in zip(logits, labels.tolist()):
        if label < 0:
            continue
        for j, z in enumerate(row):
            ratio = 100.0 if first else pos_grad[j] / (neg_grad[j] + 1e-10) if j < classes else 0
            f = 1 / (1 + math.exp(-12 * (ratio - 0.8))) if j < classes else 1.0
            p = 1 / (1 + torch.exp(-z))
            if j == label:
                weight = 1 + 4 * (1 - f)
                total = total - weight * torch.log(p)
                if j < classes:
                    add_pos[j] += weight * float(1 - p.detach())
            else:
                total = total - f * torch.log(1 - p)
                if j < classes:
                    add_neg[j] += f * float(p.detach())
    return total, add_pos, add_neg


@pytest.mark.parametrize("objectness", [False, True])
def test_eql_v2_over_iterations(objectness):
    classes, columns = 4, 5 if objectness else 4
    loss = EQLv2Loss(classes, objectness=objectness, loss_weight=1.5).double()
    pos, neg = [0.0] * classes, [0.0] * classes
    for step in range(4):
        logits, labels = make_step(columns=columns, seed=step)
        rows = loss.per_row(logits, labels)
        want, add_pos, add_neg = slow_eql_v2(
            logits, labels, pos, neg, step == 0, classes, objectness
        )
        got = loss(logits, labels, 12)
        torch.testing.assert_close(got, 1.5 * want / 12)
        torch.testing.assert_close(rows.sum(), 1.5 * want)
        (got_grad,) = torch.autograd.grad(got, logits)
        for value in (1.5 * want / 12, rows.sum() / 12):
            (want_grad,) = torch.autograd.grad(value, logits)
            torch.testing.assert_close(got_grad, want_grad)
        pos = [a + b for a, b in zip(pos, add_pos)]
        neg = [a + b for a, b in zip(neg, add_neg)]
        # Neither normalizer nor loss weight is in them.
        torch.testing.assert_close(loss.pos_grad, torch.tensor(pos).double())
        torch.testing.assert_close(loss.neg_grad, torch.tensor(neg).double())
    assert loss.pos_neg.max() != 1.0
    loss.eval()
    before = loss.pos_grad.clone()
    loss(logits, labels, 12)
    assert torch.equal(loss.pos_grad, before)


def test_eql_v2_ratio_is_not_cut_at_one():
    loss = EQLv2Loss(2)
    loss(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long), 4)
    assert loss.pos_neg[0] > 1e6 and loss.pos_neg[1] == 0
    assert loss.stats()["fraction_ratio_1"] == 0.5


def test_eql_v2_scores():
    logits = torch.randn(3, 5)
    assert torch.equal(EQLv2Loss(5).scores(logits), logits.sigmoid())
    p = logits.sigmoid()
    want = p[:, :4] * (1 - p[:, 4:])
    assert torch.equal(EQLv2Loss(4, objectness=True).scores(logits), want)


def slow_seesaw(logits, labels, counts, p, q):
    total = 0.0
    for row, label in zip(logits, labels.tolist()):
        if label < 0:
            continue
        scores = row.detach().softmax(0)
        bottom = torch.exp(row[label])
        for j in range(len(row)):
            if j == label:
                continue
            factor = 1.0
            if label < len(counts):
                if j < len(counts):
                    factor *= min(1.0, max(counts[j], 1) / max(counts[label], 1)) ** p
                factor *= max(1.0, float(scores[j]) / max(float(scores[label]), 0.01)) ** q
            bottom = bottom + factor * torch.exp(row[j])
        total = total - torch.log(torch.exp(row[label]) / bottom)
    return total


@pytest.mark.parametrize("p,q", [(0.8, 2.0), (0.0, 2.0), (0.8, 0.0)])
def test_seesaw_over_iterations(p, q):
    loss = SeesawLoss(4, p=p, q=q, loss_weight=1.5)
    counts = [0] * 4
    for step in range(4):
        logits, labels = make_step(columns=5, seed=step)
        labels[:5] = torch.tensor([0, 0, 0, 1, 4])
        for label in labels.tolist():
            if 0 <= label < 4:
                counts[label] += 1
        got = loss(logits, labels, 12)
        assert loss.num_seen.tolist() == counts
        want = 1.5 * slow_seesaw(logits, labels, counts, p, q) / 12
        torch.testing.assert_close(got, want)
        (got_grad,) = torch.autograd.grad(got, logits)
        (want_grad,) = torch.autograd.grad(want, logits)
        torch.testing.assert_close(got_grad, want_grad)
        rows = loss.per_row(logits, labels)
        torch.testing.assert_close(rows.sum() / 12, got)
        assert (rows[labels < 0] == 0).all()


def test_seesaw_counts_only_in_training_and_saves_its_counts():
    loss = SeesawLoss(4)
    logits, labels = make_step(columns=5)
    with torch.no_grad():
        loss(logits, labels)
    loss.eval()(logits, labels)
    assert loss.num_seen.sum() == 0
    loss.train()(logits, labels)
    assert loss.state_dict()["num_seen"].sum() > 0
    extreme = loss(logits.detach() * 1e4, labels)
    assert torch.isfinite(extreme)
    empty = torch.zeros(0, 5, requires_grad=True)
    loss(empty, torch.zeros(0, dtype=torch.long)).backward()
    assert empty.grad.shape == (0, 5)
    with pytest.raises(ValueError, match="5 in all, not 4"):
        loss(logits[:, :4], labels)


def test_built_for_an_roi_head_from_a_config():
    cfg = get_cfg()
    cfg.MODEL.EQLV2.MU = 0.7
    cfg.MODEL.SEESAW.P = 0.5
    assert build_cls_loss(cfg, "eqlv2", place="roi", num_classes=3).mu == 0.7
    assert build_cls_loss(cfg, "seesaw", place="roi", num_classes=3).p == 0.5
    with pytest.raises(ValueError, match="background"):
        build_cls_loss(cfg, "seesaw", place="dense", num_classes=3)


@pytest.mark.parametrize("background", [True, False])
def test_where_the_columns_of_eql_v2_start(background):
    path = "configs/EqualizedFocalLoss/faster_rcnn_R_50_FPN_openimages_eqlv2_authors.yaml"
    words = ["MODEL.EQLV2.BACKGROUND_PRIOR", background]
    bias = build(small_cfg(path, words)).roi_heads.box_predictor.cls_score.bias
    start = -math.log(999)
    want = torch.tensor([start, start, start, start if background else 0.0])
    torch.testing.assert_close(bias.detach(), want)
