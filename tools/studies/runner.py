"""Runs what a study has not finished yet, on this machine."""

import os
import statistics
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence

from .definition import Run, Study
from .lock import Busy, locked
from .results import Results
from .versions import versions

__all__ = ["Runner", "run_folder"]

# Seconds between two looks at whether another training has left its folder.
_LOOK = 1.0


def run_folder(folder: Path, run: Run, fingerprint: str) -> Path:
    """Where a run writes to; another config of the same name has another folder."""
    return folder / f"{run.name}_seed{run.seed}_{fingerprint[:6]}"


class Runner:
    """Runs what a study has not finished yet.

    One process a study: a second one on the same folder is refused. Each training holds a lock on
    its own folder, which outlives this process, so that a training whose study was killed is
    waited for and not met by a second one.

    Args:
        study: the study.
        folder: one folder a run below it, and ``results.jsonl``.
        command: how ``train_net.py`` is called.
        jobs: runs at the same time.
        retry: how often a failed run is tried again at once; the next call tries it anyway.
        report: is told what happens, a line at a time.
    """

    def __init__(
        self,
        study: Study,
        folder: Path,
        command: Sequence[str],
        jobs: int = 1,
        *,
        retry: int = 0,
        report: Callable[[str], Any] = print,
    ):
        self.study = study
        self.folder = Path(folder)
        self.command = list(command)
        self.jobs = jobs
        self.retry = retry
        self.report = report
        self.results = Results(study, self.folder / "results.jsonl")
        self._writing = threading.Lock()
        self._stopped = threading.Event()

    def run(self) -> List[Dict[str, Any]]:
        """Run what is missing; a failed run is reported and the others go on.

        Ctrl-C, or results that cannot be written, end it: what has not begun is left to the next
        call, and trainings that run are waited for. (A terminal sends Ctrl-C to them as well, and
        they stop at their next step.)
        """
        self._stopped.clear()
        self.folder.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / "study.lock"):
            missing = self._announce()
            progress = _Progress(self.results.finished(), missing, self.jobs)
            if missing:
                self.report(f"About {progress.left()} are left.")
            with ThreadPoolExecutor(self.jobs) as pool:
                try:
                    self._submit_all(pool, missing, progress)
                except BaseException:
                    self._stopped.set()
                    # Leaving the pool would otherwise begin all that is left.
                    pool.shutdown(wait=False, cancel_futures=True)
                    self.report(
                        "Stopping: no other run is begun; those in progress are waited for."
                    )
                    raise
        return self.results.finished()

    def _announce(self) -> List[Run]:
        """Say what there is to do, and what changed since the last call."""
        for run in self.results.changed():
            self.report(f"{run}: its config has changed since it was run, so it runs again.")
        missing = self.results.missing()
        done = len(self.study.runs) - len(missing)
        self.report(f"{self.study.name}: {done} runs are finished, {len(missing)} to do.")
        return missing

    def _submit_all(
        self, pool: ThreadPoolExecutor, missing: Sequence[Run], progress: "_Progress"
    ) -> None:
        """Give all runs to the pool, and say which one is done."""
        waiting = {pool.submit(self._until_done, run): run for run in missing}
        for future in as_completed(waiting):
            run = waiting[future]
            failure = future.result()
            progress.done(run)
            state = failure or "done"
            self.report(f"{run}: {state}. About {progress.left()} are left.")

    def _until_done(self, run: Run) -> str:
        """Train one run, again after failures; returns what went wrong at last, or nothing."""
        try:
            failure = self._one(run)
            for attempt in range(1, self.retry + 1):
                if not failure or self._stopped.is_set():
                    break
                self.report(f"{run}: {failure}. Tried again ({attempt} of {self.retry}).")
                failure = self._one(run)
        except BaseException:
            # Here, before this thread takes the next run: its result could not be written either.
            self._stopped.set()
            raise
        return failure

    def _one(self, run: Run) -> str:
        """Train and evaluate one run; returns what went wrong, or nothing."""
        output = run_folder(self.folder, run, self.results.fingerprints[run.key])
        said = False
        while not self._stopped.is_set():
            output.mkdir(parents=True, exist_ok=True)
            try:
                with locked(output / "run.lock") as descriptor:
                    return self._train(run, output, descriptor)
            except Busy as busy:
                if not said:
                    self.report(f"{run}: {busy}, which is waited for.")
                said = True
            self._stopped.wait(_LOOK)
        return "not begun"

    def _train(self, run: Run, output: Path, descriptor: int) -> str:
        start = time.time()
        resumed = (output / "last_checkpoint").exists()
        began_with = versions()
        words = [*self.command, "--resume", *run.words(), "OUTPUT_DIR", str(output)]
        with open(output / "stdout.txt", "a") as log:
            code = subprocess.run(
                words,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, "PYTHONPATH": python_path()},
                pass_fds=(descriptor,),
            ).returncode
        if code:
            return f"failed with exit code {code}, see {output / 'stdout.txt'}"
        try:
            with self._writing:
                missing = self.results.add(
                    run,
                    seconds=time.time() - start,
                    output=output,
                    resumed=resumed,
                    versions=began_with,
                )
        except ValueError as error:
            return f"gave no result: {error}"
        if missing:
            self.report(f"{run}: {missing}")
        return ""


def python_path() -> str:
    """The path of Python with the current folder, where modules of the user's are."""
    return os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))


class _Progress:
    """Estimates the time left from runs of the same name, or of any name, that are finished.

    Args:
        finished: records of earlier calls.
        missing: the runs of this call.
        jobs: runs at the same time.
    """

    def __init__(self, finished: Sequence[Dict[str, Any]], missing: Sequence[Run], jobs: int):
        self.jobs = jobs
        self.missing = {run.key for run in missing}
        self.start = time.time()
        self.count = 0
        self.seconds: Dict[str, List[float]] = {}
        for record in finished:
            if not record.get("resumed"):
                self.seconds.setdefault(record["name"], []).append(record["seconds"])

    def done(self, run: Run) -> None:
        self.missing.discard(run.key)
        self.count += 1

    def left(self) -> str:
        """In words."""
        seconds = self._left()
        if seconds is None:
            return "an unknown number of minutes"
        if seconds >= 5400:
            return f"{seconds / 3600:.1f} hours"
        return f"{seconds / 60:.0f} minutes"

    def _left(self) -> Optional[float]:
        if not self.missing:
            return 0.0
        if self.count:
            # What this machine does now says more than what others did.
            return (time.time() - self.start) / self.count * len(self.missing)
        every = [second for seconds in self.seconds.values() for second in seconds]
        if not every:
            return None
        usual = statistics.fmean(every)
        total = sum(
            statistics.fmean(self.seconds[name]) if name in self.seconds else usual
            for name, _ in self.missing
        )
        return total / min(self.jobs, len(self.missing))
