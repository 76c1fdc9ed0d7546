"""The benchmark compares like with like, counts its rounds and fills the page."""

import importlib
import json
from pathlib import Path

import pytest
from process_kit import call_python

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def runner():
    return importlib.import_module("benchmarks.runner")


def test_versions_take_turns_and_warm_up_is_left_out(runner):
    calls = []
    case = runner.Case("x", {name: lambda n=name: calls.append(n) for name in "abc"})
    result = runner.measure(case, rounds=3, warmup=2)
    assert "".join(calls) == "abcbcacababcbca"
    assert result["rounds"] == 3


def test_ratio_is_the_median_of_the_rounds(runner, monkeypatch):
    spent = {"a": [0, 0, 1, 3, 100], "b": [0, 0, 1, 1, 50]}
    now = [0.0]
    monkeypatch.setattr(runner.time, "process_time", lambda: now[0])

    def version(name):
        times = iter(spent[name])

        def run():
            now[0] += next(times)
            return {"part": 0.5}

        return run

    case = runner.Case("x", {n: version(n) for n in "ab"}, [runner.Ratio("a", "b", 1.5)])
    result = runner.measure(case, rounds=3)
    assert result["ratios"][0]["ratio"] == 2  # of 1, 3 and 2; the ratio of the medians is 3
    assert result["versions"] == {"a": 3, "b": 1}
    assert result["phases"]["a"] == {"part": 0.5}


def test_numbers_other_than_seconds_are_taken_as_they_are(runner):
    versions = {"a": lambda: 10.0, "b": lambda: 40.0}
    result = runner.measure(runner.Case("x", versions, [runner.Ratio("a", "b")], unit="MB"), 5)
    assert result["versions"] == {"a": 10.0, "b": 40.0}
    assert result["ratios"][0]["ratio"] == 0.25


def test_page_is_filled_between_the_markers_only(runner):
    page = importlib.import_module("benchmarks.page")
    case = runner.Case("x", {"a": lambda: 2.0, "b": lambda: 1.0}, [runner.Ratio("a", "b", 1)],
                       unit="MB")  # fmt: skip
    figures = {"data": {"machine": runner.machine("cpu"), "cases": [runner.measure(case, 1)]}}
    text = "top\n<!-- begin data -->\nold\n<!-- end data -->\nbottom\n"
    filled = page.fill(text, figures)
    assert filled.startswith("top\n") and filled.endswith("<!-- end data -->\nbottom\n")
    assert "old" not in filled and "| a | 2 MB | 2.000 of b |  | 1 (missed) |" in filled
    assert page.fill(filled, figures) == filled


def test_figures_of_the_page_are_those_of_the_file():
    page = importlib.import_module("benchmarks.page")
    text = (ROOT / "docs/benchmarks.md").read_text()
    figures = json.loads((ROOT / "docs/benchmarks.json").read_text())
    assert page.fill(text, figures) == text


def test_different_figures_stop_the_evaluation():
    evaluation = importlib.import_module("benchmarks.evaluation")
    data = evaluation.DataSet(4, 10, 3, "coco")
    try:
        data.ours()
        data.pycocotools(data.results())
        data.figures["another"] = data.figures["d2ext"] + 0.1
        with pytest.raises(SystemExit, match="disagree"):
            data.ours()
    finally:
        data.close()


def test_versions_of_a_step_start_alike():
    steps = importlib.import_module("benchmarks.steps")
    models = importlib.import_module("benchmarks.models")
    ours = models.build(models.make_cfg(steps.RETINANET, 3, "cpu", steps.SMALL))
    upstream = ["MODEL.META_ARCHITECTURE", "RetinaNet", *steps.SMALL]
    theirs = models.build(models.make_cfg(steps.RETINANET, 3, "cpu", upstream))
    for a, b in zip(ours.state_dict().values(), theirs.state_dict().values()):
        assert a.equal(b)


@pytest.mark.slow
@pytest.mark.parametrize("component", ["data", "evaluation", "inference", "steps", "trainer"])
def test_every_component_runs(component, tmp_path):
    file = tmp_path / "figures.json"
    words = ["--quick", "--rounds", "1", "--components", component, "--json", str(file)]
    words += ["--only", "FCOS R50, 80"] if component == "steps" else []
    done = call_python(ROOT / "tools/benchmark.py", *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-2000:]
    for case in json.loads(file.read_text())[component]["cases"]:
        assert case["case"] in done.stdout
        assert case["ratios"] and all(r["ratio"] > 0 for r in case["ratios"])
