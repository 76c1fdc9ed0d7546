"""The leaderboard: differences, what is certain of them, and its page."""

import importlib.util
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

ROOT = Path(__file__).resolve().parents[2]
FIGURE = "x_test/bbox/AP"
STUDY = """
name: board_x
title: X, FCOS
baseline: plain
seeds: [1, 2, 3, 4, 5]
figures: [x_test/bbox/AP]
config: %s
runs:
  plain: {}
  good: {overrides: [MODEL.DENSE.CLS_LOSS, efl]}
  same: {overrides: [MODEL.HARMONIC.ENABLED, True]}
  never: {overrides: [MODEL.SAMPLING_FREE.ENABLED, True]}
"""


@pytest.fixture
def board():
    spec = importlib.util.spec_from_file_location("leaderboard", ROOT / "tools/leaderboard.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _record(name, seed, ap, fingerprint="f"):
    rng = np.random.default_rng(seed)
    return {
        "name": name, "seed": seed, "config": fingerprint, "seconds": 360.0,
        "figures": {FIGURE: ap, "consistency/pearson_hit": 0.5},
        "bootstrap": list(ap + rng.normal(0, 1, 50)),
        "curves": {FIGURE: [[10, ap - 4], [20, ap - 1], [30, ap]],
                   "x_val/bbox/AP": [[10, ap - 2], [20, ap + 1], [30, ap]]},
    }  # fmt: skip


PLAIN = (50.0, 50.4, 49.8, 50.1, 49.9)
GOOD = (52.1, 52.3, 52.0, 51.9, 52.2)
SAME = (50.1, 50.1, 50.2, 49.7, 50.0)


@pytest.fixture
def folder(tmp_path, board):
    folder = tmp_path / "board"
    folder.mkdir()
    (folder / "board_x.yaml").write_text(STUDY % (ROOT / "configs/Demo/fcos_shapes.yaml"))
    study = board.load_study(folder / "board_x.yaml", ROOT)
    prints = {run.key: run.fingerprint() for run in study.runs}
    rows = [
        _record(name, seed, ap, prints[name, seed])
        for name, aps in (("plain", PLAIN), ("good", GOOD), ("same", SAME))
        for seed, ap in enumerate(aps, 1)
    ]
    (folder / "board_x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    marks = ("summary", "left", "board_x")
    (tmp_path / "board.md").write_text(
        "".join(f"<!-- begin {m} -->\n<!-- end {m} -->\n" for m in marks)
    )
    return folder


def test_the_page_says_what_is_certain(board, folder, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["leaderboard.py", str(folder)])
    board.main()
    rows = {row["run"]: row for row in json.loads((folder / "leaderboard.json").read_text())}
    good, same = rows["good"], rows["same"]
    differences = np.subtract(GOOD, PLAIN)
    assert good["difference"] == pytest.approx(differences.mean(), rel=1e-5)
    test = stats.ttest_rel(GOOD, PLAIN)
    assert good["p"] == pytest.approx(test.pvalue, rel=1e-5)
    low, high = test.confidence_interval()
    assert good["interval"] == pytest.approx((high - low) / 2, rel=1e-5)
    assert good["holm"] == pytest.approx(2 * good["p"], rel=1e-5) and same["holm"] == same["p"]
    assert (good["verdict"], same["verdict"]) == ("helps", "less than 1 AP either way")
    # The same draws of images for both: only the seeds are left.
    assert np.mean(good["with_images"]) == pytest.approx(differences.mean(), abs=0.1)
    assert good["best"] == pytest.approx(differences.mean(), rel=1e-5)
    # Straight from 10 steps, 2 below its last AP, to 20, 1 above it.
    assert good["steps"] == round(10 + 10 * (np.mean(PLAIN) - np.mean(GOOD) + 2) / 3)
    page = folder.with_suffix(".md").read_text()
    assert "| good | **+2.1 ± 0.3** |" in page and "| same | +0.0" not in page.split("-->")[0]
    assert "* X, FCOS, never: 5 of 5 seeds" in page and "15 runs, 1.5 hours of" in page
    assert "| plain | 5 | 50.0 | " in page and "| baseline |" in page
    assert page.index("| good | 5 |") < page.index("| same | 5 |")
    assert (folder / "leaderboard.png").stat().st_size > 3000


def test_a_comparison_that_two_studies_show_is_one_test(board, folder):
    alone = {row["run"]: row for row in board.collect(folder)[0]}
    for ending in (".yaml", ".jsonl"):
        text = (folder / f"board_x{ending}").read_text().replace("board_x", "board_y")
        (folder / f"board_y{ending}").write_text(text)
    rows, _ = board.collect(folder)
    assert [row["study"] for row in rows] == ["board_x"] * 4 + ["board_y"] * 4
    assert "trained" not in rows[0]
    for row in rows:
        assert row.get("holm") == alone[row["run"]].get("holm")


def test_few_seeds_and_costs_are_said(board):
    assert board.verdict({"seeds": []}) == "not run"
    assert board.verdict({"seeds": [1]}) == "too few seeds"
    equal = {"title": "set", "run": "b", "seeds": [1, 2], "difference": 0.0, "interval": 0.0}
    equal["holm"] = 1.0
    assert board.verdict(equal) == "the same figures"
    assert "| b | the same figures |" in board.summary_of([equal])
    row = {"seeds": [1, 2], "difference": -3.0, "interval": 0.5, "holm": 0.01}
    assert board.verdict(row) == "costs"
    assert board.verdict({**row, "holm": 0.2}) == "undecided"


def test_what_is_committed_is_what_the_results_say(board):
    rows, tables = board.collect(ROOT / "docs/leaderboard")
    assert json.loads((ROOT / "docs/leaderboard/leaderboard.json").read_text()) == rows
    page = (ROOT / "docs/leaderboard.md").read_text()
    assert set(tables) <= set(board.marked_tables(page))
    assert page == board.fill_tables(page, tables)
    readme = (ROOT / "README.md").read_text()
    assert readme == board.fill_tables(readme, {"leaderboard": tables["summary"]})
