"""The simulated courses of adaptive loss weights show what the documentation says of them."""

import numpy as np
import pytest
from figures.alwa_dynamics import (
    SCENARIOS,
    draw_dynamics,
    main,
    simulate_losses,
    summarize,
    weights_over_time,
)

RECOMMENDED = {"stats_on": "raw", "min_weight": 0.1, "start_iter": 400}


def course(scenario, **settings):
    """The weight in each window behind the first five."""
    return weights_over_time(*simulate_losses(scenario), **settings)[500::100]


def test_authors_rule_swings_and_raw_statistics_do_not():
    assert np.ptp(course("steady")) > 0.4
    assert np.ptp(course("steady", **RECOMMENDED)[1:]) < 0.3


def test_authors_rule_locks_after_a_transient():
    locked = course("transient")
    assert np.ptp(locked) == 0 and locked[0] < 0.2
    assert course("transient", **RECOMMENDED)[1:].min() > 0.3
    assert (course("quiet", **RECOMMENDED) == 1).all()


def test_zero_is_absorbing():
    assert course("dead")[-1] == 0
    assert course("dead", min_weight=0.1)[-1] == 0.1
    assert course("dead", **RECOMMENDED)[-1] > 0.3


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_losses_are_positive_and_repeatable(scenario):
    first, again = simulate_losses(scenario, 500), simulate_losses(scenario, 500)
    assert all((a > 0).all() and (a == b).all() for a, b in zip(first, again))


def test_unknown_scenario_lists_the_known_ones():
    with pytest.raises(ValueError, match="steady, transient, quiet, dead, not 'wild'"):
        simulate_losses("wild")


def test_picture(tmp_path, capsys):
    main(["--output", str(tmp_path / "deep" / "weights.png"), "--variant", "1"])
    written = tmp_path / "deep" / "weights.png"
    assert written.read_bytes().startswith(b"\x89PNG") and str(written) in capsys.readouterr().out
    assert draw_dynamics(tmp_path / "two.png").stat().st_size > 20_000


def test_figures_of_the_documentation():
    figures = summarize(seeds=4)
    assert len(figures) == 4 * len(SCENARIOS)
    authors = figures["transient", "authors: weighted, replace"]
    assert authors[2] == 0 and authors[0] == pytest.approx(authors[3])
    late = figures["quiet", "raw, minimum 0.1, start at 400"]
    assert late == (1, 1, 0, 1)
