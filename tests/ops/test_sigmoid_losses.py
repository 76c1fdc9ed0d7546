"""The fused sigmoid losses against plain forms, upstream's and finite differences."""

import fvcore.nn
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from d2ext.ops import sigmoid_kernel
from d2ext.ops.precision import smallest_gradient
from d2ext.ops.sigmoid_kernel import negative_terms
from d2ext.ops.sigmoid_losses import (
    equalized_focal_loss,
    equalized_quality_focal_loss,
    quality_focal_loss,
    sigmoid_bce_loss,
    sigmoid_focal_loss,
    sigmoid_loss_per_row,
)

KINDS = ("bce", "focal", "qfl", "efl", "eqfl")


def make_inputs(rows, classes, seed=0, spread=3.0, dtype=torch.float64, ignored=0.2):
    g = torch.Generator().manual_seed(seed)
    logits = (torch.randn(rows, classes, generator=g, dtype=torch.float64) * spread - 1).to(dtype)
    labels = torch.randint(0, classes + 1, (rows,), generator=g)
    labels[torch.rand(rows, generator=g) < ignored] = -1
    quality = torch.rand(rows, generator=g, dtype=torch.float64).to(dtype)
    ratio = torch.rand(classes, generator=g, dtype=torch.float64).to(dtype)
    return logits, labels, quality, ratio


def fused(kind, logits, labels, quality, ratio, weights=None):
    """The loss of a kind, with the sums of gradients where it has them."""
    more = {"class_weights": weights}
    if kind == "bce":
        return (sigmoid_bce_loss(logits, labels, **more),)
    if kind == "focal":
        return (sigmoid_focal_loss(logits, labels, alpha=0.3, gamma=1.5, **more),)
    if kind == "qfl":
        return (quality_focal_loss(logits, labels, quality, gamma=2.5, **more),)
    more.update(gamma_b=1.5, scale=6.0)
    if kind == "efl":
        return equalized_focal_loss(logits, labels, ratio, alpha=0.3, **more)
    return equalized_quality_focal_loss(logits, labels, quality, ratio, **more)


def plain_rows(kind, logits, labels, quality, ratio, weights=None):
    """Loss of each row with a one-hot target, straight from the papers' formulas."""
    classes = logits.shape[1]
    target = F.one_hot(labels.clamp(min=0), classes + 1)[:, :classes].to(logits.dtype)
    gamma, weight, alpha = torch.zeros_like(ratio), torch.ones_like(ratio), None
    if kind == "focal":
        gamma, alpha = gamma + 1.5, 0.3
    elif kind == "qfl":
        gamma = gamma + 2.5
    elif kind in ("efl", "eqfl"):
        gamma = 1.5 + 6.0 * (1 - ratio)
        weight, alpha = gamma / 1.5, (0.3 if kind == "efl" else None)
    if kind in ("qfl", "eqfl"):
        target = target * quality[:, None]
    p = logits.sigmoid()
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    loss = weight * bce * (target - p).abs() ** gamma * (1 if weights is None else weights)
    if alpha is not None:
        loss = loss * (alpha * target + (1 - alpha) * (1 - target))
    return (loss.sum(dim=1) * (labels >= 0)) if len(labels) else loss.sum(dim=1)


