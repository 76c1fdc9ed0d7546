"""Numerics campaign, part 1: the sigmoid losses.

Shapes: M rows, C classes.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numerics_kit import (
    DTYPES,
    INF,
    NAN,
    as_leaf64,
    assert_close,
    assert_finite,
    bad_values,
    classes,
    covers,
    draw_labels,
    draw_logits,
    dtypes,
    generator,
    gradient,
    leaf,
    rows,
    seeds,
)
from torch.nn import functional as F

from d2ext.ops.class_weights import effective_weight, inverse_frequency_weights, softmax_loss
from d2ext.ops.host import asking_is_free
from d2ext.ops.precision import drop_negligible, full_precision, smallest_gradient
from d2ext.ops.sigmoid_kernel import (
    check_shapes,
    compute_dtype,
    fused_sigmoid_loss,
    negative_terms,
    set_sigmoid_kernel,
    sigmoid_kernel_of,
    split_labels,
)
from d2ext.ops.sigmoid_losses import (
    equalization_v2_loss,
    equalization_v2_weights,
    equalized_focal_loss,
    equalized_quality_focal_loss,
    quality_focal_loss,
    sigmoid_bce_loss,
    sigmoid_focal_loss,
    sigmoid_loss_per_row,
)

KINDS = ("bce", "focal", "qfl", "efl", "eqfl", "eqlv2")
settings_of_losses = st.fixed_dictionaries(
    {
        "alpha": st.sampled_from([-1.0, 0.0, 0.25, 1.0]),
        "gamma": st.sampled_from([0.0, 1.0, 1.5, 2.0, 5.0]),
        "gamma_b": st.sampled_from([1.0, 1.5, 2.0]),
        "scale": st.sampled_from([0.0, 4.0, 8.0]),
    }
)


def draw(num_rows, num_classes, seed, dtype):
    g = generator(seed + 2)
    quality = torch.rand(num_rows, generator=g, dtype=torch.float64)
    # Ends of the range, and what a score of 1 meets exactly.
    quality = torch.where(quality < 0.2, 0.0, torch.where(quality > 0.8, 1.0, quality)).to(dtype)
    ratio = (torch.rand(num_classes, generator=g, dtype=torch.float64) * 1.4 - 0.2).clamp(0, 1)
    logits = draw_logits((num_rows, num_classes), seed, dtype)
    return logits, draw_labels(num_rows, num_classes, seed), quality, ratio.to(dtype)


def loss_of(kind, logits, labels, quality, ratio, alpha, gamma, gamma_b, scale):
    """The public function of a kind: (loss, sums of gradients where it has them)."""
    if kind == "bce":
        return (sigmoid_bce_loss(logits, labels),)
    if kind == "focal":
        return (sigmoid_focal_loss(logits, labels, alpha=alpha, gamma=gamma),)
    if kind == "qfl":
        return (quality_focal_loss(logits, labels, quality, gamma=gamma),)
    if kind == "eqlv2":
        return equalization_v2_loss(logits, labels, ratio)
    factors = {"gamma_b": gamma_b, "scale": scale}
    if kind == "efl":
        return equalized_focal_loss(logits, labels, ratio, alpha=alpha, **factors)
    return equalized_quality_focal_loss(logits, labels, quality, ratio, **factors)


def plain_rows(kind, logits, labels, quality, ratio, alpha, gamma, gamma_b, scale):
    """(M,) losses in float64, with a one-hot target, as the papers write them."""
    num_rows, num_classes = logits.shape
    valid = labels >= 0
    z = torch.where(valid[:, None], logits, torch.zeros_like(logits))
    hot = (torch.arange(num_classes) == labels[:, None]).double()
    target = hot if kind not in ("qfl", "eqfl") else hot * quality.double()[:, None]
    power = torch.full((num_classes,), {"bce": 0.0, "eqlv2": 0.0}.get(kind, gamma)).double()
    weight = torch.ones_like(hot)
    if kind in ("efl", "eqfl"):
        power = gamma_b + scale * (1 - ratio.double())
        weight = (power / gamma_b).expand_as(hot)
    if kind in ("focal", "efl") and alpha >= 0:
        weight = weight * (alpha * hot + (1 - alpha) * (1 - hot))
    if kind == "eqlv2":
        f = 1 / (1 + torch.exp(-12 * (ratio.double() - 0.8)))
        weight = hot * (1 + 4 * (1 - f)) + (1 - hot) * f
    cross_entropy = target * F.softplus(-z) + (1 - target) * F.softplus(z)
    if kind in ("qfl", "eqfl"):
        modulation = (target - z.sigmoid()).abs() ** power
    else:
        modulation = torch.exp(power * F.logsigmoid(torch.where(hot > 0, -z, z)))
    return (weight * modulation * cross_entropy).sum(1) * valid


@given(st.sampled_from(KINDS), rows, classes, dtypes, seeds, settings_of_losses)
@covers(
    sigmoid_bce_loss,
    sigmoid_focal_loss,
    quality_focal_loss,
    equalized_focal_loss,
    equalized_quality_focal_loss,
    equalization_v2_loss,
    fused_sigmoid_loss,
)
def test_losses_equal_the_plain_form(kind, num_rows, num_classes, dtype, seed, options):
    logits, labels, quality, ratio = draw(num_rows, num_classes, seed, dtype)
    logits, exact = leaf(logits), as_leaf64(logits)
    loss, *sums = loss_of(kind, logits, labels, quality, ratio, **options)
    want = plain_rows(kind, exact, labels, quality, ratio, **options).sum()
    grad, want_grad = gradient(loss, logits), gradient(want, exact)
    wide = compute_dtype(logits)
    assert loss.dtype == wide and grad.dtype == dtype
    assert_finite(loss, grad, *sums)
    assert_close(loss, want, wide)
    assert_close(grad, want_grad, dtype)
    if sums:
        hot = torch.arange(num_classes) == labels[:, None]
        assert_close(sums[0], (want_grad.abs() * hot).sum(0), wide)
        assert_close(sums[1], (want_grad.abs() * ~hot).sum(0), wide)
    if kind != "eqlv2":
        kwargs = {k: options[k] for k in ("alpha", "gamma", "gamma_b", "scale")}
        row = sigmoid_loss_per_row(
            logits, labels, kind=kind, grad_ratio=ratio, quality=quality, **kwargs
        )
        assert_close(row, plain_rows(kind, exact, labels, quality, ratio, **options), wide)
        assert_close(gradient(row.sum(), logits), want_grad, dtype)


@given(st.sampled_from(KINDS[:-1]), rows, classes, dtypes, seeds, st.sampled_from([0.25, 0.5]))
@covers(sigmoid_loss_per_row, quality_focal_loss, equalized_quality_focal_loss)
def test_exponents_below_one_have_finite_gradients(kind, num_rows, num_classes, dtype, seed, gamma):
    logits, labels, quality, ratio = draw(num_rows, num_classes, seed, dtype)
    ratio = torch.ones_like(ratio)  # so that the exponent is gamma_b
    logits = leaf(logits)
    options = {"alpha": 0.25, "gamma": gamma, "gamma_b": gamma, "scale": 8.0}
    loss, *sums = loss_of(kind, logits, labels, quality, ratio, **options)
    row = sigmoid_loss_per_row(
        logits, labels, kind=kind, grad_ratio=ratio, quality=quality, **options
    )
    assert_finite(loss, gradient(loss, logits), *sums, row, gradient(row.sum(), logits))
    assert_close(row.sum(), loss, compute_dtype(logits))


@given(st.sampled_from(KINDS), classes, dtypes, seeds, bad_values)
@covers(
    sigmoid_bce_loss,
    sigmoid_focal_loss,
    quality_focal_loss,
    equalized_focal_loss,
    equalized_quality_focal_loss,
    equalization_v2_loss,
    sigmoid_loss_per_row,
)
def test_a_bad_logit_is_seen_or_is_its_limit(kind, num_classes, dtype, seed, bad):
    logits, labels, quality, ratio = draw(6, num_classes, seed, dtype)
    labels[2] = min(seed % (num_classes + 2), num_classes)
    column = seed % num_classes
    options = {"alpha": 0.25, "gamma": 2.0, "gamma_b": 2.0, "scale": 8.0}
    poisoned, limit = logits.clone(), logits.double()
    poisoned[2, column] = bad
    limit[2, column] = torch.tensor(bad).clamp(-1e6, 1e6)
    loss, *sums = loss_of(kind, poisoned, labels, quality, ratio, **options)
    if bad != bad:
        assert torch.isnan(loss)
        assert not sums or not torch.isfinite(torch.stack(sums)[:, column]).all()
    elif torch.isfinite(loss):
        want = plain_rows(kind, limit, labels, quality, ratio, **options).sum()
        assert_close(loss, want, compute_dtype(logits))
    if kind != "eqlv2":
        row = sigmoid_loss_per_row(
            poisoned, labels, kind=kind, grad_ratio=ratio, quality=quality, **options
        )
        others = torch.arange(6) != 2
        assert_finite(row[others])
        assert bad == bad or torch.isnan(row[2])
        if torch.isfinite(row[2]):
            want = plain_rows(kind, limit, labels, quality, ratio, **options)
            assert_close(row, want, compute_dtype(logits))


@given(st.sampled_from(KINDS), classes, dtypes, seeds, bad_values)
@covers(fused_sigmoid_loss, sigmoid_loss_per_row)
def test_bad_numbers_of_ignored_rows_are_of_no_matter(kind, num_classes, dtype, seed, bad):
    logits, labels, quality, ratio = draw(7, num_classes, seed, dtype)
    labels[3] = -1
    options = {"alpha": 0.25, "gamma": 1.5, "gamma_b": 1.5, "scale": 8.0}
    want = loss_of(kind, logits, labels, quality, ratio, **options)[0]
    logits[3], quality[labels < 0] = bad, bad
    quality[labels == num_classes] = bad  # nor is the quality of the background
    logits = leaf(logits)
    loss = loss_of(kind, logits, labels, quality, ratio, **options)[0]
    assert torch.equal(loss, want)
    values = [loss]
    if kind != "eqlv2":
        row = sigmoid_loss_per_row(
            logits, labels, kind=kind, grad_ratio=ratio, quality=quality, **options
        )
        assert row[3] == 0
        values.append(row.sum())
    for value in values:
        grad = gradient(value, logits)
        assert (grad[3] == 0).all()
        assert_finite(grad)


@pytest.mark.parametrize("kind", KINDS)
def test_bad_quality_and_ratio_of_what_counts_are_seen(kind):
    for bad in (NAN, INF):
        logits, labels, quality, ratio = draw(4, 3, 0, torch.float32)
        labels[1], quality[1], ratio[:] = 1, bad, 0.5
        options = {"alpha": 0.25, "gamma": 2.0, "gamma_b": 2.0, "scale": 8.0}
        loss = loss_of(kind, logits, labels, quality, ratio, **options)[0]
        assert torch.isfinite(loss) == (kind not in ("qfl", "eqfl"))
        quality[1], ratio[2] = 0.5, NAN
        loss = loss_of(kind, logits, labels, quality, ratio, **options)[0]
        assert torch.isnan(loss) == (kind in ("efl", "eqfl", "eqlv2"))


@given(st.sampled_from(KINDS), st.integers(1, 3), st.integers(1, 3), seeds, settings_of_losses)
@covers(fused_sigmoid_loss, sigmoid_loss_per_row)
def test_gradcheck(kind, num_rows, num_classes, seed, options):
    _, labels, quality, ratio = draw(num_rows, num_classes, seed, torch.float64)
    logits = leaf(draw_logits((num_rows, num_classes), seed, torch.float64, extreme=False))
    quality = quality.clamp(0.1, 0.9)
    # |q - p| has a corner.
    own = logits.detach().sigmoid() - quality[:, None]
    logits = leaf(torch.where(own.abs() < 1e-3, logits.detach() + 0.1, logits.detach()))
    torch.autograd.gradcheck(
        lambda z: loss_of(kind, z, labels, quality, ratio, **options)[0], logits
    )


@given(rows, classes, st.sampled_from(DTYPES[2:]), seeds, st.sampled_from([0, 0.5, 1.0, 2, 7.5]))
@covers(negative_terms)
def test_negative_terms(num_rows, num_classes, dtype, seed, gamma):
    z = draw_logits((num_rows, num_classes), seed, dtype)
    exact = as_leaf64(z)
    want = torch.exp(gamma * F.logsigmoid(exact)) * F.softplus(exact)
    loss, slope = negative_terms(z, gamma)
    assert_close(loss, want, dtype)
    assert_close(slope, gradient(want.sum(), exact), dtype)
    if gamma:
        columns = torch.full((num_classes,), float(gamma), dtype=dtype)
        for got, other in zip(negative_terms(z, columns), (loss, slope)):
            assert_close(got, other, dtype)


@given(classes, dtypes, seeds)
@covers(equalization_v2_weights)
def test_weights_of_eql_v2(num_classes, dtype, seed):
    g = generator(seed)
    ratio = (torch.rand(num_classes, generator=g, dtype=torch.float64) * 3).to(dtype)
    ratio[seed % num_classes] = [0.0, 1e4, INF][seed % 3]
    pos, neg = equalization_v2_weights(ratio)
    exact = ratio.double().clamp(max=1e6)
    want = 1 / (1 + torch.exp(-12 * (exact - 0.8)))
    assert pos.dtype == neg.dtype == compute_dtype(ratio)
    assert_close(neg, want, pos.dtype)
    assert_close(pos, 1 + 4 * (1 - want), pos.dtype)
    ratio[0] = NAN
    for weight in equalization_v2_weights(ratio):
        assert torch.isnan(weight[0])
        assert_finite(weight[1:])
    for bad in (0.0, -1.0, NAN):
        with pytest.raises(ValueError, match="gamma of EQL v2 must be above 0"):
            equalization_v2_weights(ratio, gamma=bad)


@given(rows, classes, dtypes, seeds, st.sampled_from([torch.int32, torch.int64]))
@covers(check_shapes, compute_dtype, split_labels)
def test_what_labels_mean(num_rows, num_classes, dtype, seed, label_type):
    labels = draw_labels(num_rows, num_classes, seed).to(label_type)
    if num_rows:
        labels[0] = num_classes + seed % 7  # above C: background
    is_pos, ignored, column = split_labels(labels, num_classes)
    for label, positive, hidden, c in zip(labels.tolist(), is_pos, ignored, column.tolist()):
        assert bool(positive) == (0 <= label < num_classes) and bool(hidden) == (label == -1)
        assert 0 <= c < num_classes and (not positive or c == label)
    logits = torch.zeros(num_rows, num_classes, dtype=dtype)
    check_shapes(logits, labels, labels)
    wide = {torch.float64: torch.float64}.get(dtype, torch.float32)
    assert compute_dtype(logits) == wide
    for wrong in (logits[None], logits[:, 0], torch.zeros(num_rows + 1, num_classes)):
        with pytest.raises(ValueError, match=r"take logits \(M, C\) and labels \(M,\)"):
            check_shapes(wrong, labels)
    with pytest.raises(ValueError, match="one value a row"):
        check_shapes(logits, labels, torch.zeros(num_rows + 1))


@given(rows, dtypes)
@covers(full_precision)
def test_half_precision_alone_is_widened(num_rows, dtype):
    tensor = torch.rand(num_rows).to(dtype)
    wide = full_precision(tensor)
    assert wide.dtype == torch.promote_types(dtype, torch.float32)
    assert torch.equal(wide, tensor.to(wide.dtype))
    assert (wide is tensor) == (dtype not in (torch.float16, torch.bfloat16))


@given(rows, dtypes, seeds)
@covers(drop_negligible, smallest_gradient)
def test_only_what_is_nearly_subnormal_is_dropped(num_rows, dtype, seed):
    wide = full_precision(torch.zeros((), dtype=dtype)).dtype
    limit = smallest_gradient(dtype)
    assert limit == smallest_gradient(wide) == torch.finfo(wide).smallest_normal * 2**26
    power = torch.rand(num_rows, generator=generator(seed), dtype=torch.float64) * 60 - 30
    grad = torch.cat([limit * 2**power, torch.tensor([0.0, limit, NAN, INF]).double()])
    grad = torch.cat([grad, -grad]).to(wide)
    want = torch.where(grad.abs() <= limit, torch.zeros_like(grad), grad)
    assert torch.equal(drop_negligible(grad).nan_to_num(), want.nan_to_num())
    assert torch.equal(drop_negligible(grad).isnan(), grad.isnan())


@given(st.text(max_size=6), rows, dtypes)
@covers(asking_is_free, set_sigmoid_kernel, sigmoid_kernel_of)
def test_the_form_of_the_losses(name, num_rows, dtype):
    """On the CPU it is torch's unless the other is asked for; unknown names change nothing."""
    tensor = torch.zeros(num_rows, 2, dtype=dtype)
    assert asking_is_free(tensor) and not asking_is_free(tensor.to("meta"))
    try:
        for known in ("torch", "triton"):
            set_sigmoid_kernel(known)
            assert sigmoid_kernel_of(tensor) == known
        set_sigmoid_kernel("auto")
        if name not in ("torch", "triton", "auto"):
            with pytest.raises(ValueError, match="set_sigmoid_kernel takes one of"):
                set_sigmoid_kernel(name)
        assert sigmoid_kernel_of(tensor) == "torch"
    finally:
        set_sigmoid_kernel(None)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(0, 0), (4, 0), (0, 5)])
