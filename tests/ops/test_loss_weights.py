"""Loss-weight state machines: reference sequences, resuming, properties, refusals."""

import json
import math

import numpy as np
import pytest
from golden_kit import FOLDER, golden
from hypothesis import given, settings
from hypothesis import strategies as st

from d2ext.ops.loss_weights import (
    AdaptiveLossWeight,
    DynamicWeightAverage,
    UncertaintyWeight,
    mean_and_std,
)

GOLDEN = FOLDER / "alwa"
FAMILIES = sorted(p.stem for p in GOLDEN.glob("*.npz") if p.stem not in ("multirank", "resume"))
RULES = [(variant, interval) for variant in (1, 2) for interval in (10, 100)]
SWITCHES = {
    "weighted_multiply": {"compose": "multiply"},
    "raw_replace": {"stats_on": "raw"},
    "raw_multiply": {"stats_on": "raw", "compose": "multiply"},
    "weighted_replace_min0.1": {"min_weight": 0.1},
}
PAIRS = st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=60)


def feed(machine, cls, box):
    used = []
    for c, b in zip(cls, box):
        used.append(machine.weight)
        machine.observe(float(c), float(b))
    return np.array(used)


@pytest.mark.parametrize("variant, interval", RULES)
@pytest.mark.parametrize("family", FAMILIES)
def test_authors_rule(family, variant, interval):
    data = golden("alwa", family)
    key = f"alwa{variant}_C{interval}"
    machine = AdaptiveLossWeight(variant=variant, interval=interval)
    updates, used = [], []
    for i, (c, b) in enumerate(zip(data["raw_cls_sum_f64"], data["raw_box_sum_f64"])):
        used.append(machine.weight)
        machine.observe(c, b)
        if (i + 1) % interval == 0:
            updates.append([*machine.last_update.values(), machine.weight])
    np.testing.assert_allclose(used, data[f"{key}/f64/weight_used"], rtol=0, atol=1e-9)
    expected = data[f"{key}/updates"]
    np.testing.assert_allclose(updates, expected[:, 1:], rtol=1e-9, atol=1e-9)
    assert machine.num_updates == int(expected[:, 3].sum())


