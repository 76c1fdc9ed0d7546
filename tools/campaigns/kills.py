"""SIGKILL at random moments; then the resumed run must come to the same, bit for bit."""

import random
import re
import shutil
import signal
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

from .compare import run_differences
from .record import Record, table
from .runs import Run, start_ranks, train

__all__ = ["EVERYTHING", "KINDS", "KillCampaign"]

# All that has a state, evaluated and saved every few steps.
EVERYTHING = (
    "SOLVER.MAX_ITER", 12, "SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 4,
    "ENGINE.EMA.ENABLED", True, "TEST.VAL_LOSS.PERIOD", 3, "ENGINE.MAX_TO_KEEP", 2,
    "TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2,
    "SOLVER.ALWA.ENABLED", True, "SOLVER.ALWA.INTERVAL", 2,
    "SOLVER.ALWA.GROUPS", "['toy=loss_cls/loss_box_reg']",
    "ENGINE.BEST_CHECKPOINT.METRIC", "val/total_loss", "ENGINE.BEST_CHECKPOINT.MODE", "min",
)  # fmt: skip
STEPS = 12

KINDS = {
    "moment": "at a random moment, set-up included",
    "writing": "before one of the calls that write a checkpoint or metrics.json",
    "worker": "a data worker in a random step",
    "rank": "one of two processes at a random moment",
    "three": "one of three processes at a random moment",
    "four": "one of four processes at a random moment",
}
# Processes of the kinds that have more than one.
_RANKS = {"rank": 2, "three": 3, "four": 4}

# In turn; a campaign of four has each of the first kinds once.
_ORDER = (
    "moment", "writing", "worker", "rank", "moment",
    "writing", "three", "moment", "writing", "four",
)  # fmt: skip


