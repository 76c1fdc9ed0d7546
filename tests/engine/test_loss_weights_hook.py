"""The loss-weight hook: groups, exact gradients, ranks, resuming, no waiting for the device."""

import copy
import json
import logging
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from golden_kit import golden
from process_kit import run_ranks

from d2ext.config import get_cfg
from d2ext.engine.hooks.loss_groups import find_groups, static_weights
from d2ext.engine.hooks.loss_weights import LossWeights, build_loss_weights
from d2ext.ops.loss_weights import AdaptiveLossWeight, FAMOWeight, GradNormWeight

RULES = [(variant, interval) for variant in (1, 2) for interval in (10, 100)]
RPN = ("loss_rpn_cls", "loss_rpn_loc")
ROI = ("loss_cls", "loss_box_reg")


def hook(variant=2, interval=10, groups=("auto",), static=None, sync=True, **kw):
    make = lambda: AdaptiveLossWeight(variant, interval, **kw)  # noqa: E731
    return LossWeights(static=static, make_weighting=make, groups=groups, sync=sync)


def run(weigher, cls, box, names=RPN):
    """Feed losses as scalars; returns the weight each step used."""
    used = []
    for c, b in zip(cls, box):
        losses = dict(zip(names, torch.tensor([c, b], dtype=torch.float32)))
        weighted = weigher.on_losses(losses)
        used.append((weighted[names[0]] / losses[names[0]]).item() if c else float("nan"))
        assert weighted[names[1]] is losses[names[1]]
    return np.array(used)


