"""The study runner: what is finished is never repeated, what changed is, what failed is said."""

import dataclasses
import errno
import functools
import json
import os
import signal
import sys
import threading

import pytest
from process_kit import PATIENCE, fork
from studies import Busy, locked
from studies.runner import run_folder
from study_kit import figures, runner_of

from d2ext._files import WriteError


@pytest.fixture
def make(tmp_path, pytestconfig):
    return functools.partial(runner_of, tmp_path, pytestconfig.rootpath)


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


@pytest.fixture
def interruptible():
    """Ctrl-C is a KeyboardInterrupt, also where the tests run in the background."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


def ctrl_c():
    """To the main thread, as the system gives it."""
    signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)


@pytest.mark.parametrize("fails", [False, True])
def test_ctrl_c_waits_for_the_training_and_begins_no_other(
    make, tmp_path, monkeypatch, interruptible, fails
):
    gate, fail = tmp_path / "gate", tmp_path / "fail"
    for end in ("there", "go"):
        os.mkfifo(f"{gate}.{end}")
    fail.write_text("xxxxx" if fails else "")
    monkeypatch.setenv("FAIL_B", str(fail))
    monkeypatch.setenv("GATE", str(gate))
    stopping = threading.Event()
    said = []

    def report(line):
        said.append(line)
        if line.startswith("Stopping: no other run is begun"):
            stopping.set()

    def user():
        with open(f"{gate}.there") as there:  # opens when the training begins
            there.read()
        os.environ.pop("GATE")  # later ones would not wait
        ctrl_c()
        stopping.wait(60)
        with open(f"{gate}.go", "w"):
            pass

    runner = make(report=report, retry=3)
    runner.study = runner.results.study = dataclasses.replace(
        runner.study, runs=runner.study.runs[1:]
    )
    thread = threading.Thread(target=user)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        runner.run()
    thread.join(PATIENCE)
    assert len(list((tmp_path / "out").glob("*_seed*"))) == 1
    assert figures(runner.results.finished()) == ({} if fails else {("b", 1): 2})
    assert fail.read_text() == ("xxxx" if fails else "")
    assert not [line for line in said if "Tried again" in line]
    monkeypatch.delenv("FAIL_B")
    monkeypatch.delenv("GATE", raising=False)
    assert len(make().run()) == 4  # the next call goes on


def test_a_training_that_is_waited_for_does_not_hold_up_ctrl_c(make, tmp_path, interruptible):
    runner = make(report=lambda line: "which is waited for" in line and ctrl_c())
    run = runner.study.runs[0]
    folder = run_folder(runner.folder, run, run.fingerprint())
    folder.mkdir(parents=True)
    with locked(folder / "run.lock"), pytest.raises(KeyboardInterrupt):
        runner.run()
    assert [path.name for path in (tmp_path / "out").glob("*_seed*")] == [folder.name]


def test_a_full_disk_ends_the_study_in_a_sentence(make, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    runner = make(retry=2)
    monkeypatch.setattr("studies.results.open", full, raising=False)
    with pytest.raises(WriteError, match="results.jsonl .No space left on device.; free some"):
        runner.run()
    assert len(list((tmp_path / "out").glob("*_seed*"))) == 1
    monkeypatch.undo()
    assert len(make().run()) == 4


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
