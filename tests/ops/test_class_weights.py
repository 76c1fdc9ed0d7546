"""Weights of classes by their frequency, and the softmax loss that takes them."""

import pytest
import torch
from torch.nn import functional as F

from d2ext.ops.class_weights import effective_weight, inverse_frequency_weights, softmax_loss


def test_weights_are_inverse_powers_with_a_mean_of_one():
    weights = inverse_frequency_weights([1, 4, 16], power=0.5)
    torch.testing.assert_close(weights, torch.tensor([12.0, 6.0, 3.0]).double() / 7)
    assert weights.dtype == torch.float64
    assert torch.equal(inverse_frequency_weights([1, 4, 16], power=0.0), torch.ones(3).double())


def test_a_class_without_objects_gets_the_mean_of_the_others():
    weights = inverse_frequency_weights(torch.tensor([2, 0, 1]))
    torch.testing.assert_close(weights, torch.tensor([0.5, 0.75, 1.0]).double() / 0.75)
    assert torch.equal(inverse_frequency_weights([0, 0]), torch.ones(2).double())


def test_the_effective_weight_is_the_mean_over_objects():
    weights = inverse_frequency_weights([90, 10])
    assert weights.mean() == 1
    assert effective_weight(weights, [90, 10]) == pytest.approx(0.9 * 0.2 + 0.1 * 1.8)
    assert effective_weight(weights, [0, 0]) == 1.0


@pytest.mark.parametrize("power", [-0.1, 1.5, float("nan")])
def test_other_powers_are_refused(power):
    with pytest.raises(ValueError, match=r"power must be in \[0, 1\]"):
        inverse_frequency_weights([1, 2], power=power)


def test_negative_counts_are_refused():
    with pytest.raises(ValueError, match="Counts of objects must be 0 or more, not -1"):
        inverse_frequency_weights([1, -1])


def test_softmax_rows_weigh_as_their_class_and_the_background_as_one():
    logits = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, -1, 0])
    weights = torch.tensor([2.0, 0.5, 1.5], dtype=torch.float64)
    rows = F.cross_entropy(logits, labels, reduction="none", ignore_index=-1)
    want = rows * torch.tensor([2.0, 0.5, 1.5, 1.0, 0.0, 2.0])
    torch.testing.assert_close(softmax_loss(logits, labels, class_weights=weights), want.sum())
    got = softmax_loss(logits, labels, class_weights=weights, reduction="none")
    torch.testing.assert_close(got, want)
    torch.autograd.gradcheck(lambda x: softmax_loss(x, labels, class_weights=weights), logits)
    with pytest.raises(ValueError, match=r"one value a class, \(3,\), or one a column, \(4,\)"):
        softmax_loss(logits, labels, class_weights=torch.ones(2))
