"""The equalized focal loss as a module: its statistics over iterations, and when they move."""

import copy
import json
import logging

import numpy as np
import pytest
import torch
from golden_kit import FOLDER, golden
from process_kit import run_ranks
from torch.utils.checkpoint import checkpoint

from d2ext.config import get_cfg
from d2ext.modeling.losses import (
    CLS_LOSS_REGISTRY,
    EqualizedFocalLoss,
    build_cls_loss,
)
from d2ext.ops.frequency import frequency_groups
from d2ext.ops.sigmoid_losses import quality_focal_loss, sigmoid_focal_loss

GOLDEN = FOLDER / "efl"
STATE = ("pos_grad", "neg_grad", "pos_neg")
STATEFUL = sorted(f.stem for f in GOLDEN.glob("*.npz") if f.stem.startswith(("efl", "eqfl")))
PLAIN = sorted(f.stem for f in GOLDEN.glob("*.npz") if f.stem.startswith(("focal", "qfl")))


def relative_error(got, want):
    got = np.asarray(got.detach().double() if torch.is_tensor(got) else got, dtype=np.float64)
    want = np.asarray(want, dtype=np.float64)
    assert got.shape == want.shape and np.isfinite(got).all()
    top = np.abs(want).max()
    return np.abs(got - want).max() / (top if top > 0 else 1.0)


def make_loss(meta, dtype=torch.float64):
    loss = EqualizedFocalLoss(
        meta["C"],
        alpha=meta["alpha"] if meta["kind"] == "efl" else 0.25,
        gamma_b=meta["gamma_b"],
        scale=meta["s"],
        loss_weight=meta["loss_weight"],
        quality=meta["kind"] == "eqfl",
    )
    return loss.to(dtype).train()


def read_step(data, meta, step, dtype):
    """Logits, labels, normalizer and quality (or None) of an iteration, or of (rank, iteration)."""
    logits = torch.tensor(data["logits"][step], dtype=dtype).reshape(-1, meta["C"])
    labels = torch.tensor(data["targets_d2"][step]).reshape(-1)
    normalizer = float(data["normalizer"][step[-1] if isinstance(step, tuple) else step])
    quality = None
    if "scores" in data.files:
        quality = torch.tensor(data["scores"][step], dtype=dtype).reshape(-1)
    return logits.requires_grad_(), labels, normalizer, quality


def random_step(rows=20, classes=4, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, classes, generator=g) * 2
    return logits.requires_grad_(), torch.randint(-1, classes + 1, (rows,), generator=g)


def state_of(loss):
    return {name: getattr(loss, name).clone() for name in STATE}


def same_state(a, b):
    return all(torch.equal(a[name], b[name]) for name in STATE)


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("case", [c for c in STATEFUL if "dist2" not in c])
def test_equals_the_authors_over_all_iterations(case, precision):
    data = golden("efl", case)
    meta = json.loads(str(data["meta"]))
    dtype = torch.float64 if precision == "f64" else torch.float32
    # The authors' EFL is inexact or not finite at extreme logits; "exact" is the closed form.
    source = "exact" if "extreme" in case else precision
    tolerance = 1e-12 if precision == "f64" else 5e-6
    loss = make_loss(meta, dtype)
    for step in range(meta["T"]):
        logits, labels, normalizer, quality = read_step(data, meta, step, dtype)
        assert relative_error(loss.gamma, data[f"gamma_{source}"][step]) <= tolerance
        value = loss(logits, labels, normalizer, quality)
        value.backward()
        assert relative_error(value, data[f"loss_{source}"][step].reshape(())) <= tolerance
        want = data[f"grad_{source}"][step].reshape(logits.shape)
        assert relative_error(logits.grad, want) <= tolerance
        for name in STATE:
            want = data[f"{name}_{source}"][step]
            assert relative_error(getattr(loss, name), want) <= tolerance, name