def random_losses(steps, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(0.5, 3, steps), rng.uniform(0.1, 1, steps)


@pytest.mark.parametrize("variant, interval", RULES)
@pytest.mark.parametrize("family", ["rpn_like", "regime_switch", "spiky"])
def test_reference_sequences(family, variant, interval):
    data = golden("alwa", family)
    used = run(hook(variant, interval), data["raw_cls_sum_f64"], data["raw_box_sum_f64"])
    expected = data[f"alwa{variant}_C{interval}/f64/weight_used"]
    np.testing.assert_allclose(used, expected, atol=5e-5)


@pytest.mark.parametrize("variant, interval", RULES)
def test_resume_inside_a_window(variant, interval):
    data = golden("alwa", "resume")
    key = f"alwa{variant}_C{interval}"
    cut = int(data[f"{key}/cut_iter"])
    cls, box = data["raw_cls_levels"], data["raw_box_levels"]
    first, second = hook(variant, interval), hook(variant, interval)
    run(first, cls[:cut], box[:cut])
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    assert second.state_dict() == first.state_dict()  # also before its first step
    used = run(second, cls[cut:], box[cut:])
    np.testing.assert_allclose(used, data[f"{key}/exact_resume/weight_used"], atol=5e-5)
    untouched = run(first, cls[cut:], box[cut:])  # asking for the state changed nothing
    np.testing.assert_array_equal(untouched, used)


def _ranks_main(path):
    from detectron2.utils import comm

    rank, data = comm.get_rank(), golden("alwa", "multirank")
    # The reference has four ranks; two processes with the mean of two ranks each see the same mean.
    halves = {True: slice(2 * rank, 2 * rank + 2), False: slice(rank, rank + 1)}
    out = {}
    for variant, interval in RULES:
        for sync, mine in halves.items():
            cls, box = (data[f"raw_{n}_levels"][mine].mean(0) for n in ("cls", "box"))
            weigher = hook(variant, interval, sync=sync)
            assert weigher.per_rank_state == (not sync)
            used = out[f"{variant}_{interval}_{sync}"] = []
            for c, b in zip(cls, box):
                # The weight itself: a quotient of losses differs by rounding among ranks.
                used.append(weigher.weights.get("loss_rpn_cls", 1.0))
                run(weigher, [c], [b])
    Path(path, f"{rank}.json").write_text(json.dumps(out))


@pytest.mark.dist
def test_two_processes(tmp_path):
    run_ranks(lambda rank: _ranks_main(tmp_path))
    data = golden("alwa", "multirank")
    ranks = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    for variant, interval in RULES:
        key = f"alwa{variant}_C{interval}"
        for rank, out in enumerate(ranks):
            used = out[f"{variant}_{interval}_True"]
            assert used == ranks[0][f"{variant}_{interval}_True"]
            np.testing.assert_allclose(used, data[f"{key}/synced_mean/weight_used"], atol=5e-5)
            alone = data[f"{key}/author_per_rank/weight_used"][rank]
            np.testing.assert_allclose(out[f"{variant}_{interval}_False"], alone, atol=5e-5)


def test_gradients_scale_exactly():
    weigher = hook(interval=4)
    run(weigher, *random_losses(8))
    weight = weigher.weights["loss_rpn_cls"]
    assert 0 < weight < 1
    x = torch.randn(5, requires_grad=True)
    losses = {"loss_rpn_cls": (x**2).sum(), "loss_rpn_loc": x.abs().sum(), "loss_mask": x.sum()}
    weighted = weigher.on_losses(losses)
    for name, factor in (("loss_rpn_cls", weight), ("loss_rpn_loc", 1.0), ("loss_mask", 1.0)):
        plain = torch.autograd.grad(losses[name], x, retain_graph=True)[0]
        scaled = torch.autograd.grad(weighted[name], x, retain_graph=True)[0]
        assert torch.equal(scaled, plain * factor)
    assert weighted["loss_mask"] is losses["loss_mask"]


def test_several_groups_have_a_weight_each():
    together = hook(interval=5, groups=("rpn", "roi"))
    alone = {names: hook(interval=5, groups=(g,)) for names, g in ((RPN, "rpn"), (ROI, "roi"))}
    series = {names: random_losses(23, seed) for seed, names in enumerate((RPN, ROI))}
    for step in range(23):
        losses = {
            name: torch.tensor(values[step], dtype=torch.float32)
            for names, pair in series.items()
            for name, values in zip(names, pair)
        }
        weighted = together.on_losses(losses)
        for names, single in alone.items():
            expected = single.on_losses({name: losses[name] for name in names})
            assert all(torch.equal(weighted[name], expected[name]) for name in names)
    assert together.weights["loss_cls"] != together.weights["loss_rpn_cls"]


def test_sums_of_several_losses_form_one_side():
    weigher = hook(interval=5, groups=("mine=loss_a+loss_b/loss_c",))
    reference = hook(interval=5)
    for c, b in zip(*random_losses(12)):
        value = torch.tensor(c, dtype=torch.float32)
        losses = {"loss_a": value / 4, "loss_b": 3 * value / 4, "loss_c": torch.tensor(b)}
        weigher.on_losses(losses)
        reference.on_losses({"loss_rpn_cls": value, "loss_rpn_loc": torch.tensor(b)})
    weight = reference.weights["loss_rpn_cls"]
    assert weigher.weights == pytest.approx({"loss_a": weight, "loss_b": weight, "loss_c": 1.0})


def test_the_host_reads_the_losses_only_when_a_window_closes(monkeypatch):
    reads = []
    for name in ("item", "tolist", "__float__", "__bool__", "cpu", "numpy"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, _original=original, **kw):
            reads.append(step)
            return _original(self, *args, **kw)

        monkeypatch.setattr(torch.Tensor, name, counted)
    weigher = hook(interval=10, groups=("rpn", "roi"), static={"loss_*": 2.0})
    step, losses = 0, {n: torch.tensor(1.0) for n in (*RPN, *ROI)}
    for step in range(35):  # noqa: B007  (read by counted)
        weigher.on_losses(losses)
    assert reads == [9, 19, 29]


def test_non_finite_losses_are_not_recorded_and_not_hidden():
    clean, dirty = hook(interval=4), hook(interval=4)
    cls, box = random_losses(11)
    run(clean, cls, box)
    for c, b in zip(cls, box):
        run(dirty, [c], [b])
        losses = {"loss_rpn_cls": torch.tensor(float("nan")), "loss_rpn_loc": torch.tensor(1.0)}
        assert dirty.on_losses(losses)["loss_rpn_cls"].isnan()
    assert dirty.weights == clean.weights


def test_half_precision_losses_are_recorded_in_float32():
    weigher = hook(interval=2)
    for value in (300.0, 301.0):
        weigher.on_losses({n: torch.tensor(value, dtype=torch.bfloat16) for n in RPN})
    window = weigher.state_dict()["groups"]["rpn"]
    assert window["num_windows"] == 1


class TestGroups:
    FASTER = ["loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc"]
    CASCADE = [
        *(f"{n}_stage{k}" for k in (0, 1, 2) for n in ("loss_cls", "loss_box_reg")),
        "loss_mask",
        *RPN,
    ]

    @pytest.mark.parametrize(
        "wanted, losses, expected",
        [
            (["auto"], FASTER, ["rpn"]),
            (["all"], FASTER, ["rpn", "roi"]),
            (["auto"], ["loss_cls", "loss_box_reg"], ["dense"]),
            (["auto"], ["loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"], ["fcos"]),
            (["auto"], ["loss_cls_pos", "loss_loc", "loss_cls_neg"], ["dw"]),
            (["all"], CASCADE, ["rpn", "roi_stage0", "roi_stage1", "roi_stage2"]),
            (["roi"], CASCADE, ["roi_stage0", "roi_stage1", "roi_stage2"]),
            (["roi", "rpn", "all"], FASTER, ["roi", "rpn"]),
            (["m = loss_mask / loss_rpn_loc"], CASCADE, ["m"]),
        ],
    )
    def test_found_by_name(self, wanted, losses, expected):
        assert [group.name for group in find_groups(wanted, losses)] == expected

    @pytest.mark.parametrize(
        "wanted, error, message",
        [
            (["fcos"], KeyError, "no loss loss_fcos_cls; its losses are loss_cls, loss_box_reg"),
            (["x=loss_cls/loss_iou"], KeyError, "no loss loss_iou; its losses are loss_cls"),
            (["head"], ValueError, "not one of auto, all, rpn, dense, roi, fcos, dw"),
            (["x=loss_cls"], ValueError, "with at least one loss on each side"),
            (["x=/loss_cls"], ValueError, "with at least one loss on each side"),
            (["dense", "roi"], ValueError, "loss_cls both into 'dense' and into 'roi'"),
            (["a=loss_cls/loss_box_reg", "a=loss_rpn_cls/loss_rpn_loc"], ValueError, "two groups"),
        ],
    )
    def test_refused(self, wanted, error, message):
        with pytest.raises(error, match=message):
            find_groups(wanted, self.FASTER)

    def test_nothing_known(self):
        with pytest.raises(KeyError, match=r"model's losses \(loss_sem_seg\)"):
            find_groups(["auto"], ["loss_sem_seg"])

    def test_a_loss_that_disappears_is_named(self):
        weigher = hook(groups=("rpn",))
        run(weigher, [1.0], [1.0])
        with pytest.raises(KeyError, match="loss_rpn_loc, which group 'rpn'"):
            weigher.on_losses({"loss_rpn_cls": torch.tensor(1.0)})


class TestStatic:
    def test_patterns_multiply(self):
        names = ["loss_cls", "loss_box_reg_stage0", "loss_mask"]
        weights = static_weights({"loss_box_reg*": 2, "*stage0": 0.5, "loss_mask": 3.0}, names)
        assert weights == {"loss_box_reg_stage0": 1.0, "loss_mask": 3.0}

    def test_weighs_and_keeps_the_rest(self):
        weigher = LossWeights(static={"loss_rpn*": 2.0})
        losses = {n: torch.tensor(1.5) for n in (*RPN, *ROI)}
        weighted = weigher.on_losses(losses)
        assert weighted["loss_rpn_loc"].item() == 3.0 and weighted["loss_cls"].item() == 1.5
        assert losses["loss_rpn_loc"].item() == 1.5 and weigher.state_dict() == {}

    def test_unfitting_pattern_lists_the_losses(self):
        with pytest.raises(KeyError, match=r"'loss_rpm\*', which fits no loss.*loss_cls"):
            LossWeights(static={"loss_rpm*": 2.0}).on_losses({"loss_cls": torch.tensor(1.0)})

    def test_a_loss_missing_in_a_later_step_is_fine(self):
        weigher = LossWeights(static={"loss_mask": 2.0})
        weigher.on_losses({"loss_cls": torch.tensor(1.0), "loss_mask": torch.tensor(1.0)})
        assert list(weigher.on_losses({"loss_cls": torch.tensor(1.0)})) == ["loss_cls"]

    def test_adaptive_weights_see_the_statically_weighted_losses(self):
        cls, box = random_losses(12)
        combined, scaled = hook(static={"loss_rpn_loc": 3.0}, interval=4), hook(interval=4)
        for c, b in zip(cls, box):
            losses = {"loss_rpn_cls": torch.tensor(c), "loss_rpn_loc": torch.tensor(b)}
            weighted = combined.on_losses(losses)
            expected = scaled.on_losses({**losses, "loss_rpn_loc": losses["loss_rpn_loc"] * 3.0})
            assert all(torch.equal(weighted[n], expected[n]) for n in RPN)

    @pytest.mark.parametrize("weight", [-1.0, float("inf"), float("nan"), "two", True])
    def test_bad_weights_are_refused(self, weight):
        with pytest.raises(ValueError, match="must be a number of at least 0"):
            LossWeights(static={"loss_cls": weight})


class TestState:
    def saved(self, **kw):
        weigher = hook(interval=5, **kw)
        run(weigher, *random_losses(13))
        return weigher, copy.deepcopy(weigher.state_dict())

    def test_other_settings_warn_and_keep_the_weight(self, caplog):
        weigher, state = self.saved()
        other = hook(interval=7)
        other.load_state_dict(state)
        with caplog.at_level(logging.WARNING):
            run(other, [1.0], [1.0])
        assert "resume with the settings of the saved run" in caplog.text
        assert other.weights == weigher.weights

    def test_other_groups_warn_and_start_anew(self, caplog):
        _, state = self.saved()
        other = hook(interval=5, groups=("roi",))
        other.load_state_dict(state)
        with caplog.at_level(logging.WARNING):
            run(other, [1.0], [1.0], names=ROI)
        assert "no loss weights for group 'roi' (it has rpn)" in caplog.text

    def test_other_losses_of_a_group_warn_and_empty_its_window(self, caplog):
        losses = dict(zip("abc", torch.tensor([2.0, 3.0, 1.0])))
        weigher, other = (hook(interval=5, groups=(f"m={name}/c",)) for name in "ab")
        for _ in range(3):
            weigher.on_losses(losses)
        other.load_state_dict(weigher.state_dict())
        with caplog.at_level(logging.WARNING):
            other.on_losses(losses)
        assert "group 'm' of the checkpoint weighs other losses (a / c)" in caplog.text
        assert other.state_dict()["groups"]["m"]["window_cls"] == [3.0]

    def test_new_limits_hold_at_once(self):
        """As the warning of a stuck weight advises: it resumes with other keys."""
        weigher, state = self.saved()
        assert weigher.weights[RPN[0]] < 0.9
        limited = hook(interval=5, stats_on="raw", min_weight=0.9)
        limited.load_state_dict(state)
        run(limited, [1.0], [1.0])
        assert limited.weights[RPN[0]] == 0.9

    def test_other_method_warns_and_starts_anew(self, caplog):
        _, state = self.saved()
        cfg = get_cfg()
        cfg.SOLVER.ALWA.ENABLED, cfg.SOLVER.ALWA.METHOD = True, "dwa"
        other = build_loss_weights(cfg)
        other.load_state_dict(state)
        with caplog.at_level(logging.WARNING):
            other.on_losses({n: torch.tensor(1.0) for n in RPN})
        assert "asks for DynamicWeightAverage" in caplog.text
        assert set(other.weights.values()) == {1.0}

    def test_loading_into_a_running_hook_replaces_everything(self):
        weigher, state = self.saved()
        run(weigher, *random_losses(9, seed=4))
        weigher.load_state_dict(state)
        assert weigher.state_dict() == state

    def test_state_can_be_read_without_code(self, tmp_path):
        _, state = self.saved()
        torch.save(state, tmp_path / "state.pth")
        assert torch.load(tmp_path / "state.pth", weights_only=True) == state


def test_logged_when_a_window_closes():
    weigher = hook(interval=4)
    with EventStorage() as storage:
        for i, (c, b) in enumerate(zip(*random_losses(9))):
            run(weigher, [c], [b])
            assert ("alwa/rpn/w_cls" in storage.latest()) == (i >= 3)
            storage.step()
        latest = {k: v for k, (v, _) in storage.latest().items()}
    assert set(latest) == {
        f"alwa/rpn/{k}" for k in ("w_cls", "w_box", "X", "Y", "fired", "updates")
    }
    assert latest["alwa/rpn/w_cls"] == pytest.approx(weigher.weights["loss_rpn_cls"])


def test_a_stuck_weight_is_warned_of_once_with_the_keys_that_help(caplog):
    data = golden("alwa", "rpn_like")
    cls, box = data["raw_cls_sum_f64"], data["raw_box_sum_f64"]
    with caplog.at_level(logging.WARNING):
        run(hook(interval=100, stats_on="raw", min_weight=0.1), cls, box)
        assert not caplog.records
        run(hook(interval=100), cls, box)
    assert len(caplog.records) == 1
    for key in ("STATS_ON raw", "MIN_WEIGHT 0.1", "START_ITER"):
        assert key in caplog.text


class TestGradNorm:
    """Gradients are measured in the last step of a window, and nothing else of the step changes."""

    def weigher(self, layer="shared.*"):
        model = torch.nn.ModuleDict({"shared": torch.nn.Linear(3, 2, bias=False)})
        weigher = LossWeights(make_weighting=lambda: GradNormWeight(interval=3), layer=layer)
        weigher.trainer = SimpleNamespace(raw_model=model)
        return weigher, model

    def losses(self, model, seed):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(seed))
        y = model["shared"](x)
        return {RPN[0]: (y[:, 0] - 1).square().mean(), RPN[1]: 3 * y[:, 1].abs().mean()}

    def test_norms_are_those_of_the_gradients(self):
        weigher, model = self.weigher()
        for step in range(6):
            losses = self.losses(model, step)
            norms = [
                float(torch.autograd.grad(x, model["shared"].weight, retain_graph=True)[0].norm())
                for x in losses.values()
            ]
            weigher.on_losses(losses)
            (machine,) = weigher.groups.values()
            if step % 3 == 2:
                np.testing.assert_allclose(machine.norms, norms, rtol=1e-5)
        assert machine.num_updates == 2 and sum(machine.weights) == pytest.approx(2)
        other, _ = self.weigher()
        other.load_state_dict(json.loads(json.dumps(weigher.state_dict())))
        other.on_losses(self.losses(model, 9))
        assert other.weights == weigher.weights

    def test_a_layer_that_is_not_there_is_refused(self):
        weigher, model = self.weigher("backbone.*")
        for step in range(2):
            weigher.on_losses(self.losses(model, step))
        with pytest.raises(ValueError, match="GRADNORM_LAYER 'backbone.*' fits no trained"):
            weigher.on_losses(self.losses(model, 2))


def test_famo_resumes_inside_a_window():
    cls, box = random_losses(25)
    make = lambda: LossWeights(make_weighting=lambda: FAMOWeight(interval=4))  # noqa: E731
    whole, first = make(), make()
    for weigher, stop in ((whole, 25), (first, 14)):
        for c, b in zip(cls[:stop], box[:stop]):
            weigher.on_losses(dict(zip(RPN, torch.tensor([c, b], dtype=torch.float32))))
    second = make()
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    for c, b in zip(cls[14:], box[14:]):
        second.on_losses(dict(zip(RPN, torch.tensor([c, b], dtype=torch.float32))))
    assert second.weights == whole.weights and sum(whole.weights.values()) == pytest.approx(2)
