"""Results of a study: what is kept of a run, in lines of JSON that other programs read too."""

import dataclasses
import functools
import json
import re
import subprocess

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from studies import Results, Study, version_notes
from studies.versions import code_commit
from study_kit import figures, runner_of


@pytest.fixture
def make(tmp_path, pytestconfig):
    return functools.partial(runner_of, tmp_path, pytestconfig.rootpath)


def test_results_are_json_lines(make):
    runner = make()
    runner.run()
    lines = [json.loads(line) for line in runner.results.file.read_text().splitlines()]
    known = {"name", "seed", "config", "seconds", "versions", "figures", "output", "curves"}
    assert known == set(lines[0])
    assert lines[0]["curves"] == {"bbox/AP": [[3, 0.0], [7, 1.0]]}


@pytest.fixture
def one_object(tmp_path):
    """A data set of one object in one image."""
    file = tmp_path / "one_object.json"
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 100}
    annotation["iscrowd"] = 0
    categories, images = [{"id": 1, "name": "x"}], [{"id": 1, "width": 10, "height": 10}]
    file.write_text(
        json.dumps({"images": images, "annotations": [annotation], "categories": categories})
    )
    DatasetCatalog.register("study_one_object", list)
    MetadataCatalog.get("study_one_object").json_file = str(file)
    yield "study_one_object"
    DatasetCatalog.remove("study_one_object")
    MetadataCatalog.remove("study_one_object")


def test_what_a_study_measures_is_kept(make, tmp_path, one_object):
    words = ("DATASETS.TEST", f"('{one_object}',)")
    run = dataclasses.replace(make().study.runs[1], overrides=words)
    study = Study("s", [run], measure=("lr", "consistency"))
    output = tmp_path / "run"
    found = output / f"inference/{one_object}/coco_instances_results.json"
    found.parent.mkdir(parents=True)
    (output / "metrics.json").write_text('{"iteration": 7, "bbox/AP": 1.0, "lr": 0.5}\n')
    results = Results(study, tmp_path / "results.jsonl")
    # Without the file all else is a result, and what is missing is said.
    missing = results.add(run, seconds=1.0, output=output, resumed=False)
    assert re.match("its consistency cannot be measured, all else is kept: .*coco_inst", missing)
    assert results.finished()[0]["figures"] == {"bbox/AP": 1.0, "lr": 0.5}
    # Scores that are the IoUs.
    detections = [
        {"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10 * score], "score": score}
        for score in (1.0, 0.75, 0.5)
    ]
    found.write_text(json.dumps(detections))
    assert results.add(run, seconds=1.0, output=output, resumed=False) == ""
    (record,) = results.finished()
    assert record["figures"]["lr"] == 0.5
    assert record["figures"]["consistency/pearson"] == pytest.approx(1.0)


def test_a_missing_measure_is_said_and_the_rest_is_kept(make):
    said = []
    runner = make(report=said.append)
    study = dataclasses.replace(runner.study, runs=runner.study.runs[:1], measure=["consistency"])
    runner.study = runner.results.study = study
    assert figures(runner.run()) == {("a", 1): 1}
    assert "a, seed 1: its consistency cannot be measured, all else is kept" in said[2]
    assert said[3].startswith("a, seed 1: done.")


def add(make, folder, *lines):
    """What is kept of a run whose metrics.json has these lines."""
    runner = make()
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("".join(json.dumps(line) + "\n" for line in lines))
    runner.results.add(runner.study.runs[0], seconds=1.0, output=folder, resumed=False)
    return runner.results


def test_results_have_no_nan(make, tmp_path):
    """A run that detects nothing has NaN for all figures."""
    lines = [
        {"iteration": k, "bbox/AP": float("nan"), "bbox/APr": v} for k, v in ((3, 1.0), (7, 2))
    ]
    results = add(make, tmp_path / "run", *lines)
    results.export(tmp_path / "s.jsonl")
    for file in (results.file, tmp_path / "s.jsonl"):
        assert "NaN" not in file.read_text()
    (record,) = results.finished()
    assert record["figures"] == {"bbox/AP": None, "bbox/APr": 2}
    assert record["curves"] == {"bbox/AP": [[3, None], [7, None]], "bbox/APr": [[3, 1.0], [7, 2]]}
    # Older lines may have it.
    results.file.write_text(results.file.read_text().replace("null", "NaN"))
    results.export(tmp_path / "s.jsonl")
    assert "NaN" not in (tmp_path / "s.jsonl").read_text()


@pytest.mark.parametrize("name", ["a-val/bbox/AP", "ema/a-val/bbox/AP", "sem_seg/mIoU"])
def test_several_data_sets_and_other_tasks_are_results(make, tmp_path, name):
    lines = [{"iteration": k, name: float(k), f"{name}-cat": 0.0, "lr": 1.0} for k in (3, 7)]
    (record,) = add(make, tmp_path / "run", *lines).finished()
    assert record["figures"] == {name: 7.0, f"{name}-cat": 0.0}
    assert record["curves"] == {name: [[3, 3.0], [7, 7.0]]}


def test_the_commit_of_the_code_is_kept(make, tmp_path, monkeypatch):
    def git(*words):
        identity = ("-c", "user.name=x", "-c", "user.email=x@x")
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True)

    code = tmp_path / "code"
    code.mkdir()
    (code / "__init__.py").write_text("")
    assert code_commit(code) == ""
    git("init", "-q")
    assert code_commit(code) == ""  # in a checkout, but none of its files
    git("add", "code")
    git("commit", "-q", "-m", "x")
    commit = code_commit(code)
    assert len(commit) == 12
    (code / "other.py").write_text("")
    assert code_commit(code) == f"{commit}+changes"
    began = iter(["one", "two+changes", "one", "one"])
    monkeypatch.setattr("studies.versions.code_commit", lambda folder: next(began))
    results = make().run()
    assert [record["versions"]["commit"] for record in results][:2] == ["one", "two+changes"]
    assert version_notes(results) == [
        "Not all runs had the same code: commits of d2ext are one (3 runs), two+changes (1 runs)."
    ]
    results[0]["versions"] = {"torch": "1"}  # from before commits were kept
    assert "versions of torch are 1 (1 runs), " in version_notes(results)[0]