class KillCampaign:
    """Kills runs until so many kills are on record.

    Args:
        data: the folder of the tiny data set.
        folder: where the runs are; the uninterrupted ones stay there.
        record: where each attack is noted.
        seed: another seed kills at other moments.
    """

    def __init__(self, data: Path, folder: Path, record: Record, seed: int = 0):
        self.data, self.folder, self.record, self.seed = data, Path(folder), record, seed
        self._whole: Dict[int, Path] = {}
        self._seconds: Dict[int, float] = {}
        self._write_calls = 0

    @property
    def kills(self) -> int:
        """Kills on record."""
        return sum(line["kills"] for line in self.record.lines)

    def run(self, kills: int, report: Callable = print) -> bool:
        """Attack until ``kills`` are on record; returns whether nothing was lost."""
        while self.kills < kills:
            line = self.record.add(**self.attack(len(self.record.lines)))
            state = "equal" if not line["differences"] else f"LOST: {line['differences'][:3]}"
            report(f"{self.kills} of {kills} kills, {line['kind']} ({line['where']}): {state}")
        return not any(line["differences"] for line in self.record.lines)

    def attack(self, index: int) -> Dict[str, Any]:
        """Kill a run, once or twice, resume it to its end and compare."""
        start = time.monotonic()
        rng = random.Random(f"{self.seed} {index}")
        kind = _ORDER[index % len(_ORDER)]
        ranks = _RANKS.get(kind, 1)
        whole = self._uninterrupted(ranks)
        out = self.folder / f"attack_{index:04d}"
        found: Dict[str, Any] = {"index": index, "kind": kind, "kills": 0, "where": ""}
        for path in self.folder.glob(out.name + "*"):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for _ in range(rng.choice((1, 1, 2))):
            if ranks > 1:
                where, seconds = self._kill_rank(out, rng, ranks)
            else:
                where, seconds = getattr(self, f"_kill_{kind}")(out, rng)
            if where:
                found["kills"] += 1
                found["where"] += f"{'; ' if found['where'] else ''}{where}"
            if seconds:
                found["seconds_to_stop"] = max(seconds, found.get("seconds_to_stop", 0.0))
        text = self._finish(out, ranks)
        resumed = re.search(r"Resumed at step (\d+)", text)
        found["resumed_at"] = int(resumed.group(1)) if resumed else 0
        found["differences"] = run_differences(whole, out)[:20]
        found["seconds"] = round(time.monotonic() - start, 1)
        if not found["differences"]:
            shutil.rmtree(out)
        return found

    def _uninterrupted(self, ranks: int) -> Path:
        """The run to compare with, and what aiming needs to know: how long it takes, and how
        often it calls the system to write."""
        if ranks not in self._whole:
            out = self.folder / f"whole_{ranks}"
            shutil.rmtree(out, ignore_errors=True)
            start = time.monotonic()
            if ranks == 1:
                text = train(self.data, out, *EVERYTHING, sabotage="kill-in-writing -1")
                self._write_calls = int(re.search(r"(\d+) calls wrote", text).group(1))
            else:
                self._finish(out, ranks)
            self._seconds[ranks] = time.monotonic() - start
            self._whole[ranks] = out
        return self._whole[ranks]

    def _finish(self, out: Path, ranks: int) -> str:
        if ranks == 1:
            return train(self.data, out, "--resume", *EVERYTHING)
        runs = self._start(out, ranks)
        codes = [run.wait() for run in runs]
        assert codes == [0] * ranks, f"exit codes {codes}: {runs[0].text}"
        return runs[0].text

    def _start(self, out: Path, ranks: int) -> List[Run]:
        """All processes of a run, with as many images for each as one process has."""
        words = ("--resume", *EVERYTHING, "SOLVER.IMS_PER_BATCH", 2 * ranks)
        return start_ranks(self.data, out, *words, world_size=ranks)

    # -------------------------------------------------------------- the kinds

    def _kill_moment(self, out: Path, rng: random.Random) -> Tuple[str, float]:
        run = Run(self.data, out, "--resume", *EVERYTHING)
        time.sleep(rng.random() * self._seconds[1])
        run.kill(signal.SIGKILL)
        return _where(run) if run.wait() == -signal.SIGKILL else "", 0.0

    def _kill_writing(self, out: Path, rng: random.Random) -> Tuple[str, float]:
        call = rng.randrange(self._write_calls)
        run = Run(
            self.data, out, "--resume", *EVERYTHING, sabotage=f"kill-in-writing {call}"
        )  # a resumed run has fewer calls, and may end before this one
        return (f"call {call}" if run.wait() == -signal.SIGKILL else ""), 0.0

    def _kill_worker(self, out: Path, rng: random.Random) -> Tuple[str, float]:
        step = rng.randrange(STEPS)
        words = (*EVERYTHING, "DATALOADER.NUM_WORKERS", 2)
        run = Run(self.data, out, "--resume", *words, sabotage=f"kill-worker {step}")
        code = run.wait()
        if code == 0:
            return "", 0.0  # resumed behind that step
        assert code == 1 and "a data worker was ended from outside" in run.text, run.text
        return f"step {step}", 0.0

    def _kill_rank(self, out: Path, rng: random.Random, ranks: int) -> Tuple[str, float]:
        """The others must end by themselves, and say why."""
        runs = self._start(out, ranks)
        victim = rng.randrange(ranks)
        runs[0].wait_for("Training from step")
        time.sleep(rng.random() * self._seconds[ranks] / 2)
        runs[victim].kill(signal.SIGKILL)
        start = time.monotonic()
        codes = [run.wait() for run in runs]
        if codes[victim] == 0:
            return "", 0.0
        seconds = time.monotonic() - start
        # If the victim was all but done, the others did not need it any more.
        others = codes[:victim] + codes[victim + 1 :]
        assert set(others) <= {0, 1}, f"exit codes {codes}: {runs[0].text}"
        return f"rank {victim}, {_where(runs[0])}", seconds

    def summary(self) -> str:
        """What was tried, how often, what was lost, as a Markdown table."""
        rows: List[List[Any]] = []
        for kind, words in KINDS.items():
            lines = [line for line in self.record.lines if line["kind"] == kind]
            lost = sum(bool(line["differences"]) for line in lines)
            rows.append([words, sum(line["kills"] for line in lines), len(lines), lost])
        rows.append(["all", self.kills, len(self.record.lines), sum(row[3] for row in rows)])
        text = table(["SIGKILL", "kills", "runs", "runs that lost something"], rows)
        waits = [line["seconds_to_stop"] for line in self.record.lines if "seconds_to_stop" in line]
        if waits:
            text += f"\n\nThe other processes stopped after {max(waits):.1f} seconds at most."
        return text


def _where(run: Run) -> str:
    """How far a killed run had come, by its log."""
    steps = re.findall(r"Training from step (\d+)", run.text)
    if not steps:
        return "set-up"
    logged = re.findall(r"iter: (\d+) ", run.text)
    return f"after step {logged[-1] if logged else steps[0]}"
