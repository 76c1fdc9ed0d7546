"""Tables and plots of studies."""

import math

import pytest
from studies import compare, default_figures, draw_study, markdown_table
from studies.plot import mean_curves
from studies.table import headings, values_of
from study_kit import record

VALUES = {"a": (10.0, 20.0, 30.0), "b": (11.0, 22.0, 33.0)}
RESULTS = [record(name, seed, v) for name, row in VALUES.items() for seed, v in enumerate(row)]


@pytest.fixture
def drawn(monkeypatch):
    """The picture that draw_study saves."""
    from matplotlib.figure import Figure

    pictures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda *a, **k: (pictures.append(a[0]), save(*a, **k)))
    return pictures


def test_paired_differences():
    table = compare(values_of(RESULTS, "bbox/AP"), "a")
    assert table["a"]["mean"] == 20.0 and table["a"]["std"] == 10.0 and table["a"]["seeds"] == 3
    assert table["a"]["spread"] == pytest.approx(4.30265273 * 10.0 / math.sqrt(3))
    assert "difference" not in table["a"]
    assert table["b"]["difference"] == pytest.approx(2.0)
    assert table["b"]["interval"] == pytest.approx(4.30265273 * 1.0 / math.sqrt(3))
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
    table = compare(values_of([*RESULTS, record("b", 9, 1000.0)], "bbox/AP"), "a")
    assert table["b"]["difference"] == pytest.approx(2.0) and table["b"]["seeds"] == 4


@pytest.mark.parametrize("nothing", [math.nan, None])
def test_a_figure_that_is_no_number_is_left_out_and_named(drawn, tmp_path, nothing):
    """A run without a detection has no AP."""
    results = [*RESULTS, record("b", 3, nothing), record("c", 1, nothing), record("a", 3, 40.0)]
    text = markdown_table(results, ["bbox/AP"], "a")
    assert "| b | 4 | 22.0 ± 11.0 | +2.0 ± 2.5 |" in text
    assert "\n\nLeft out, because there is no number (nothing was detected, " in text
    assert text.endswith(": AP of b (seed 3); AP of c (seed 1).\n")
    draw_study(results, ["bbox/AP"], "a", tmp_path / "s.png")
    assert sorted(len(line.get_xdata()) for line in drawn[0].axes[0].lines) == [1, 1, 2, 2, 2, 3, 4]
    only = [record("a", 1, nothing)]
    assert default_figures(only) == ["bbox/AP"]
    assert "| a | 1 | |" in markdown_table(only, ["bbox/AP"], None)
    draw_study(only, ["bbox/AP"], None, tmp_path / "s.png")


def test_a_figure_that_a_run_has_with_some_seeds_only_is_named():
    results = [*RESULTS, record("b", 3, 1.0)]
    results[3] = {**results[3], "figures": {"bbox/AP": 11.0, "x/y": 1.0}}  # b, seed 0
    assert "it could not be measured): y of b (seeds 1, 2, 3)." in markdown_table(
        results, ["bbox/AP", "x/y"], "a"
    )


def test_why_there_are_no_differences():
    text = markdown_table(RESULTS, ["bbox/AP"], "q")
    assert text.startswith("| run | seeds | AP |\n") and "| b | 3 | 22.0 ± 11.0 |\n" in text
    assert text.endswith("\n\nThere are no differences: the baseline q has no results.\n")
    assert "There are no" not in markdown_table(RESULTS, ["bbox/AP"], None)


def test_figures_of_several_data_sets_have_their_names():
    both = ["x/bbox/AP", "y/bbox/AP"]
    results = [{**r, "figures": dict.fromkeys(both, r["figures"]["bbox/AP"])} for r in RESULTS]
    text = markdown_table(results, both, None)
    assert text.startswith("| run | seeds | x/bbox/AP | y/bbox/AP |\n")
    assert "| b | 3 | 22.0 ± 11.0 | 22.0 ± 11.0 |" in text  # one digit, as other APs
    assert headings(["bbox/AP", "bbox/AP50"]) == ["AP", "AP50"]
    assert headings(["bbox/AP", "segm/AP"]) == ["bbox/AP", "segm/AP"]
    assert headings(["bbox/AP", "ema/bbox/AP"]) == ["bbox/AP", "ema/bbox/AP"]


def test_unknown_figures_are_named():
    with pytest.raises(ValueError, match="No run has the figure 'segm/AP'; choose from bbox/AP"):
        markdown_table(RESULTS, ["segm/AP"], "a")


def test_default_figures():
    assert default_figures(RESULTS) == ["bbox/AP"]
    figures = {f"bbox/{x}": 1.0 for x in ("AP", "AP50", "AP75", "APr", "APc", "APf")}
    assert default_figures([{"figures": figures}]) == [f"bbox/AP{x}" for x in ("", "r", "c", "f")]


@pytest.mark.parametrize(
    "runs, shown",
    [
        # Of each data set, and of the model rather than its average.
        ([["ema/x/bbox/AP", "x/bbox/AP", "x/bbox/AP50", "y/bbox/AP", "y/bbox/APr"]],
         ["x/bbox/AP", "x/bbox/AP50", "y/bbox/AP", "y/bbox/APr"]),
        ([["sem_seg/mIoU", "sem_seg/IoU-cat", "sem_seg/fwIoU"]], ["sem_seg/mIoU", "sem_seg/fwIoU"]),
        ([["bbox/AP", "segm/AP"], ["segm/AP"]], ["segm/AP"]),
        # Nothing in common.
        ([["x/bbox/AP"], ["y/bbox/AP"]], ["x/bbox/AP", "y/bbox/AP"]),
        ([["box_proposals/AR@100"], ["box_proposals/AR@10"]],
         ["box_proposals/AR@100", "box_proposals/AR@10"]),
    ],
)  # fmt: skip
def test_default_figures_of_other_evaluations(runs, shown):
    assert default_figures([{"figures": dict.fromkeys(names, 1.0)} for names in runs]) == shown


def test_curves_are_means_over_seeds_where_all_have_a_point():
    results = [
        record("a", 1, 3.0, curves={"bbox/AP": [[10, 1.0], [20, 3.0]]}),
        record("a", 2, 5.0, curves={"bbox/AP": [[10, 2.0], [20, 5.0], [30, 9.0]]}),
        record("b", 1, 5.0),
    ]
    assert mean_curves(results, "bbox/AP") == {"a": [(10, 1.5), (20, 4.0)]}
    # Where nothing was detected yet there is no point.
    results[0]["curves"]["bbox/AP"][0][1] = None
    results.append(record("c", 1, 1.0, curves={"bbox/AP": [[10, math.nan]]}))
    assert mean_curves(results, "bbox/AP") == {"a": [(20, 4.0)]}


def test_the_plot_shows_seeds_means_and_intervals(drawn, tmp_path):
    file = tmp_path / "s.png"
    draw_study(RESULTS, ["bbox/AP"], "a", file, title="s")
    assert file.read_bytes()[:4] == b"\x89PNG"
    (axis,) = drawn[0].axes
    lines = [list(map(float, line.get_xdata())) for line in axis.lines]
    spread = 4.30265273 * 10.0 / math.sqrt(3)
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


def test_many_learning_curves_can_be_told_apart(drawn, tmp_path):
    curves = {"bbox/AP": [[1, 0.0], [2, 5.0]]}
    results = [record(f"run {k}", 1, 1.0, curves=curves) for k in range(13)]
    draw_study(results, ["bbox/AP"], None, tmp_path / "s.png")
    lines = drawn[0].axes[-1].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 13