def close(got, want, tolerance):
    scale = max(float(want.detach().abs().max()), 1e-12) if want.numel() else 1.0
    torch.testing.assert_close(got, want, atol=tolerance * scale, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows,classes", [(40, 7), (23, 1), (1, 5), (0, 3), (300, 2)])
@pytest.mark.parametrize("weighted", [False, True])
def test_loss_gradient_and_sums_equal_the_plain_form(kind, rows, classes, weighted, monkeypatch):
    monkeypatch.setattr(sigmoid_kernel, "_CHUNK_CPU", 64)  # several chunks, the last one short
    logits, labels, quality, ratio = make_inputs(rows, classes, seed=rows)
    weights = torch.linspace(0.2, 3.0, classes, dtype=torch.float64) if weighted else None
    inputs = (logits.requires_grad_(), labels, quality, ratio, weights)
    want = plain_rows(kind, *inputs).sum()
    (want_grad,) = torch.autograd.grad(want, logits)
    got, *sums = fused(kind, *inputs)
    (got_grad,) = torch.autograd.grad(got, logits)
    close(got, want, 1e-12)
    close(got_grad, want_grad, 1e-12)
    if sums:
        is_pos = F.one_hot(labels.clamp(min=0), classes + 1)[:, :classes] * (labels >= 0)[:, None]
        close(sums[0], (want_grad.abs() * is_pos).sum(0), 1e-12)
        close(sums[1], (want_grad.abs() * (1 - is_pos)).sum(0), 1e-12)
        assert not sums[0].requires_grad and not sums[1].requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind):
    logits, labels, quality, ratio = make_inputs(6, 4, seed=3)
    assert (labels < 0).any() and ((labels >= 0) & (labels < 4)).any()
    torch.autograd.gradcheck(
        lambda z: fused(kind, z, labels, quality, ratio)[0], logits.requires_grad_()
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("weighted", [False, True])
def test_rows_sum_to_the_fused_loss_and_have_its_gradient(kind, weighted):
    logits, labels, quality, ratio = make_inputs(50, 6, seed=4)
    logits.requires_grad_()
    weights = torch.linspace(0.2, 3.0, 6, dtype=torch.float64) if weighted else None
    rows = sigmoid_loss_per_row(
        logits, labels, kind=kind, alpha=0.3, gamma=2.5 if kind == "qfl" else 1.5,
        grad_ratio=ratio, gamma_b=1.5, scale=6.0, quality=quality, class_weights=weights,
    )  # fmt: skip
    close(rows, plain_rows(kind, logits, labels, quality, ratio, weights), 1e-12)
    assert (rows[labels < 0] == 0).all()
    (got,) = torch.autograd.grad(rows.sum(), logits)
    (want,) = torch.autograd.grad(fused(kind, logits, labels, quality, ratio, weights)[0], logits)
    close(got, want, 1e-12)


@pytest.mark.parametrize("classes", [1, 80])
@pytest.mark.parametrize("alpha,gamma", [(0.25, 2.0), (-1.0, 2.0), (0.25, 0.0), (0.5, 1.0)])
def test_focal_equals_fvcore_in_float32(classes, alpha, gamma):
    # An untrained head's logits are all equal, which makes rounding errors add up.
    for spread in (0.0, 2.0, 5.0):
        logits, labels, _, _ = make_inputs(400, classes, spread=spread, dtype=torch.float32)
        logits = (logits - 3.6).requires_grad_()
        labels[labels < 0] = classes
        target = F.one_hot(labels, classes + 1)[:, :classes].float()
        want = fvcore.nn.sigmoid_focal_loss(
            logits, target, alpha=alpha, gamma=gamma, reduction="sum"
        )
        got = sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=gamma)
        close(got, want, 1e-6)
        (want_grad,), (got_grad,) = (torch.autograd.grad(x, logits) for x in (want, got))
        # Beyond a logit of 8 fvcore's own rounding reaches 1.2e-6, so look at the truth instead.
        exact_in = logits.detach().double().requires_grad_()
        exact = sigmoid_focal_loss(exact_in, labels, alpha=alpha, gamma=gamma)
        (exact_grad,) = torch.autograd.grad(exact, exact_in)
        close(got_grad.double(), exact_grad, 5e-7)
        close(got_grad, want_grad, 1e-6 if logits.max() < 8 else 2e-6)


def test_bce_equals_torch_in_float32():
    logits, labels, _, _ = make_inputs(400, 20, dtype=torch.float32, ignored=0)
    logits.requires_grad_()
    target = F.one_hot(labels, 21)[:, :20].float()
    want = F.binary_cross_entropy_with_logits(logits, target, reduction="sum")
    got = sigmoid_bce_loss(logits, labels)
    close(got, want, 1e-6)
    close(*(torch.autograd.grad(x, logits)[0] for x in (got, want)), 1e-6)


def test_scale_zero_or_balanced_classes_are_the_focal_loss():
    logits, labels, quality, ratio = make_inputs(50, 6)
    ones = torch.ones_like(ratio)
    want = sigmoid_focal_loss(logits, labels)
    close(equalized_focal_loss(logits, labels, ratio, scale=0.0)[0], want, 1e-13)
    close(equalized_focal_loss(logits, labels, ones, scale=8.0)[0], want, 1e-13)
    want = quality_focal_loss(logits, labels, quality)
    close(equalized_quality_focal_loss(logits, labels, quality, ones)[0], want, 1e-13)


