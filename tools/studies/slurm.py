"""Runs what a study has not finished yet as Slurm jobs, one a run.

A call submits the missing runs and returns; the next one collects those that have ended. Nothing
has to stay alive in between: what was submitted is in each run's folder.
"""

import json
import os
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

from .definition import Run, Study
from .lock import locked
from .results import Results
from .runner import python_path, run_folder
from .versions import versions

__all__ = ["SlurmLauncher"]

_SCRIPT = """#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --output={output}/stdout.txt
#SBATCH --open-mode=append
# Written by tools/study.py. The exit code in a file tells the next call that the job has ended.
export PYTHONPATH={python_path}
cd {folder}
start=$(date +%s)
{command}
code=$?
echo "$code $(($(date +%s) - start))" > {output}/ended.part
mv {output}/ended.part {output}/ended
exit $code
"""


class SlurmLauncher:
    """Submits the missing runs of a study to Slurm and collects those that have ended.

    Args:
        study: the study.
        folder: one folder a run below it, and ``results.jsonl``; on a file system that the compute
            nodes share.
        command: how ``train_net.py`` is called on a compute node.
        sbatch_args: options of ``sbatch``, e.g. ``["--gres=gpu:1", "--time=2:00:00"]``.
        report: is told what happens, a line at a time.
    """

    def __init__(
        self,
        study: Study,
        folder: Path,
        command: Sequence[str],
        *,
        sbatch_args: Sequence[str] = (),
        report: Callable[[str], Any] = print,
    ):
        self.study = study
        self.folder = Path(folder).resolve()
        self.command = list(command)
        self.sbatch_args = list(sbatch_args)
        self.report = report
        self.results = Results(study, self.folder / "results.jsonl")

    def run(self) -> List[Dict[str, Any]]:
        """Collect, then submit; returns the finished runs."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / "study.lock"):
            for run in self.results.changed():
                self.report(f"{run}: its config has changed since it was run, so it runs again.")
            counts = {"waiting": 0, "submitted": 0}
            for run in self.results.missing():
                state = self._settle(run)
                if state in counts:
                    counts[state] += 1
            finished = self.results.finished()
            self.report(
                f"{self.study.name}: {len(finished)} runs are finished, {counts['waiting']} wait "
                f"or run, {counts['submitted']} were submitted now. Call again to collect them."
            )
        return finished

    def _settle(self, run: Run) -> str:
        """Collect a run that has ended, and submit it if it has not been or has failed."""
        output = run_folder(self.folder, run, self.results.fingerprints[run.key])
        job = _read_job(output)
        if job is None:
            return self._submit(run, output)
        ended = output / "ended"
        if not ended.exists():
            if _in_queue(job):
                return "waiting"
            if not ended.exists():  # it may have ended while the queue was asked
                self.report(
                    f"{run}: job {job['job']} is gone without an end, so it goes on as a new job."
                )
                return self._submit(run, output)
        code, seconds = map(int, ended.read_text().split())
        if code:
            log = output / "stdout.txt"
            self.report(f"{run}: failed with exit code {code}, see {log}. Submitted again.")
            return self._submit(run, output)
        try:
            missing = self.results.add(
                run,
                seconds=seconds,
                output=output,
                resumed=job["starts"] > 1,
                versions=job.get("versions"),
            )
        except ValueError as error:
            self.report(f"{run}: gave no result: {error}")
            return "failed"
        self.report(f"{run}: done." if not missing else f"{run}: done, but {missing}")
        return "finished"

    def _submit(self, run: Run, output: Path) -> str:
        output.mkdir(parents=True, exist_ok=True)
        (output / "ended").unlink(missing_ok=True)
        words = [*self.command, "--resume", *run.words(), "OUTPUT_DIR", str(output)]
        script = output / "run.sbatch"
        script.write_text(
            _SCRIPT.format(
                name=f"{self.study.name}_{run.name}_{run.seed}".replace(" ", "_"),
                output=shlex.quote(str(output)),
                python_path=shlex.quote(python_path()),
                folder=shlex.quote(os.getcwd()),
                command=shlex.join(words),
            )
        )
        words = ["sbatch", "--parsable", *self.sbatch_args, str(script)]
        try:
            answer = subprocess.run(words, capture_output=True, text=True)
        except FileNotFoundError:
            raise RuntimeError(
                "There is no sbatch here; use --launcher local, or call this on a login node."
            ) from None
        if answer.returncode:
            raise RuntimeError(
                f"sbatch refused {script}: {answer.stderr.strip()}; change --slurm-args."
            )
        before = _read_job(output)
        # --parsable prints "job" or, with --clusters, "job;cluster".
        job, _, cluster = answer.stdout.strip().partition(";")
        record = {
            "job": job,
            "cluster": cluster,
            "starts": (before["starts"] if before else 0) + 1,
            "submitted": time.strftime("%Y-%m-%d %H:%M:%S"),
            "versions": versions(),
        }
        (output / "job.json").write_text(json.dumps(record))
        return "submitted"


def _read_job(output: Path) -> Optional[Dict[str, Any]]:
    file = output / "job.json"
    return json.loads(file.read_text()) if file.exists() else None


def _in_queue(job: Dict[str, Any]) -> bool:
    """Whether Slurm still has a job that waits or runs; True if it cannot be asked."""
    words = ["squeue", "--noheader", "--jobs", job["job"], "--format", "%T"]
    if job.get("cluster"):
        words += ["--clusters", job["cluster"]]
    try:
        answer = subprocess.run(words, capture_output=True, text=True)
    except FileNotFoundError:
        return True
    if answer.returncode:
        # Slurm forgets jobs after a while and then calls their number invalid.
        return "Invalid job id" not in answer.stderr
    # With --clusters a line names the cluster, whether it has the job or not.
    lines = [line.strip() for line in answer.stdout.splitlines()]
    return any(line and not line.startswith("CLUSTER:") for line in lines)
