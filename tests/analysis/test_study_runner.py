"""The study runner: what is finished is never repeated, what changed is, what failed is said."""

import dataclasses
import json
import os
import signal
import sys
import threading

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from process_kit import PATIENCE, fork
from study_kit import fake_command, figures, study_of

from d2ext.analysis.study import Busy, Results, Runner, Study, locked


@pytest.fixture
def make(tmp_path, pytestconfig):
    command = fake_command(tmp_path)

    def runner(lr=2.0, jobs=1, **kwargs):
        study = study_of(tmp_path, pytestconfig.rootpath, lr)
        kwargs.setdefault("report", lambda line: None)
        return Runner(study, tmp_path / "out", command, jobs, **kwargs)

    return runner


def test_runs_all_then_none_then_only_what_changed(make):
    said = []
    results = make(jobs=2, report=said.append).run()
    assert figures(results) == {("a", 1): 1, ("b", 1): 2, ("a", 2): 2, ("b", 2): 4}
    assert all(r["seconds"] >= 0 and "torch" in r["versions"] for r in results)
    assert said[:2] == [
        "s: 0 runs are finished, 4 to do.",
        "About an unknown number of minutes are left.",
    ]
    assert said[-1].endswith("done. About 0 minutes are left.")
    make(report=said.append).run()
    assert said[-1] == "s: 4 runs are finished, 0 to do."
    changed = make(lr=3.0, report=said.append)
    assert figures(changed.results.finished()) == {("a", 1): 1, ("a", 2): 2}
    assert figures(changed.run())[("b", 2)] == 6
    assert "b, seed 1: its config has changed since it was run, so it runs again." in said


def test_a_killed_study_goes_on(make):
    runner = make()
    runner._one(runner.study.runs[0])
    said = []
    again = make(report=said.append)
    again.run()
    assert said[0] == "s: 1 runs are finished, 3 to do."
    assert len(again.results.file.read_text().splitlines()) == 4


@pytest.mark.slow
def test_a_training_that_outlives_its_killed_study_is_waited_for(make, tmp_path):
    """Only then is its folder trained in again, so two never meet."""
    gate = tmp_path / "gate"
    for end in ("there", "go"):
        os.mkfifo(f"{gate}.{end}")

    def start():
        os.environ["GATE"] = str(gate)
        make().run()

    study = fork(start)
    with open(f"{gate}.there") as there:  # opens when the training begins
        child = int(there.read())
    with pytest.raises(Busy, match=f"out is in use by process {study}"):
        make().run()
    os.kill(study, signal.SIGKILL)
    os.waitpid(study, 0)
    os.kill(child, 0)  # it is still there

    waited = threading.Event()
    said = []

    def report(line):
        said.append(line)
        if "is waited for" in line:
            waited.set()

    again = make(report=report)
    thread = threading.Thread(target=again.run)
    thread.start()
    assert waited.wait(PATIENCE)
    assert not again.results.finished()
    with open(f"{gate}.go", "w"):  # lets the old training end
        pass
    thread.join(PATIENCE)
    assert len(again.results.finished()) == 4
    assert len(again.results.file.read_text().splitlines()) == 4
    metrics = next((tmp_path / "out").glob("a_seed1_*")) / "metrics.json"
    assert len(metrics.read_text().splitlines()) == 4  # the old training wrote all, then the new


def test_a_lock_ends_with_its_holder(tmp_path):
    path = tmp_path / "x.lock"
    busy = pytest.raises(Busy, match=f"in use by process {os.getpid()} on ")
    with locked(path), busy, locked(path):
        pass
    with locked(path):
        pass


def test_a_failed_run_is_reported_and_tried_again(make, monkeypatch, tmp_path):
    fail = tmp_path / "fail"
    monkeypatch.setenv("FAIL_B", str(fail))
    fail.write_text("xx")
    said = []
    assert len(make(report=said.append).run()) == 2
    assert sum("failed with exit code 3, see " in line for line in said) == 2
    assert len(make(report=said.append).run()) == 4  # the next call tries it


def test_a_failed_run_is_tried_again_at_once(make, monkeypatch, tmp_path):
    fail = tmp_path / "fail"
    monkeypatch.setenv("FAIL_B", str(fail))
    fail.write_text("xx")
    said = []
    results = make(report=said.append, retry=2).run()
    assert figures(results) == {("a", 1): 1, ("b", 1): 2, ("a", 2): 2, ("b", 2): 4}
    again = [line for line in said if "Tried again" in line]
    assert [line[-9:] for line in again] == ["(1 of 2).", "(2 of 2)."]


def test_a_run_without_evaluation_is_no_result(make, tmp_path):
    runner = make()
    runner.command = [sys.executable, "-c", "pass"]
    said = []
    runner.report = said.append
    assert runner.run() == []
    assert "gave no result" in said[2] and "name a data set in DATASETS.TEST" in said[2]


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
    with pytest.raises(ValueError, match="its consistency cannot be measured: .*coco_instances"):
        results.add(run, seconds=1.0, output=output, resumed=False)
    # Scores that are the IoUs.
    detections = [
        {"image_id": 1, "category_id": 1, "bbox": [0, 0, 10, 10 * score], "score": score}
        for score in (1.0, 0.75, 0.5)
    ]
    found.write_text(json.dumps(detections))
    results.add(run, seconds=1.0, output=output, resumed=False)
    (record,) = results.finished()
    assert record["figures"]["lr"] == 0.5
    assert record["figures"]["consistency/pearson"] == pytest.approx(1.0)


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


def test_the_time_left_follows_earlier_runs(make):
    said = []
    runner = make(report=said.append, jobs=2)
    runner.run()
    records = runner.results.all()
    for record in records:
        record["seconds"] = {"a": 60.0, "b": 600.0}[record["name"]]
    keep = [json.dumps(r) for r in records if r["seed"] == 1]
    runner.results.file.write_text("\n".join(keep) + "\n")
    del said[:]
    make(report=said.append, jobs=2).run()
    assert said[1] == "About 6 minutes are left."  # (60 + 600) / 2 jobs is 5.5 minutes