def test_extreme_logits_stay_near_the_authors_where_those_are_finite():
    data = golden("efl", "efl_extreme30")
    meta = json.loads(str(data["meta"]))
    loss = make_loss(meta)
    for step in range(meta["T"]):
        value = loss(*read_step(data, meta, step, torch.float64)[:3])
        assert relative_error(value, data["loss_f64"][step]) <= 2e-5
    assert not np.isfinite(data["loss_f32"]).all()  # what the stable form is for


@pytest.mark.parametrize("precision", ["f64", "f32"])
@pytest.mark.parametrize("case", PLAIN)
def test_plain_losses_equal_the_authors(case, precision):
    data = golden("efl", case)
    meta = json.loads(str(data["meta"]))
    dtype, tolerance = (torch.float64, 1e-12) if precision == "f64" else (torch.float32, 5e-6)
    for step in range(meta["T"]):
        logits, labels, normalizer, quality = read_step(data, meta, step, dtype)
        if meta["kind"] == "focal":
            value = sigmoid_focal_loss(logits, labels, alpha=meta["alpha"], gamma=meta["gamma_b"])
        else:
            value = quality_focal_loss(logits, labels, quality, gamma=meta["gamma_b"])
        (value / normalizer).backward()
        assert relative_error(value / normalizer, data[f"loss_{precision}"][step]) <= tolerance
        want = data[f"grad_{precision}"][step].reshape(logits.shape)
        assert relative_error(logits.grad, want) <= tolerance


def test_statistics_do_not_depend_on_the_order_of_channels():
    from detectron2.modeling.meta_arch.dense_detector import permute_to_N_HWA_K

    data = golden("efl", "layout_maps")
    meta = json.loads(str(data["meta"]))
    maps = [torch.tensor(data[f"map{i}"]) for i in range(len(meta["levels"]))]
    logits = torch.cat([permute_to_N_HWA_K(m, meta["C"]) for m in maps], dim=1)
    assert relative_error(logits, data["logits"]) <= 1e-6
    labels = torch.tensor(data["targets"])
    labels = torch.where(labels > 0, labels - 1, torch.where(labels == 0, meta["C"], -1))
    loss = EqualizedFocalLoss(meta["C"]).double()
    loss(logits.flatten(0, 1).requires_grad_(), labels.flatten(), float(data["normalizer"]))
    for name in STATE:
        assert relative_error(getattr(loss, name), data[f"{name}_anchor_first"]) <= 1e-6


def _check_rank(rank, case):
    data = golden("efl", case)
    meta = json.loads(str(data["meta"]))
    loss = make_loss(meta)
    for step in range(meta["T"]):
        logits, labels, normalizer, quality = read_step(data, meta, (rank, step), torch.float64)
        value = loss(logits, labels, normalizer, quality)
        value.backward()
        assert relative_error(value, data["loss_f64"][rank, step]) <= 1e-12
        want = data["grad_f64"][rank, step].reshape(logits.shape)
        assert relative_error(logits.grad, want) <= 1e-12
        for name in STATE:
            assert relative_error(getattr(loss, name), data[f"{name}_f64"][step]) <= 1e-12
    # A rank without samples, and then sums that are not finite on one rank only.
    logits = torch.randn(3, meta["C"]).double()
    labels = torch.tensor([0, meta["C"], 1])
    quality = torch.rand(3).double() if meta["kind"] == "eqfl" else None
    rows = 0 if rank == 0 else 3
    loss(logits[:rows], labels[:rows], 1.0, quality if quality is None else quality[:rows])
    before = state_of(loss)
    if rank == 1:
        logits[0, 0] = float("nan")
    loss(logits, labels, 1.0, quality)
    assert same_state(state_of(loss), before) and int(loss._num_skipped) == 1
    gathered = [torch.zeros(3, meta["C"]).double() for _ in range(2)]
    torch.distributed.all_gather(gathered, torch.stack(list(before.values())))
    assert torch.equal(gathered[0], gathered[1])


@pytest.mark.dist
def test_two_ranks_share_their_statistics():
    cases = [case for case in STATEFUL if "dist2" in case]
    assert len(cases) == 2
    run_ranks(lambda rank: [_check_rank(rank, case) for case in cases])