def test_nothing_to_sum(kind, shape):
    logits = torch.zeros(shape, requires_grad=True)
    labels = torch.full(shape[:1], shape[1])
    quality, ratio = torch.zeros(shape[0]), torch.zeros(shape[1])
    options = {"alpha": 0.25, "gamma": 2.0, "gamma_b": 2.0, "scale": 8.0}
    loss = loss_of(kind, logits, labels, quality, ratio, **options)[0]
    loss.backward()
    assert loss == 0 and logits.grad.shape == shape
    if kind != "eqlv2":
        row = sigmoid_loss_per_row(
            logits, labels, kind=kind, quality=quality, grad_ratio=ratio, **options
        )
        assert row.shape == shape[:1] and row.sum() == 0


@given(rows, classes, seeds, dtypes, st.sampled_from([None, 0.0, 0.5, 1.0]))
@covers(inverse_frequency_weights, effective_weight, softmax_loss)
def test_weighted_softmax(num_rows, num_classes, seed, dtype, power):
    counts = torch.randint(0, 1000, (num_classes,), generator=generator(seed))
    weights = None
    if power is not None:
        weights = inverse_frequency_weights(counts, power=power)
        assert_finite(weights)
        assert abs(weights.mean().item() - 1) < 1e-12 and (weights > 0).all()
        # Rarer classes never weigh less, so the mean object never weighs more.
        assert 0 < effective_weight(weights, counts) <= 1 + 1e-12 or (counts == 0).any()
    logits = leaf(draw_logits((num_rows, num_classes + 1), seed, dtype))
    labels = draw_labels(num_rows, num_classes, seed)
    total = softmax_loss(logits, labels, class_weights=weights)
    plain = as_leaf64(logits)
    factor = torch.ones(num_classes + 1).double()
    factor[:-1] = 1.0 if weights is None else weights
    own = plain.log_softmax(1).gather(1, labels.clamp(min=0)[:, None])[:, 0]
    want = -(own * factor[labels.clamp(min=0)] * (labels >= 0)).sum()
    assert_close(total, want, dtype, scale=max(float(want.detach()), 1.0))
    assert_close(gradient(total, logits), gradient(want, plain), dtype, scale=factor.max())
