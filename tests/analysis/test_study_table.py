"""Tables and plots of studies."""

import math

import pytest
from study_kit import record

from d2ext.analysis.study import compare, default_figures, draw_study, markdown_table
from d2ext.analysis.study.plot import mean_curves

VALUES = {"a": (10.0, 20.0, 30.0), "b": (11.0, 22.0, 33.0)}
RESULTS = [record(name, seed, v) for name, row in VALUES.items() for seed, v in enumerate(row)]


def test_paired_differences():
    table = compare(RESULTS, "bbox/AP", "a")
    assert table["a"]["mean"] == 20.0 and table["a"]["std"] == 10.0 and table["a"]["seeds"] == 3
    assert table["a"]["spread"] == pytest.approx(4.303 * 10.0 / math.sqrt(3))
    assert "difference" not in table["a"]
    assert table["b"]["difference"] == pytest.approx(2.0)
    assert table["b"]["interval"] == pytest.approx(4.303 * 1.0 / math.sqrt(3))
    text = markdown_table(RESULTS, ["bbox/AP"], "a")
    assert "| b | 3 | 22.0 ± 11.0 | +2.0 ± 2.5 |" in text
    assert "| a | 3 | 20.0 ± 10.0 | |" in text


def test_what_is_no_ap_has_two_digits():
    results = [{**r, "figures": {"alwa/x": r["figures"]["bbox/AP"] / 100}} for r in RESULTS]
    text = markdown_table(results, ["alwa/x"], "a")
    assert "| b | 3 | 0.22 ± 0.11 | +0.02 ± 0.02 |" in text


def test_one_seed_has_no_spread():
    text = markdown_table([record("a", 1, 10.0), record("b", 1, 12.0)], ["bbox/AP"], "a")
    assert "| b | 1 | 12.0 | +2.0 |" in text and "nan" not in text


def test_only_shared_seeds_are_compared():
    table = compare([*RESULTS, record("b", 9, 1000.0)], "bbox/AP", "a")
    assert table["b"]["difference"] == pytest.approx(2.0) and table["b"]["seeds"] == 4


def test_unknown_figures_are_named():
    with pytest.raises(ValueError, match="No run has the figure 'segm/AP'; choose from bbox/AP"):
        markdown_table(RESULTS, ["segm/AP"], "a")


def test_default_figures():
    assert default_figures(RESULTS) == ["bbox/AP"]
    figures = {f"bbox/{x}": 1.0 for x in ("AP", "AP50", "AP75", "APr", "APc", "APf")}
    assert default_figures([{"figures": figures}]) == [f"bbox/AP{x}" for x in ("", "r", "c", "f")]


def test_curves_are_means_over_seeds_where_all_have_a_point():
    results = [
        record("a", 1, 3.0, curves={"bbox/AP": [[10, 1.0], [20, 3.0]]}),
        record("a", 2, 5.0, curves={"bbox/AP": [[10, 2.0], [20, 5.0], [30, 9.0]]}),
        record("b", 1, 5.0),
    ]
    assert mean_curves(results, "bbox/AP") == {"a": [(10, 1.5), (20, 4.0)]}


@pytest.fixture
def drawn(monkeypatch):
    """The picture that draw_study saves."""
    from matplotlib.figure import Figure

    pictures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda *a, **k: (pictures.append(a[0]), save(*a, **k)))
    return pictures


def test_the_plot_shows_seeds_means_and_intervals(drawn, tmp_path):
    file = tmp_path / "s.png"
    draw_study(RESULTS, ["bbox/AP"], "a", file, title="s")
    assert file.read_bytes()[:4] == b"\x89PNG"
    (axis,) = drawn[0].axes
    lines = [list(map(float, line.get_xdata())) for line in axis.lines]
    spread = 4.303 * 10.0 / math.sqrt(3)
    assert [20.0, 20.0] in lines  # the baseline's mean
    assert [10.0, 20.0, 30.0] in lines and [11.0, 22.0, 33.0] in lines
    assert [22.0] in lines
    assert any(line == pytest.approx([20.0 - spread, 20.0 + spread]) for line in lines)
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b"]
    again = tmp_path / "again.png"
    draw_study(RESULTS, ["bbox/AP"], "a", again, title="s")
    assert again.read_bytes() == file.read_bytes()


def test_learning_curves_have_a_panel(drawn, tmp_path):
    results = [{**r, "curves": {"bbox/AP": [[1, 0.0], [2, 5.0]]}} for r in RESULTS]
    draw_study(results, ["bbox/AP"], "a", tmp_path / "s.png")
    axis = drawn[0].axes[-1]
    assert [line.get_label() for line in axis.lines] == ["a", "b"]
    assert list(axis.lines[0].get_ydata()) == [0.0, 5.0]