def test_a_line_that_was_cut_short_is_run_again(make):
    runner = make()
    runner.run()
    text = runner.results.file.read_text()
    runner.results.file.write_text(text[:-20])
    assert len(runner.results.finished()) == 3
    assert len(make().run()) == 4


def test_committed_results_are_taken_over_and_written_back(make, tmp_path):
    runner = make()
    runner.run()
    committed = tmp_path / "s.jsonl"
    assert runner.results.export(committed) == 4
    names = [(r["name"], r["seed"]) for r in map(json.loads, committed.read_text().splitlines())]
    assert names == [("a", 1), ("b", 1), ("a", 2), ("b", 2)]
    runner.results.file.unlink()
    changed = make(lr=3.0)
    assert changed.results.take_over(committed) == 2
    assert changed.results.take_over(committed) == 0
    assert figures(changed.results.finished()) == {("a", 1): 1, ("a", 2): 2}


def test_runs_of_other_studies_with_the_same_config_and_seed_are_borrowed(make, tmp_path):
    runner = make()
    runner.run()
    other = tmp_path / "other.jsonl"
    runner.results.export(other)
    runs = [dataclasses.replace(run, name=f"my {run.name}") for run in runner.study.runs]
    results = Results(Study("t", runs[:3]), tmp_path / "mine" / "results.jsonl")
    assert results.borrow([tmp_path / "none.jsonl", other]) == 3
    assert results.borrow([other]) == 0
    assert figures(results.finished()) == {("my a", 1): 1, ("my b", 1): 2, ("my a", 2): 2}
    # What the other study did not measure would be missing here.
    study = Study("u", runs, measure=("consistency",))
    assert Results(study, tmp_path / "more.jsonl").borrow([other]) == 0
