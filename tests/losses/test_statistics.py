"""Class losses that keep statistics: what counts, and who sees which of them.

Shapes: M samples, C classes.
"""

import logging

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from d2ext.losses import (
    BCELoss,
    Criterion,
    EMANormalizer,
    EQLv2Loss,
    EqualizedFocalLoss,
    EqualizedQualityFocalLoss,
    GHMCLoss,
    GHMRLoss,
    HarmonicCoupling,
    Positives,
    SeesawLoss,
    SmoothL1Loss,
    WiseIoULoss,
)

CLASSES = 3


class Shift:
    """Box deltas that are added to the prior."""

    def apply_deltas(self, deltas, boxes):
        return boxes + deltas

    def get_deltas(self, boxes, targets):
        return targets - boxes


def a_step(seed=0, columns=CLASSES, num=12):
    """Logits (M, columns), labels with every kind of row, and their positives."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(num, columns, generator=g).requires_grad_()
    labels = torch.randint(0, CLASSES + 1, (num,), generator=g)
    labels[:3], labels[-1] = torch.tensor([0, 0, 1]), -1
    index = ((labels >= 0) & (labels < CLASSES)).nonzero()[:, 0]
    priors = torch.tensor([[0.0, 0.0, 8.0, 8.0]]).repeat(len(index), 1)
    deltas = torch.randn(len(index), 4, generator=g).requires_grad_()
    return logits, labels, Positives(index, deltas, priors, priors + 1, Shift())


def buffers(loss):
    return {name: value.clone() for name, value in loss.state_dict().items()}


@pytest.mark.parametrize("make", [lambda: SeesawLoss(CLASSES), lambda: EqualizedFocalLoss(CLASSES)])
def test_coupling_and_class_loss_see_the_same_statistics(make):
    """Seesaw counts before it computes, EFL after: neither may show the coupling another state."""
    alone, coupled = make(), make()
    columns = CLASSES + (not alone.sigmoid)
    coupling = HarmonicCoupling(alpha_hiou=0.0, tc_weight=0.0)
    criterion = Criterion(cls_loss=coupled, box_loss=SmoothL1Loss(), coupling=coupling)
    for seed in range(3):
        logits, labels, positives = a_step(seed, columns)
        losses = criterion(logits, labels, positives, cls_normalizer=1.0, box_normalizer=1.0)
        if not alone.counts_first:
            rows = alone.per_row(logits, labels)
        want = alone(logits, labels)
        if alone.counts_first:
            rows = alone.per_row(logits, labels)
        beta = torch.exp(-SmoothL1Loss()(positives).sum(1))
        want = want + (beta * rows[positives.index]).sum()
        torch.testing.assert_close(losses["cls"], want)
        torch.testing.assert_close(buffers(coupled), buffers(alone))


def test_coupling_and_class_loss_aim_at_the_same_target():
    logits, labels, positives = a_step()
    loss = EqualizedQualityFocalLoss(CLASSES)
    coupling = HarmonicCoupling(alpha_hiou=0.0, tc_weight=0.0)
    criterion = Criterion(cls_loss=loss, box_loss=SmoothL1Loss(), coupling=coupling).eval()
    target = torch.rand(len(labels))
    losses = criterion(
        logits, labels, positives, cls_normalizer=1.0, box_normalizer=1.0, target=target
    )
    rows = loss.per_row(logits, labels, target)
    beta = torch.exp(-SmoothL1Loss()(positives).sum(1))
    torch.testing.assert_close(losses["cls"], rows.sum() + (beta * rows[positives.index]).sum())


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("make", [GHMCLoss, lambda: SeesawLoss(CLASSES)])
def test_activation_checkpointing_counts_once_and_keeps_the_gradient(make, reentrant):
    plain, repeated = make(), make()
    for seed in range(3):
        logits, labels, _ = a_step(seed, CLASSES + (not plain.sigmoid))
        plain(logits * 1.5, labels).backward()
        want, logits.grad = logits.grad, None
        tail = lambda x, labels=labels: repeated(x * 1.5, labels)  # noqa: E731
        checkpoint(tail, logits, use_reentrant=reentrant).backward()
        torch.testing.assert_close(logits.grad, want)
        torch.testing.assert_close(buffers(repeated), buffers(plain))
        assert all(value.sum() > 0 for value in buffers(plain).values())
        with torch.no_grad():  # a validation pass in training mode, between two iterations
            repeated(logits, labels)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("make", [lambda: GHMRLoss(momentum=0.5), WiseIoULoss])
def test_statistics_of_box_losses_move_once_a_step(make, reentrant):
    plain, repeated = make(), make()
    for seed in range(3):
        before = buffers(plain)
        _, _, positives = a_step(seed)
        plain(positives).sum().backward()
        want, positives.deltas.grad = positives.deltas.grad, None

        def tail(deltas, p=positives):
            return repeated(Positives(p.index, deltas, p.priors, p.boxes, p.transform)).sum()

        checkpoint(tail, positives.deltas, use_reentrant=reentrant).backward()
        torch.testing.assert_close(positives.deltas.grad, want)
        torch.testing.assert_close(buffers(repeated), buffers(plain))
        assert any(not torch.equal(before[name], now) for name, now in buffers(plain).items())
        with torch.no_grad():
            repeated(positives)
    torch.testing.assert_close(buffers(repeated), buffers(plain))


@pytest.mark.parametrize(
    "make", [GHMCLoss, lambda: EQLv2Loss(CLASSES), lambda: SeesawLoss(CLASSES)]
)
def test_statistics_stay_wide_in_half_precision(make):
    loss = make()
    before = {name: value.dtype for name, value in loss.named_buffers()}
    loss.half()
    assert {name: value.dtype for name, value in loss.named_buffers()} == before


def test_a_divisor_stays_as_it_was_for_its_loss():
    """In float64 too, where the value's type needs no conversion."""
    normalizer = EMANormalizer(initial=4.0, momentum=0.5)
    logits = torch.zeros(3, CLASSES, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(CLASSES)
    losses = [BCELoss()(logits, labels, normalizer(count, logits)) for count in (2, 8)]
    (grad,) = torch.autograd.grad(sum(losses), logits)
    (unit,) = torch.autograd.grad(BCELoss()(logits, labels), logits)
    torch.testing.assert_close(grad, unit * (1 / 3.0 + 1 / 5.5))


def saturated(loss, passes=12):
    """Steps with hardly any negative: every class gets more positive than negative gradient."""
    loss.saturates_after = 10
    quality = torch.ones(CLASSES) if loss.needs_quality else None
    for _ in range(passes):
        logits = torch.full((CLASSES, CLASSES), -6.0).requires_grad_()
        loss(logits, torch.arange(CLASSES), quality=quality)
    return loss.stats()


@pytest.mark.parametrize(
    "make, form",
    [
        (EqualizedFocalLoss, "a plain focal loss"),
        (EqualizedQualityFocalLoss, "a plain focal loss"),
        (EQLv2Loss, "plain binary cross entropy"),
    ],
)
def test_a_loss_that_has_become_its_plain_form_says_so_once(make, form, caplog):
    loss = make(CLASSES)
    with caplog.at_level(logging.WARNING):
        assert saturated(loss, passes=5)["fraction_ratio_1"] == 1.0
        assert not caplog.records  # so early it says nothing: every run may begin like this
        saturated(loss)
        saturated(loss)
    assert len(caplog.records) == 1
    text = caplog.records[0].getMessage()
    assert f"has become {form}" in text and "Train on more background" in text


def test_a_loss_that_is_at_work_or_plain_by_choice_says_nothing(caplog):
    with caplog.at_level(logging.WARNING):
        saturated(EqualizedFocalLoss(CLASSES, scale=0.0))
        loss = EqualizedFocalLoss(CLASSES)
        loss.saturates_after = 2
        for seed in range(4):
            loss(torch.zeros(40, CLASSES).requires_grad_(), a_step(seed, num=40)[1])
        assert loss.stats()["fraction_ratio_1"] < 1
    assert not caplog.records
