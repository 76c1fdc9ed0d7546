"""Weights of classes in every class loss, by columns or by rows, and where the state goes.

Shapes: M samples, C classes.
"""

import pytest
import torch

from d2ext.losses import (
    BCELoss,
    ClsLoss,
    EQLv2Loss,
    EqualizedFocalLoss,
    EqualizedQualityFocalLoss,
    FocalLoss,
    GHMCLoss,
    QualityFocalLoss,
    SeesawLoss,
    SoftmaxLoss,
)

C = 3
WEIGHTS = torch.tensor([0.25, 1.0, 2.5])
BY_COLUMN = {
    "bce": BCELoss,
    "efl": lambda **kw: EqualizedFocalLoss(C, **kw),
    "eqfl": lambda **kw: EqualizedQualityFocalLoss(C, **kw),
    "eqlv2": lambda **kw: EQLv2Loss(C, **kw),
    "eqlv2 with objectness": lambda **kw: EQLv2Loss(C, objectness=True, **kw),
    "focal": FocalLoss,
    "ghmc": GHMCLoss,
    "qfl": QualityFocalLoss,
}
BY_ROW = {"softmax": SoftmaxLoss, "seesaw": lambda **kw: SeesawLoss(C, **kw)}
MAKE = {**BY_COLUMN, **BY_ROW}


def a_step(loss):
    g = torch.Generator().manual_seed(0)
    wide = not loss.sigmoid or loss.objectness
    logits = torch.randn(30, C + wide, generator=g).requires_grad_()
    labels = torch.randint(-1, C + 1, (30,), generator=g)
    quality = (torch.rand(30, generator=g),) if loss.needs_quality else ()
    return logits, labels, quality


def gradient(value, logits):
    return torch.autograd.grad(value, logits)[0]


@pytest.mark.parametrize("name", MAKE)
def test_the_gradient_is_that_without_weights_times_the_weights(name):
    plain, weighted = MAKE[name](), MAKE[name](class_weights=WEIGHTS)
    logits, labels, quality = a_step(plain)
    before = gradient(plain(logits, labels, 2.0, *quality), logits)
    after = gradient(weighted(logits, labels, 2.0, *quality), logits)
    columns = torch.ones(logits.shape[1])
    columns[:C] = WEIGHTS
    if name in BY_COLUMN:
        torch.testing.assert_close(after, before * columns)
    else:  # a softmax couples the columns: the weight is that of the row's class
        torch.testing.assert_close(after, before * columns[labels.clamp(min=0)][:, None])


@pytest.mark.parametrize("name", sorted(set(MAKE) - {"ghmc", "qfl"}))
def test_single_samples_weigh_as_in_the_sum(name):
    loss = MAKE[name](class_weights=WEIGHTS)
    logits, labels, quality = a_step(loss)
    loss.eval()
    total = loss(logits, labels, 1.0, *quality)
    rows = loss.per_row(logits, labels, *quality)
    torch.testing.assert_close(rows.sum(), total)
    torch.testing.assert_close(gradient(rows.sum(), logits), gradient(total, logits))


def test_collected_gradients_contain_the_weights_and_their_ratio_does_not():
    plain, weighted = EqualizedFocalLoss(C), EqualizedFocalLoss(C, class_weights=WEIGHTS)
    logits, labels, _ = a_step(plain)
    plain(logits, labels)
    weighted(logits, labels)
    torch.testing.assert_close(weighted.neg_grad, plain.neg_grad * WEIGHTS)
    torch.testing.assert_close(weighted.pos_neg, plain.pos_neg)


def test_given_weights_are_no_state_and_counted_ones_are():
    given, counted = FocalLoss(class_weights=WEIGHTS), FocalLoss()
    counted.weigh_classes(WEIGHTS, from_data=True)
    assert list(FocalLoss().state_dict()) == list(given.state_dict()) == []
    again = FocalLoss()
    again.expect_counts(C, power=0.5)
    held = again.class_weights
    again.load_state_dict(counted.state_dict())
    assert torch.equal(again.class_weights, WEIGHTS)
    again.weigh_classes(2 * WEIGHTS, from_data=True)
    assert again.class_weights is held  # whoever holds the buffer keeps doing so


def test_a_loss_that_waits_for_counts_does_not_train():
    loss = BCELoss()
    loss.expect_counts(C, power=0.5)
    logits, labels, _ = a_step(loss)
    with pytest.raises(RuntimeError, match="has not been counted; .* MODEL.CLASS_WEIGHTS.COUNTS"):
        loss(logits, labels)
    assert torch.isfinite(loss.eval()(logits, labels))
    loss.train().weigh_classes(WEIGHTS, from_data=True)
    assert torch.isfinite(loss(logits, labels))


@pytest.mark.parametrize("bad", [-1.0, float("nan"), float("inf")])
def test_other_weights_are_refused(bad):
    with pytest.raises(ValueError, match="Class weights must be 0 or more"):
        FocalLoss(class_weights=[1.0, bad])


def test_a_loss_of_your_own_says_whether_it_multiplies_by_them():
    class Mine(ClsLoss):
        pass

    assert not Mine().weighs_classes and Mine().class_weights is None