def test_reads_the_ratio_before_it_collects():
    logits, labels = random_step()
    loss = EqualizedFocalLoss(4)
    want = sigmoid_focal_loss(logits, labels) / 3.0
    torch.testing.assert_close(loss(logits, labels, 3.0), want)
    assert not torch.equal(loss.pos_neg, torch.ones(4))
    again = loss(logits, labels, 3.0)
    assert again > want


def test_normalizer_may_be_a_tensor_of_any_precision():
    logits, labels = random_step()
    a, b = EqualizedFocalLoss(4), EqualizedFocalLoss(4)
    value = a(logits, labels, torch.tensor(3.0, dtype=torch.float64, requires_grad=True))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, b(logits, labels, 3.0))
    torch.testing.assert_close(a.pos_grad, b.pos_grad)


def test_only_training_with_gradients_moves_the_statistics():
    loss = EqualizedFocalLoss(4)
    logits, labels = random_step()
    loss(logits, labels, 1.0)
    before = state_of(loss)
    assert (before["pos_grad"] > 0).any()
    with torch.no_grad():
        loss(logits, labels, 1.0)
    loss.eval()
    loss(logits, labels, 1.0)
    loss.per_row(logits, labels)
    loss.train()
    loss.per_row(logits, labels)
    assert same_state(state_of(loss), before)
    loss(logits, labels, 1.0)
    assert not same_state(state_of(loss), before)


def test_no_samples_still_makes_a_graph_and_an_iteration():
    loss = EqualizedFocalLoss(4)
    logits = torch.zeros(0, 4, requires_grad=True)
    value = loss(logits, torch.zeros(0, dtype=torch.long), 1.0)
    value.backward()
    assert value == 0 and logits.grad.shape == (0, 4)
    assert torch.equal(loss.pos_neg, torch.zeros(4))  # as the authors': 0 / (0 + 1e-10)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing_counts_once_and_keeps_the_gradient(reentrant):
    plain, repeated = EqualizedFocalLoss(4), EqualizedFocalLoss(4)
    for seed in range(3):
        logits, labels = random_step(seed=seed)
        plain(logits * 1.5, labels, 2.0).backward()
        want, logits.grad = logits.grad, None

        def tail(x, labels=labels):
            return repeated(x * 1.5, labels, 2.0)

        checkpoint(tail, logits, use_reentrant=reentrant).backward()
        torch.testing.assert_close(logits.grad, want)
        for name, value in state_of(repeated).items():
            torch.testing.assert_close(value, getattr(plain, name))
        with torch.no_grad():  # a validation pass in training mode, between two iterations
            repeated(logits, labels, 1.0)


def test_amp_scale_and_autocast_do_not_reach_the_statistics():
    logits, labels = random_step()
    plain, scaled = EqualizedFocalLoss(4), EqualizedFocalLoss(4)
    plain(logits.detach().bfloat16().float().requires_grad_(), labels, 2.0)
    half = logits.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = scaled(half, labels, 2.0)
    (value * 65536).backward()
    assert value.dtype == torch.float32 and half.grad.dtype == torch.bfloat16
    assert same_state(state_of(plain), state_of(scaled))


def test_not_finite_sums_are_left_out_with_one_warning(caplog):
    loss = EqualizedFocalLoss(4)
    logits, labels = random_step()
    loss(logits, labels, 1.0)
    before = state_of(loss)
    bad = logits.detach().clone()
    bad[labels >= 0] = float("nan")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert torch.isnan(loss(bad.requires_grad_(), labels, 1.0))
    assert same_state(state_of(loss), before)
    assert len([r for r in caplog.records if "not finite" in r.message]) == 1
    assert loss.stats()["num_skipped"] == 2
    loss(logits, labels, 1.0)
    assert (loss.pos_grad >= before["pos_grad"]).all() and torch.isfinite(loss.pos_neg).all()


