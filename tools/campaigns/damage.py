"""Random damage to the newest checkpoint: it loads equal, or it is refused by name and the one
before is taken."""

import logging
import random
import re
import shutil
from pathlib import Path
from typing import Any, Callable, Dict, List

from torch import nn

from d2ext.engine import Checkpointer

from .compare import differences, load
from .record import Record, table
from .runs import train

__all__ = ["DamageCampaign"]

KINDS = {
    "truncated": "cut off at a random length",
    "bits": "1 to 8 random bits flipped",
    "structure": "1 to 8 bits flipped in the archive's headers and directory",
    "block": "a random block set to zero",
    "tag": "`last_checkpoint` cut off or with flipped bits",
}


class DamageCampaign:
    """Damages the newest of two checkpoints again and again.

    Args:
        data: the folder of the tiny data set.
        folder: where the run is that wrote the checkpoints.
        record: where each damage is noted.
        seed: another seed damages other bytes.
    """

    def __init__(self, data: Path, folder: Path, record: Record, seed: int = 0):
        self.folder, self.record, self.seed = Path(folder), record, seed
        run = self.folder / "intact"
        shutil.rmtree(run, ignore_errors=True)
        train(data, run, "SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 2)
        self.before, self.newest = (run / f"model_000000{k}.pth" for k in (1, 3))
        self._intact = load(self.newest)

    def run(self, count: int, report: Callable = print) -> bool:
        """Damage until ``count`` are on record; returns whether all ended well."""
        while len(self.record.lines) < count:
            line = self.record.add(**self.attack(len(self.record.lines)))
            if line["outcome"] == "LOST":
                report(f"LOST: {line}")
        report(f"{len(self.record.lines)} checkpoints were damaged.")
        return all(line["outcome"] != "LOST" for line in self.record.lines)

    def attack(self, index: int) -> Dict[str, Any]:
        """One damage, and what became of it: "equal", "refused" or "LOST"."""
        rng = random.Random(f"{self.seed} {index}")
        kind = list(KINDS)[index % len(KINDS)]
        out = self.folder / "damaged"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        for path in (self.before, self.newest):
            shutil.copy2(path, out / path.name)
        (out / "last_checkpoint").write_text(self.newest.name)
        victim = out / ("last_checkpoint" if kind == "tag" else self.newest.name)
        content = bytearray(victim.read_bytes())
        where = _damage(content, kind, rng)
        victim.write_bytes(content)
        found = {"index": index, "kind": kind, "where": where, "outcome": "LOST"}
        with _Warnings() as warnings:
            try:
                chosen = Path(Checkpointer(nn.Linear(1, 1), str(out)).get_checkpoint_file())
                equal = chosen.name == self.newest.name and not differences(
                    load(chosen), self._intact
                )
                named = any(self.newest.name in text for text in warnings.texts)
                if equal:
                    found["outcome"] = "equal"
                elif chosen.name == self.before.name and (named or kind == "tag"):
                    # A wrong bit in the tag can spell the name of the one before: whole, too.
                    found["outcome"] = "refused"
            except Exception as error:  # whatever it is, it is the finding
                found["error"] = f"{type(error).__name__}: {error}"
        return found

    def summary(self) -> str:
        """What was tried, how often, what became of it, as a Markdown table."""
        outcomes = ("equal", "refused", "LOST")
        rows: List[List[Any]] = []
        for kind, words in KINDS.items():
            lines = [line["outcome"] for line in self.record.lines if line["kind"] == kind]
            rows.append([words, len(lines), *[lines.count(outcome) for outcome in outcomes]])
        rows.append(["all", *[sum(row[k] for row in rows) for k in range(1, 5)]])
        heads = ["damage", "times", "loads equal", "refused, the one before taken", "lost"]
        return table(heads, rows)


def _damage(content: bytearray, kind: str, rng: random.Random) -> str:
    """Damage ``content`` in place; returns where."""
    if kind == "truncated" or (kind == "tag" and rng.random() < 0.3):
        length = rng.randrange(len(content))
        del content[length:]
        return f"cut at {length}"
    if kind == "block":
        start, length = rng.randrange(len(content)), rng.randrange(1, 4096)
        content[start : start + length] = bytes(len(content[start : start + length]))
        return f"{length} bytes at {start}"
    places = range(len(content))
    if kind == "structure":
        # Headers begin with "PK"; the directory and its end are made of such entries as well.
        heads = [m.start() for m in re.finditer(rb"PK[\x01\x03\x05\x06]", bytes(content))]
        places = [p for head in heads for p in range(head, min(head + 64, len(content)))]
    bits = [(rng.choice(places), rng.randrange(8)) for _ in range(rng.randint(1, 8))]
    for place, bit in bits:
        content[place] ^= 1 << bit
    return f"bits {bits}"


class _Warnings(logging.Handler):
    """Collects the warnings of the checkpointer."""

    def __enter__(self) -> "_Warnings":
        self.texts: List[str] = []
        self._logger = logging.getLogger("d2ext.engine.checkpoint")
        self._propagates, self._logger.propagate = self._logger.propagate, False
        self._logger.addHandler(self)
        return self

    def __exit__(self, *error: Any) -> None:
        self._logger.removeHandler(self)
        self._logger.propagate = self._propagates

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())
