"""Studies as Slurm jobs, with a stand-in for Slurm on the path."""

import dataclasses
import json
import subprocess
import sys

import pytest
from studies import SlurmLauncher
from study_kit import fake_command, figures, study_of

# Keeps a job's script until the test runs it. REFUSE is what a wrong partition gives.
SBATCH = """#!{python}
import os, sys
assert sys.argv[1] == "--parsable"
if "--partition=none" in sys.argv:
    sys.exit("sbatch: error: invalid partition specified: none")
folder = {folder!r}
job = len(os.listdir(folder)) + 1
with open(sys.argv[-1]) as script, open(os.path.join(folder, str(job)), "w") as kept:
    kept.write(script.read())
with open({queue!r}, "a") as queue:
    queue.write(f"{{job}} {{' '.join(sys.argv[2:-1])}}\\n")
print(f"{{job}};" + {cluster!r} if {cluster!r} else job)
"""
SQUEUE = """#!{python}
import sys
job = sys.argv[sys.argv.index("--jobs") + 1]
if "--clusters" in sys.argv:
    print("CLUSTER: " + sys.argv[sys.argv.index("--clusters") + 1])
elif {cluster!r}:
    sys.exit("slurm_load_jobs error: Invalid job id specified")  # another cluster's
with open({queue!r}) as queue:
    print("\\n".join("RUNNING" for line in queue if line.split()[0] == job))
"""


class Slurm:
    """The queue and the scripts of the stand-in."""

    def __init__(self, folder, cluster):
        self.scripts, self.queue = folder / "scripts", folder / "queue"
        self.bin = folder / "bin"
        self.scripts.mkdir()
        self.bin.mkdir()
        self.queue.write_text("")
        fields = {"python": sys.executable, "folder": str(self.scripts), "queue": str(self.queue)}
        fields["cluster"] = cluster
        for name, text in (("sbatch", SBATCH), ("squeue", SQUEUE)):
            (self.bin / name).write_text(text.format(**fields))
            (self.bin / name).chmod(0o755)

    def waiting(self):
        return [line.split()[0] for line in self.queue.read_text().splitlines()]

    def leave(self, job):
        """The job ends without having run, as on a node that breaks down."""
        lines = [x for x in self.queue.read_text().splitlines(True) if x.split()[0] != job]
        self.queue.write_text("".join(lines))

    def run(self, job):
        self.leave(job)
        return subprocess.run(["bash", str(self.scripts / job)]).returncode


@pytest.fixture
def slurm(tmp_path, monkeypatch, request):
    """The stand-in; a parameter is the cluster that sbatch names, as with --clusters."""
    slurm = Slurm(tmp_path, getattr(request, "param", ""))
    monkeypatch.setenv("PATH", str(slurm.bin), prepend=":")
    return slurm


@pytest.fixture
def make(tmp_path, pytestconfig):
    command = fake_command(tmp_path)

    def launcher(said, lr=2.0, sbatch_args=()):
        return SlurmLauncher(
            study_of(tmp_path, pytestconfig.rootpath, lr),
            tmp_path / "out",
            command,
            sbatch_args=sbatch_args,
            report=said.append,
        )

    return launcher


@pytest.mark.parametrize("slurm", ["", "east"], indirect=True)
def test_submitted_once_and_collected_when_ended(make, slurm):
    said = []
    assert make(said, sbatch_args=["--gres=gpu:1"]).run() == []
    assert slurm.waiting() == ["1", "2", "3", "4"]
    assert all(line.endswith("--gres=gpu:1") for line in slurm.queue.read_text().splitlines())
    assert said == [
        "s: 0 runs are finished, 0 wait or run, 4 were submitted now. Call again to collect them."
    ]
    assert [slurm.run("1"), slurm.run("4")] == [0, 0]
    assert figures(make(said).run()) == {("a", 1): 1, ("b", 2): 4}
    assert said[1:3] == ["a, seed 1: done.", "b, seed 2: done."]
    assert slurm.waiting() == ["2", "3"]
    assert [slurm.run("2"), slurm.run("3")] == [0, 0]
    assert len(make(said).run()) == 4
    assert slurm.waiting() == []
    changed = make(said, lr=3.0).run()
    assert len(changed) == 2 and slurm.waiting() == ["5", "6"]
    assert "b, seed 2: its config has changed since it was run, so it runs again." in said


def test_failed_and_lost_jobs_are_reported_and_submitted_again(make, slurm, monkeypatch, tmp_path):
    said = []
    make(said).run()
    fail = tmp_path / "fail"
    fail.write_text("x")
    monkeypatch.setenv("FAIL_B", str(fail))
    assert slurm.run("1") == 0
    assert slurm.run("2") == 3  # b with seed 1
    slurm.leave("3")
    assert len(make(said).run()) == 1
    assert "b, seed 1: failed with exit code 3" in said[2] and "Submitted again." in said[2]
    assert said[3].startswith("a, seed 2: job 3 is gone without an end")
    assert slurm.waiting() == ["4", "5", "6"]
    for job in ("4", "5", "6"):
        assert slurm.run(job) == 0
    results = make(said).run()
    assert len(results) == 4
    assert [r.get("resumed", False) for r in results] == [False, True, True, False]


def test_a_missing_measure_is_said_and_the_rest_is_kept(make, slurm):
    said = []
    launcher = make(said)
    launcher.results.study = dataclasses.replace(launcher.study, measure=["consistency"])
    launcher.run()
    assert slurm.run("1") == 0
    assert figures(launcher.run()) == {("a", 1): 1}
    assert said[1].startswith("a, seed 1: done, but its consistency cannot be measured")


def test_what_sbatch_refuses_is_said(make, slurm, tmp_path):
    with pytest.raises(RuntimeError, match="invalid partition .*; change --slurm-args"):
        make([], sbatch_args=["--partition=none"]).run()
    assert not list((tmp_path / "out").glob("*/job.json"))


def test_without_slurm(make, monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(RuntimeError, match="no sbatch here; use --launcher local"):
        make([]).run()


def test_jobs_remember_what_was_submitted(make, slurm, tmp_path):
    make([]).run()
    job = json.loads(next((tmp_path / "out").glob("a_seed1_*/job.json")).read_text())
    assert job["job"] == "1" and job["starts"] == 1 and "torch" in job["versions"]