def test_state_is_saved_and_continues():
    first, second = EqualizedFocalLoss(4), EqualizedFocalLoss(4)
    assert sorted(first.state_dict()) == sorted(STATE)
    first(*random_step(), 1.0)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    logits, labels = random_step(seed=1)
    assert torch.equal(first(logits, labels, 1.0), second(logits, labels, 1.0))
    assert same_state(state_of(first), state_of(second))


def test_updates_happen_in_place_and_copies_are_independent():
    loss = EqualizedFocalLoss(4)
    pointers = [getattr(loss, name).data_ptr() for name in STATE]
    average = copy.deepcopy(loss)
    loss(*random_step(), 1.0)
    assert pointers == [getattr(loss, name).data_ptr() for name in STATE]
    assert torch.equal(average.pos_neg, torch.ones(4))


def test_statistics_never_become_half_precision():
    loss = EqualizedFocalLoss(4)
    loss(*random_step(), 1.0)
    before = state_of(loss)
    for cast in (loss.half, loss.bfloat16):
        cast()
        assert loss.pos_grad.dtype == torch.float32 and same_state(state_of(loss), before)
    assert loss.double().pos_grad.dtype == torch.float64


@pytest.mark.parametrize("quality", [False, True])
def test_rows_sum_to_the_loss(quality):
    loss = EqualizedFocalLoss(4, loss_weight=1.5, quality=quality)
    logits, labels = random_step()
    target = torch.rand(20) if quality else None
    loss(logits, labels, 1.0, target)
    rows = loss.per_row(logits, labels, target)
    (got,) = torch.autograd.grad(rows.sum(), logits)
    value = loss(logits, labels, 1.0, target)
    (want,) = torch.autograd.grad(value, logits)
    torch.testing.assert_close(rows.sum(), value)
    torch.testing.assert_close(got, want)


def test_stats_tell_groups_apart():
    loss = EqualizedFocalLoss(5, gamma_b=2.0, scale=8.0)
    loss.pos_neg.copy_(torch.tensor([1.0, 0.5, 0.25, 0.0, 0.0]))
    groups = frequency_groups([500, 100, 11, 10, 0])
    assert groups == {"rare": [3, 4], "common": [1, 2], "frequent": [0]}
    stats = loss.stats({**groups, "none": []})
    assert stats["ratio_frequent"] == 1.0 and stats["gamma_frequent"] == 2.0
    assert stats["ratio_common"] == 0.375 and stats["gamma_common"] == 7.0
    assert stats["gamma_rare"] == 10.0 and "ratio_none" not in stats
    assert stats["ratio_mean"] == pytest.approx(0.35)
    assert stats["gamma_mean"] == pytest.approx(7.2)
    assert (stats["fraction_ratio_0"], stats["fraction_ratio_1"]) == (0.4, 0.2)


def test_built_from_a_config():
    cfg = get_cfg()
    cfg.MODEL.EFL.SCALE = 4.0
    cfg.MODEL.EFL.ALPHA = 0.4
    for name, quality in (("efl", False), ("eqfl", True)):
        loss = build_cls_loss(cfg, name, place="dense", num_classes=7)
        assert isinstance(loss, CLS_LOSS_REGISTRY.get(name)) and loss.needs_quality is quality
        assert (loss.num_classes, loss.scale, loss.alpha) == (7, 4.0, 0.4)


def test_wrong_arguments_are_refused():
    for kwargs, message in (
        ({"num_classes": 0}, "num_classes"),
        ({"num_classes": 3, "gamma_b": 0.0}, "gamma_b"),
        ({"num_classes": 3, "scale": -1.0}, "scale"),
    ):
        with pytest.raises(ValueError, match=message):
            EqualizedFocalLoss(**kwargs)
    logits, labels = random_step()
    with pytest.raises(ValueError, match="needs quality"):
        EqualizedFocalLoss(4, quality=True)(logits, labels, 1.0)
    with pytest.raises(ValueError, match="takes no quality"):
        EqualizedFocalLoss(4)(logits, labels, 1.0, torch.rand(20))
    with pytest.raises(ValueError, match="one value a class"):
        EqualizedFocalLoss(5)(logits, labels, 1.0)