@pytest.mark.parametrize("variant, interval", RULES)
@pytest.mark.parametrize("switch", SWITCHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_switches(family, switch, variant, interval):
    data = golden("alwa", family)
    machine = AdaptiveLossWeight(variant=variant, interval=interval, **SWITCHES[switch])
    used = feed(machine, data["raw_cls_sum_f64"], data["raw_box_sum_f64"])
    expected = data[f"variant/alwa{variant}_C{interval}/{switch}/weight_used"]
    np.testing.assert_allclose(used, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("variant, interval", RULES)
def test_mean_over_ranks_and_each_rank_alone(variant, interval):
    data = golden("alwa", "multirank")
    key = f"alwa{variant}_C{interval}"
    cls, box = data["raw_cls_levels"], data["raw_box_levels"]
    make = lambda: AdaptiveLossWeight(variant=variant, interval=interval)  # noqa: E731
    together = feed(make(), cls.mean(0), box.mean(0))
    np.testing.assert_allclose(together, data[f"{key}/synced_mean/weight_used"], atol=1e-9)
    for rank, expected in enumerate(data[f"{key}/author_per_rank/weight_used"]):
        np.testing.assert_allclose(feed(make(), cls[rank], box[rank]), expected, atol=1e-9)


@pytest.mark.parametrize("variant, interval", RULES)
def test_resume_inside_a_window(variant, interval):
    data = golden("alwa", "resume")
    key = f"alwa{variant}_C{interval}"
    cut = int(data[f"{key}/cut_iter"])
    cls, box = data["raw_cls_levels"], data["raw_box_levels"]
    first = AdaptiveLossWeight(variant=variant, interval=interval)
    feed(first, cls[:cut], box[:cut])
    state = json.loads(json.dumps(first.state_dict()))
    np.testing.assert_allclose(state["window_cls"], data[f"{key}/state/window_cls"], atol=1e-9)
    np.testing.assert_allclose(state["window_box"], data[f"{key}/state/window_box"], atol=1e-9)
    assert state["weight"] == pytest.approx(float(data[f"{key}/state/cls_weight"]), abs=1e-9)
    second = AdaptiveLossWeight(variant=variant, interval=interval)
    second.load_state_dict(state)
    used = feed(second, cls[cut:], box[cut:])
    np.testing.assert_allclose(used, data[f"{key}/exact_resume/weight_used"], atol=1e-9)
    lost = feed(AdaptiveLossWeight(variant=variant, interval=interval), cls[cut:], box[cut:])
    expected = data[f"{key}/author_resume_state_lost/weight_used"]
    np.testing.assert_allclose(lost, expected, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(PAIRS, st.sampled_from(["weighted", "raw"]), st.integers(1, 2), st.floats(0, 0.5))
def test_weight_stays_between_its_limits(pairs, stats_on, variant, low):
    machine = AdaptiveLossWeight(variant, 3, stats_on, min_weight=low)
    for c, b in pairs:
        weight = machine.observe(c, b)
        assert low <= weight <= 1.0 and weight == machine.weight


@settings(max_examples=30, deadline=None)
@given(PAIRS, st.floats(0.01, 100))
def test_weight_is_unchanged_by_a_common_scale(pairs, scale):
    plain, scaled = AdaptiveLossWeight(1, 4), AdaptiveLossWeight(1, 4)
    for c, b in pairs:
        plain.observe(c, b)
        scaled.observe(c * scale, b * scale)
        x, y = plain.last_update.get("X", 1), plain.last_update.get("Y", 0)
        if abs(x - y) <= 1e-9 * x:  # a tie: rounding decides
            return
        assert scaled.weight == pytest.approx(plain.weight, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize(
    "make",
    [
        lambda: AdaptiveLossWeight(2, 4),
        lambda: UncertaintyWeight(4, lr=0.1),
        lambda: DynamicWeightAverage(4),
    ],
)
class TestEveryWeighting:
    def losses(self, count):
        rng = np.random.default_rng(3)
        return rng.uniform(0.5, 3, count), rng.uniform(0.1, 1, count)

    def test_non_finite_pairs_are_dropped(self, make):
        clean, dirty = make(), make()
        for c, b in zip(*self.losses(10)):
            clean.observe(c, b)
            dirty.observe(c, b)
            dirty.observe(math.nan, b)
            dirty.observe(c, math.inf)
        assert dirty.weights == clean.weights

    def test_resume_is_exact(self, make):
        cls, box = self.losses(23)
        whole, first, second = make(), make(), make()
        for c, b in zip(cls, box):
            whole.observe(c, b)
        for c, b in zip(cls[:9], box[:9]):
            first.observe(c, b)
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        for c, b in zip(cls[9:], box[9:]):
            second.observe(c, b)
        assert second.weights == whole.weights
        assert second.state_dict() == whole.state_dict()

    def test_weights_change_only_when_a_window_closes(self, make):
        machine = make()
        for c, b in zip(*self.losses(20)):
            before, remaining = machine.weights, machine.remaining
            machine.observe(c, b)
            assert remaining == 1 or machine.weights == before
        assert machine.weights != make().weights

    def test_other_settings_keep_the_weight_and_restart_the_window(self, make):
        machine = make()
        for c, b in zip(*self.losses(10)):
            machine.observe(c, b)
        other = type(machine)(interval=7)
        with pytest.raises(ValueError, match="resume with the settings of the saved run"):
            other.load_state_dict(machine.state_dict())
        other.load_state_dict(machine.state_dict(), strict=False)
        assert other.weights == machine.weights and other.remaining == 7

    def test_start_iter_ignores_the_first_pairs(self, make):
        plain, late = make(), type(make())(interval=4, start_iter=5)
        if isinstance(late, UncertaintyWeight):
            late.lr = plain.lr
        assert late.remaining == 9
        for i, (c, b) in enumerate(zip(*self.losses(14))):
            late.observe(c, b)
            if i >= 5:
                plain.observe(c, b)
        assert late.weights == plain.weights


def test_stuck_after_an_early_collapse():
    data = golden("alwa", "rpn_like")
    cls, box = data["raw_cls_sum_f64"], data["raw_box_sum_f64"]
    authors = AdaptiveLossWeight(variant=2)
    feed(authors, cls, box)
    assert authors.stuck and authors.weight < 0.1 and authors.num_updates == 1
    recommended = AdaptiveLossWeight(variant=2, stats_on="raw", min_weight=0.1)
    feed(recommended, cls, box)
    assert not recommended.stuck


def test_only_a_late_start_helps_when_the_class_loss_stays_the_quieter_one():
    rng = np.random.default_rng(0)
    step = np.arange(2000)
    cls = (0.05 + 2 * np.exp(-step / 30)) * rng.gamma(16, 1 / 16, 2000)
    box = 0.2 * rng.gamma(16, 1 / 16, 2000)
    raw = AdaptiveLossWeight(stats_on="raw", min_weight=0.1)
    late = AdaptiveLossWeight(stats_on="raw", min_weight=0.1, start_iter=500)
    feed(raw, cls, box)
    feed(late, cls, box)
    assert raw.stuck and raw.weight < 0.25
    assert not late.stuck and late.weight == 1.0


def test_zero_is_absorbing_for_the_authors_rule_only():
    data = golden("alwa", "dead_box")
    cls, box = data["raw_cls_sum_f64"], data["raw_box_sum_f64"]
    authors, floored = AdaptiveLossWeight(), AdaptiveLossWeight(stats_on="raw", min_weight=0.1)
    feed(authors, cls, box)
    feed(floored, cls, box)
    assert authors.weight == 0 and authors.stuck
    assert floored.weight >= 0.1 and not floored.stuck


def test_uncertainty_converges_to_the_losses_inverse():
    machine = UncertaintyWeight(interval=1, lr=0.1)
    for _ in range(500):
        machine.observe(2.0, 0.25)
    # Minimum of exp(-s) L + s/2 at exp(s) = 2 L, of exp(-s) L / 2 + s/2 at exp(s) = L.
    assert machine.weights == pytest.approx((1 / 4, 2.0), rel=1e-3)
    machine.observe(1e300, 1e300)
    assert all(math.isfinite(w) for w in machine.weights)


def test_dynamic_weight_average_formula():
    machine = DynamicWeightAverage(interval=2, temperature=2.0)
    for c, b in [(4, 1), (4, 1), (2, 0.9), (2, 0.9)]:
        machine.observe(c, b)
    e = [math.exp(0.5 / 2), math.exp(0.9 / 2)]
    assert machine.weights == pytest.approx([2 * v / sum(e) for v in e])
    machine.observe(1e200, 0.9)
    machine.observe(1e200, 0.9)
    assert machine.weights == pytest.approx((2.0, 0.0))


def test_statistics_are_those_of_numpy():
    values = [0.1, 1e9, 3.0, -2.0]
    assert mean_and_std(values) == pytest.approx((np.mean(values), np.std(values, ddof=1)))


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: AdaptiveLossWeight(3), "variants 1 and 2, not 3"),
        (lambda: AdaptiveLossWeight(interval=1), "at least 2, not 1"),
        (lambda: AdaptiveLossWeight(interval=2.5), "must be an integer"),
        (lambda: AdaptiveLossWeight(stats_on="both"), "'weighted' or 'raw', not 'both'"),
        (lambda: AdaptiveLossWeight(compose="add"), "'replace' or 'multiply', not 'add'"),
        (lambda: AdaptiveLossWeight(min_weight=2.0), "minimum weight <= maximum weight"),
        (lambda: AdaptiveLossWeight(init_cls=0.0), "initial weights must be positive"),
        (lambda: AdaptiveLossWeight(start_iter=-1), "start iteration must be 0 or more"),
        (lambda: UncertaintyWeight(lr=0.0), "step size of the uncertainties must be positive"),
        (lambda: UncertaintyWeight(max_weight=0.0), "maximum weight must be a positive"),
        (lambda: DynamicWeightAverage(temperature=0.0), "temperature must be a positive"),
        (lambda: DynamicWeightAverage(interval=0), "at least 1, not 0"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_state_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="of DynamicWeightAverage with"):
        AdaptiveLossWeight().load_state_dict(DynamicWeightAverage().state_dict(), strict=False)
