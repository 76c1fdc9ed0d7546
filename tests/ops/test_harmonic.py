"""Properties, gradients and refusals of the harmonic operations."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ext.ops.harmonic import (
    check_gamma,
    class_entropy,
    harmonic_factors,
    harmonic_iou_loss,
    literal_slopes,
    task_contrastive_loss,
)

LOSSES = st.lists(st.floats(0, 80), min_size=1, max_size=8)


def doubles(values, grad=False):
    return torch.tensor(values, dtype=torch.float64, requires_grad=grad)


@settings(max_examples=40, deadline=None)
@given(LOSSES, st.floats(0, 80))
def test_factors_lie_in_the_unit_interval_and_cross_over(cls_losses, loc):
    cls_loss = doubles(cls_losses)
    loc_loss = torch.full_like(cls_loss, loc)
    beta_r, beta_c = harmonic_factors(cls_loss, loc_loss)
    assert ((beta_r >= 0) & (beta_r <= 1) & (beta_c >= 0) & (beta_c <= 1)).all()
    torch.testing.assert_close(beta_r, torch.exp(-loc_loss))
    torch.testing.assert_close(beta_c, torch.exp(-cls_loss))


def test_softmax_beta_c_is_the_score():
    logits = torch.randn(5, 4, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 3, 0])
    ce = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    _, beta_c = harmonic_factors(ce, torch.zeros_like(ce))
    torch.testing.assert_close(beta_c, logits.softmax(-1)[torch.arange(5), labels])


def test_cls_exponent_replaces_the_class_loss_in_beta_c_only():
    ce, loc, other = doubles([1.0, 2.0]), doubles([0.5, 0.1]), doubles([3.0, 0.0])
    beta_r, beta_c = harmonic_factors(ce, loc, cls_exponent=other)
    torch.testing.assert_close(beta_r, torch.exp(-loc))
    torch.testing.assert_close(beta_c, torch.exp(-other))


def test_detached_factors_are_constants_and_literal_ones_pass_gradcheck():
    ce, loc = doubles([0.3, 2.0, 4.5], grad=True), doubles([0.2, 1.0, 3.0], grad=True)

    def objective(ce, loc, detach):
        beta_r, beta_c = harmonic_factors(ce, loc, detach=detach)
        return ((1 + beta_r) * ce + (1 + beta_c) * loc).sum()

    assert torch.autograd.gradcheck(lambda c, l: objective(c, l, False), (ce, loc))
    grads = torch.autograd.grad(objective(ce, loc, True), (ce, loc))
    torch.testing.assert_close(grads[0], 1 + torch.exp(-loc.detach()))
    torch.testing.assert_close(grads[1], 1 + torch.exp(-ce.detach()))


def test_literal_slopes_are_the_gradient_of_the_literal_loss():
    ce, loc = doubles([0.1, 4.4, 2.0], grad=True), doubles([3.0, 0.2, 1.0], grad=True)
    beta_r, beta_c = harmonic_factors(ce, loc, detach=False)
    grads = torch.autograd.grad(((1 + beta_r) * ce + (1 + beta_c) * loc).sum(), (ce, loc))
    slopes = literal_slopes(ce, loc)
    torch.testing.assert_close(slopes[0], grads[0])
    torch.testing.assert_close(slopes[1], grads[1])
    assert slopes[0][0] < 0 and slopes[1][1] < 0 and slopes[0][2] > 0


def test_no_positives_gives_empty_factors_with_graph():
    ce = doubles([], grad=True)
    beta_r, beta_c = harmonic_factors(ce, doubles([]))
    total = ((1 + beta_r) * ce).sum() + task_contrastive_loss(ce, ce, ce).sum()
    total.backward()
    assert total.item() == 0 and beta_c.shape == (0,)
    assert ce.grad.shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    ce, loc = torch.tensor([20.0], dtype=dtype), torch.tensor([20.0], dtype=dtype)
    for beta in harmonic_factors(ce, loc):
        assert beta.dtype == torch.float32 and beta.item() > 0
    assert harmonic_iou_loss(ce / 40).dtype == torch.float32
    logits = torch.full((2, 80), 0.0, dtype=dtype)
    assert class_entropy(logits, sigmoid=True).dtype == torch.float32


@settings(max_examples=40, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1))
def test_hiou_falls_with_iou_and_lies_between_iou_loss_and_its_double(iou, gamma):
    value = doubles([iou], grad=True)
    loss = harmonic_iou_loss(value, gamma)
    loss.sum().backward()
    assert value.grad.item() <= 1e-12
    assert 1 - iou <= loss.item() + 1e-12 <= 2**gamma * (1 - iou) + 1e-9


def test_hiou_gradcheck_and_special_cases():
    iou = doubles([0.01, 0.3, 0.8, 0.99], grad=True)
    assert torch.autograd.gradcheck(lambda u: harmonic_iou_loss(u, 0.8), (iou,))
    torch.testing.assert_close(harmonic_iou_loss(iou, 0.0), 1 - iou)
    ends = harmonic_iou_loss(doubles([0.0, 1.0]), 0.8)
    assert ends.tolist() == [1.0, 0.0]


def test_gamma_is_checked():
    for bad in (-0.1, math.inf, math.nan):
        with pytest.raises(ValueError, match="gamma of the harmonic IoU loss"):
            harmonic_iou_loss(doubles([0.5]), bad)
    with pytest.warns(UserWarning, match="gamma 1.5: above 1"):
        check_gamma(1.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_gamma(1.0)


def test_entropy_bounds_and_saturated_logits():
    uniform = class_entropy(torch.zeros(2, 6, dtype=torch.float64), sigmoid=False)
    torch.testing.assert_close(uniform, torch.full((2,), math.log(6), dtype=torch.float64))
    extreme = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4]])
    for sigmoid in (False, True):
        assert torch.isfinite(class_entropy(extreme, sigmoid=sigmoid)).all()
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    for sigmoid in (False, True):
        assert torch.autograd.gradcheck(lambda x, s=sigmoid: class_entropy(x, sigmoid=s), (logits,))


def test_task_contrastive_margin_modes():
    score, iou, entropy = doubles([0.9, 0.5, 0.6]), doubles([0.4, 0.4, 0.4]), doubles([0.0] * 3)
    soft = task_contrastive_loss(score, iou, entropy)
    hard = task_contrastive_loss(score, iou, entropy, mode="hard", margin=0.15)
    torch.testing.assert_close(soft, 0.5 * doubles([0.3, 0.0, 0.0]))
    torch.testing.assert_close(hard, 0.5 * doubles([0.5, 0.0, 0.2]))


@pytest.mark.parametrize("name", ["score", "iou", "entropy"])
def test_task_contrastive_gradient_and_detaching(name):
    inputs = {
        "score": doubles([0.9, 0.1], grad=True),
        "iou": doubles([0.3, 0.8], grad=True),
        "entropy": doubles([0.5, 1.5], grad=True),
    }
    assert torch.autograd.gradcheck(lambda *x: task_contrastive_loss(*x), tuple(inputs.values()))
    task_contrastive_loss(**inputs, **{f"detach_{name}": True}).sum().backward()
    for other, tensor in inputs.items():
        assert (tensor.grad is None) == (other == name)


def test_task_contrastive_weight_does_not_overflow():
    loss = task_contrastive_loss(*(torch.tensor([v]) for v in (1.0, 0.0, 200.0)))
    assert loss.item() == 0.0


def test_bad_input_is_refused_in_one_sentence():
    with pytest.raises(ValueError, match=r"cls_loss \(2,\), loc_loss \(3,\)"):
        harmonic_factors(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match="'subtract' and 'hard', not 'soft'"):
        task_contrastive_loss(torch.zeros(1), torch.zeros(1), torch.zeros(1), mode="soft")
    with pytest.raises(ValueError, match="One value per positive sample"):
        task_contrastive_loss(torch.zeros(1), torch.zeros(2), torch.zeros(1))