def test_quality_one_is_the_focal_loss_without_alpha():
    logits, labels, quality, _ = make_inputs(50, 6)
    want = sigmoid_focal_loss(logits, labels, alpha=-1)
    close(quality_focal_loss(logits, labels, torch.ones_like(quality)), want, 1e-13)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    kind=st.sampled_from(KINDS),
    rows=st.integers(0, 9),
    classes=st.integers(1, 5),
    extreme=st.sampled_from([0.0, 17.0, 40.0, 90.0, 1e4]),
    double=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_always_finite_and_of_the_right_sign(kind, rows, classes, extreme, double, seed):
    dtype = torch.float64 if double else torch.float32
    logits, labels, quality, ratio = make_inputs(rows, classes, seed=seed, dtype=dtype)
    logits = (logits + extreme * torch.sign(logits)).requires_grad_()
    loss, *sums = fused(kind, logits, labels, quality, ratio)
    loss.backward()
    assert loss.dtype == dtype and loss.shape == ()
    for value in (loss, logits.grad, *sums):
        assert torch.isfinite(value).all()
    for value in (loss, *sums):
        assert (value >= 0).all()
    is_neg = torch.ones_like(logits, dtype=torch.bool)
    is_pos_row = (labels >= 0) & (labels < classes)
    is_neg[is_pos_row, labels[is_pos_row]] = False
    assert (logits.grad[is_neg] >= 0).all()
    assert (logits.grad[labels < 0] == 0).all()
    if kind not in ("qfl", "eqfl"):
        assert (logits.grad[~is_neg] <= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_exact_or_zero_but_never_subnormal(kind, dtype):
    # Subnormal numbers slow the backward pass of a CPU's convolutions down several times.
    _, labels, quality, ratio = make_inputs(700, 4)
    end = 800.0 if dtype == torch.float64 else 120.0
    logits = torch.linspace(-end, end, 2800, dtype=torch.float64).view(4, 700).t().to(dtype)
    leaf, exact = logits.clone().requires_grad_(), logits.double().requires_grad_()
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    quality, ratio = quality.to(wide), ratio.to(wide)
    (got,) = torch.autograd.grad(fused(kind, leaf, labels, quality, ratio)[0] / 100, leaf)
    quality, ratio = quality.double(), ratio.double()
    rows = plain_rows(kind, exact, labels, quality, ratio)
    (want,) = torch.autograd.grad(rows.sum() / 100, exact)
    size = got.double().abs()
    assert not ((size > 0) & (size < torch.finfo(dtype).tiny)).any()
    dropped = (size == 0) & (want != 0)
    assert dropped.any() and want[dropped].abs().max() <= smallest_gradient(dtype) / 100 * 1.01
    tolerance = {torch.float32: 2e-4, torch.bfloat16: 1e-2, torch.float64: 1e-9}[dtype]
    torch.testing.assert_close(got.double()[~dropped], want[~dropped], rtol=tolerance, atol=1e-9)


@pytest.mark.parametrize("kind", KINDS)
def test_ignored_rows_contribute_nothing_even_if_not_finite(kind):
    logits, labels, quality, ratio = make_inputs(30, 4)
    keep = labels >= 0
    want = fused(kind, logits[keep], labels[keep], quality[keep], ratio)
    bad, bad_quality = logits.clone(), quality.clone()
    bad[~keep], bad_quality[~keep] = float("nan"), float("inf")
    bad.requires_grad_()
    got = fused(kind, bad, labels, bad_quality, ratio)
    for a, b in zip(got, want):
        close(a, b, 1e-13)
    got[0].backward()
    assert (bad.grad[~keep] == 0).all() and torch.isfinite(bad.grad).all()


def test_not_finite_logits_of_valid_rows_are_not_hidden():
    logits, labels, _, ratio = make_inputs(10, 4, ignored=0)
    logits[3, 2] = float("nan")
    loss, pos, neg = equalized_focal_loss(logits, labels, ratio)
    assert torch.isnan(loss) and (torch.isnan(pos[2]) or torch.isnan(neg[2]))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_is_computed_in_float32(kind, dtype):
    logits, labels, quality, ratio = make_inputs(60, 5, dtype=torch.float32)
    logits = logits.to(dtype)
    want_in = logits.float().requires_grad_()
    want, *_ = fused(kind, want_in, labels, quality, ratio)
    (want * 1024).backward()
    logits.requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got, *_ = fused(kind, logits, labels, quality, ratio)
    assert got.dtype == torch.float32 and torch.equal(got, want)
    (got * 1024).backward()
    assert logits.grad.dtype == dtype
    step = 2 * torch.finfo(dtype).eps
    torch.testing.assert_close(logits.grad.float(), want_in.grad, atol=1e-3, rtol=step)


def test_float16_gradients_do_not_vanish_before_the_scale_is_applied():
    logits = torch.full((4, 3), -5.0, dtype=torch.float16, requires_grad=True)
    labels = torch.full((4,), 3)
    loss, _, neg = equalized_focal_loss(logits, labels, torch.zeros(3))
    assert 0 < neg[0] / 4 < torch.finfo(torch.float16).tiny * 1e-4
    (loss * 2.0**60).backward()
    assert (logits.grad > 0).all()


@pytest.mark.parametrize("factor", [1.0, 2.5])
def test_backward_twice_with_a_retained_graph(factor):
    logits, labels, quality, ratio = make_inputs(20, 4)
    logits.requires_grad_()
    loss = fused("eqfl", logits, labels, quality, ratio)[0] * factor
    first = torch.autograd.grad(loss, logits, retain_graph=True)[0].clone()
    loss.backward(retain_graph=True)
    loss.backward()
    close(logits.grad, 2 * first, 1e-14)


def test_a_gradient_that_is_scaled_in_place_is_nobody_elses():
    """On a CPU the gradient of the loss itself needs no factor: it must not be the one kept."""
    logits, labels, _, _ = make_inputs(20, 4)
    logits.requires_grad_()
    loss = sigmoid_focal_loss(logits, labels)
    (first,) = torch.autograd.grad(loss, logits, retain_graph=True)
    before = first.clone()
    first.mul_(0.5)
    (second,) = torch.autograd.grad(loss, logits, retain_graph=True)
    assert torch.equal(second, before)
    loss.backward(retain_graph=True)
    logits.grad.zero_()
    loss.backward()
    assert torch.equal(logits.grad, before)


def test_class_weights_of_another_length_are_refused():
    logits, labels, quality, ratio = make_inputs(5, 3)
    for kind in KINDS:
        with pytest.raises(ValueError, match=r"class_weights must hold one value a class, \(3,\)"):
            fused(kind, logits, labels, quality, ratio, torch.ones(4))


def test_second_derivatives_are_refused():
    logits, labels, _, _ = make_inputs(5, 3)
    logits.requires_grad_()
    loss = sigmoid_focal_loss(logits, labels) * torch.ones((), requires_grad=True)
    (grad,) = torch.autograd.grad(loss, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


def test_only_the_gradient_is_kept_for_the_backward_pass():
    logits, labels, quality, ratio = make_inputs(30, 4, dtype=torch.float32)
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        fused("efl", logits.clone().requires_grad_(), labels, quality, ratio)
        assert kept == [logits.numel()]
        kept.clear()
        fused("efl", logits, labels, quality, ratio)
        with torch.no_grad():
            fused("efl", logits.clone().requires_grad_(), labels, quality, ratio)
    assert not kept


@pytest.mark.parametrize("kind", KINDS)
def test_no_operation_waits_for_a_gpu(kind):
    from torch._subclasses.fake_tensor import FakeTensorMode

    # On fake CUDA tensors every look at a value raises, as does an output of unknown size.
    with FakeTensorMode():
        logits = torch.randn(30, 4, device="cuda").requires_grad_()
        labels = torch.randint(-1, 5, (30,), device="cuda")
        quality, ratio = torch.rand(30, device="cuda"), torch.rand(4, device="cuda")
        assert fused(kind, logits, labels, quality, ratio)[0].device.type == "cuda"
        sigmoid_loss_per_row(logits, labels, kind=kind, grad_ratio=ratio, quality=quality)


@pytest.mark.parametrize("gamma", [0.0, 2.0, 3.5])
def test_elementwise_kernel_compiles_as_one_graph(gamma):
    torch._dynamo.reset()
    compiled = torch.compile(negative_terms, fullgraph=True, backend="aot_eager")
    z = torch.linspace(-30, 30, 61)
    for got, want in zip(compiled(z, gamma), negative_terms(z, gamma)):
        torch.testing.assert_close(got, want)


def test_sums_of_many_equal_entries_stay_exact_in_float32():
    logits = torch.full((200_000, 2), -4.6)
    labels = torch.full((200_000,), 2)
    loss, _, neg = equalized_focal_loss(logits, labels, torch.ones(2))
    one, _, one_neg = equalized_focal_loss(logits[:1].double(), labels[:1], torch.ones(2))
    torch.testing.assert_close(loss.double(), one * 200_000, rtol=1e-6, atol=0)
    torch.testing.assert_close(neg.double(), one_neg * 200_000, rtol=1e-6, atol=0)


def test_wrong_arguments_are_refused():
    logits, labels, quality, ratio = make_inputs(5, 3)
    with pytest.raises(ValueError, match=r"logits \(M, C\) and labels \(M,\)"):
        sigmoid_focal_loss(logits[None], labels[None])
    with pytest.raises(ValueError, match="one value a row"):
        quality_focal_loss(logits, labels, quality[:2])
    with pytest.raises(ValueError, match="one value a class"):
        equalized_focal_loss(logits, labels, ratio[:2])
    with pytest.raises(ValueError, match="gamma_b must be above 0"):
        equalized_focal_loss(logits, labels, ratio, gamma_b=0.0)
    with pytest.raises(ValueError, match="kind must be"):
        sigmoid_loss_per_row(logits, labels, kind="softmax")
    with pytest.raises(ValueError, match="needs grad_ratio"):
        sigmoid_loss_per_row(logits, labels, kind="efl")
    with pytest.raises(ValueError, match="needs quality"):
        sigmoid_loss_per_row(logits, labels, kind="qfl")
