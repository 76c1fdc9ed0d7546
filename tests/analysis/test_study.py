"""The study runner: what is finished is never repeated, what changed is, what failed is said."""

import json
import math
import sys

import pytest

from d2ext.analysis.study import Runner, compare, load_study, markdown_table

CONFIG = "configs/Demo/fcos_shapes.yaml"
STUDY = """
name: s
baseline: a
seeds: [1, 2]
common: [SOLVER.MAX_ITER, 7]
runs:
  a: {config: %s}
  b: {config: %s, overrides: [SOLVER.BASE_LR, %s]}
"""
# Stands in for train_net.py: AP is the seed times the learning rate, and FAIL_B makes b fail.
FAKE = """
import json, os, sys
words = sys.argv[1:]
keys = dict(zip(words[3::2], words[4::2]))
assert words[0] == "--resume" and words[1] == "--config-file"
lr = float(keys.get("SOLVER.BASE_LR", 1))
if os.environ.get("FAIL_B") and lr != 1:
    sys.exit(3)
with open(os.path.join(keys["OUTPUT_DIR"], "metrics.json"), "a") as f:
    f.write(json.dumps({"iteration": 1, "bbox/AP": 0.0}) + "\\n")
    f.write(json.dumps({"iteration": 7, "bbox/AP": lr * int(keys["SEED"]), "lr": lr}) + "\\n")
"""


@pytest.fixture
def make(tmp_path, pytestconfig):
    root = pytestconfig.rootpath
    fake = tmp_path / "fake.py"
    fake.write_text(FAKE)

    def runner(lr=2.0, jobs=1):
        path = tmp_path / "s.yaml"
        path.write_text(STUDY % (CONFIG, CONFIG, lr))
        return Runner(load_study(path, root), tmp_path / "out", [sys.executable, str(fake)], jobs)

    return runner


def figures(results):
    return {(r["name"], r["seed"]): r["figures"]["bbox/AP"] for r in results}


def test_runs_all_then_none_then_only_what_changed(make):
    said = []
    results = make(jobs=2).run(report=said.append)
    assert figures(results) == {("a", 1): 1, ("b", 1): 2, ("a", 2): 2, ("b", 2): 4}
    assert all(r["seconds"] >= 0 and "torch" in r["versions"] for r in results)
    make().run(report=said.append)
    assert said[-1] == "s: 4 runs are finished, 0 to do."
    changed = make(lr=3.0)
    assert figures(changed.results()) == {("a", 1): 1, ("a", 2): 2}
    assert figures(changed.run(report=said.append))[("b", 2)] == 6


def test_a_killed_study_goes_on(make):
    runner = make()
    runner._one(runner.study.runs[0])
    said = []
    runner.run(report=said.append)
    assert said[0] == "s: 1 runs are finished, 3 to do."
    assert len(runner.results_file.read_text().splitlines()) == 4


def test_a_failed_run_is_reported_and_tried_again(make, monkeypatch):
    monkeypatch.setenv("FAIL_B", "1")
    said = []
    assert len(make().run(report=said.append)) == 2
    assert sum("failed with exit code 3" in line for line in said) == 2
    monkeypatch.delenv("FAIL_B")
    assert len(make().run(report=said.append)) == 4


def record(name, seed, value):
    return {"name": name, "seed": seed, "config": "", "figures": {"bbox/AP": value}}


def test_paired_differences():
    values = {"a": (10.0, 20.0, 30.0), "b": (11.0, 22.0, 33.0)}
    results = [record(n, s, v) for n, row in values.items() for s, v in enumerate(row)]
    table = compare(results, "bbox/AP", "a")
    assert table["a"] == {"seeds": 3, "mean": 20.0, "std": 10.0}
    assert table["b"]["difference"] == pytest.approx(2.0)
    assert table["b"]["interval"] == pytest.approx(4.303 * 1.0 / math.sqrt(3))
    text = markdown_table(results, ["bbox/AP"], "a")
    assert "| b | 3 | 22.0 ± 11.0 | +2.0 ± 2.5 |" in text


def test_bad_study_files(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text("name: x\nbaseline: q\nruns: {a: {config: c}}\n")
    with pytest.raises(ValueError, match="baseline 'q' is none of a"):
        load_study(path, tmp_path)
    path.write_text("name: x\nruns: {a: {config: c, overrides: [K]}}\n")
    with pytest.raises(ValueError, match="overrides of 'a' are not KEY VALUE pairs"):
        load_study(path, tmp_path)


def test_parts_are_combined(tmp_path):
    path = tmp_path / "x.yaml"
    path.write_text(
        "name: x\nconfig: c.yaml\ncommon: [A, 1]\nparts: {p: [B, 2], q: [C, 3]}\n"
        "runs: {none: {}, both: {parts: [p, q], overrides: [D, 4], config: d.yaml}}\n"
    )
    none, both = load_study(path, tmp_path).runs
    assert none.overrides == ("A", 1) and none.config == str(tmp_path / "c.yaml")
    assert both.overrides == ("A", 1, "B", 2, "C", 3, "D", 4)
    assert both.config == str(tmp_path / "d.yaml")
    path.write_text("name: x\nconfig: c\nparts: {p: []}\nruns: {a: {parts: [r]}}\n")
    with pytest.raises(ValueError, match="'a' has the part 'r', which parts lacks"):
        load_study(path, tmp_path)
    path.write_text("name: x\nruns: {a: {}}\n")
    with pytest.raises(ValueError, match="'a' names no config"):
        load_study(path, tmp_path)


def test_results_are_json_lines(make):
    runner = make()
    runner.run(report=lambda _: None)
    lines = [json.loads(line) for line in runner.results_file.read_text().splitlines()]
    assert {"name", "seed", "config", "seconds", "versions", "figures", "output"} == set(lines[0])
