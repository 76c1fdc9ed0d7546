"""Exit codes, and the errors that end a run with one sentence."""

import re
from typing import Optional

from detectron2.utils import comm

from d2ext._files import RunError, WriteError, mistakes_in_sentences

__all__ = [
    "DamagedCheckpointError",
    "EXIT_NONFINITE",
    "EXIT_PREEMPTED",
    "LostProcessError",
    "NonFiniteLossError",
    "RunError",
    "WriteError",
    "expected_error",
    "is_lost_worker",
    "mistakes_in_sentences",
]

EXIT_PREEMPTED = 75
"""A signal stopped the run, a checkpoint is written: start it again with --resume. (The number is
the system's own word for "temporary failure, try again".)"""

EXIT_NONFINITE = 76
"""A loss became infinite or NaN; starting again unchanged would end the same way."""


class NonFiniteLossError(RunError, FloatingPointError):
    """A loss became infinite or NaN; the message names term, iteration, lr and files."""

    exit_code = EXIT_NONFINITE


class DamagedCheckpointError(RunError):
    """There are checkpoints to resume from, but none is whole."""


class LostProcessError(RunError):
    """Another process of the run, or a data worker, has ended or does not answer."""


# Gloo and NCCL have no error types.
_LOST = re.compile(
    r"gloo|NCCL|(connection|socket).*(closed|reset|refused)|broken pipe|timed out waiting"
    r"|failed to (recv|send|read|write)",
    re.IGNORECASE,
)


# What fvcore says about a name that is not registered.
_UNREGISTERED = re.compile(r"No object named '.*' found in '.*' registry!$")


def expected_error(error: BaseException) -> Optional[RunError]:
    """The error as one that a sentence explains; None: it needs its traceback."""
    if isinstance(error, RunError):
        return error
    if isinstance(error, KeyError) and _UNREGISTERED.match(str(error.args[:1] and error.args[0])):
        return RunError(
            f"{error.args[0]} Correct the name in the config, or name the module that registers it "
            "with --import."
        )
    if is_lost_worker(error):
        return LostProcessError(
            f"{_first_line(error)}: a data worker was ended from outside, often out of memory "
            "(fewer DATALOADER.NUM_WORKERS need less); start again with --resume."
        )
    lost = isinstance(error, (RuntimeError, ConnectionError)) and _LOST.search(str(error))
    if not lost or comm.get_world_size() == 1:
        return None
    return LostProcessError(
        f"Process {comm.get_rank()} of {comm.get_world_size()} stops, because another one has "
        f"ended or does not answer ({_first_line(error)}); look for the error of that one, and "
        "start all of them again with --resume."
    )


def is_lost_worker(error: BaseException) -> bool:
    """Whether torch says that a data worker has died. It does so by an exception out of a signal
    handler, which may appear anywhere in the trainer."""
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def _first_line(error: BaseException) -> str:
    """What a library says, without the place in its source and the addresses after it."""
    line = re.sub(r"^\[[^\]]*\]\s*", "", str(error).strip().splitlines()[0])
    return line.split(". ")[0].split(" [")[0].rstrip(".")
