"""Stopping when the system asks for it."""

import logging
import os
import signal
import threading
import time
from typing import Any, Dict, Sequence

from ..errors import EXIT_PREEMPTED
from .base import HookBase

__all__ = ["StopOnSignal"]

logger = logging.getLogger(__name__)


class StopOnSignal(HookBase):
    """The first signal finishes the step and writes a checkpoint; a second one exits at once.

    A launcher and the scheduler above it often send the same signal twice within a moment, as does
    Ctrl-C in a process group; within ``grace`` seconds that counts as one. Once the checkpoint is
    being written, a second one waits for it and exits with 75, as the first one would have.

    Args:
        names: signals by name, for example SIGTERM, SIGINT, SIGUSR1.
        grace: seconds after the first signal in which another one is the same wish.
    """

    def __init__(self, names: Sequence[str] = ("SIGTERM", "SIGINT"), grace: float = 1.0):
        unknown = [name for name in names if not hasattr(signal, name)]
        if unknown:
            raise ValueError(
                f"ENGINE.STOP_SIGNALS names '{unknown[0]}', which is not a signal here."
            )
        self._numbers = [getattr(signal, name) for name in names]
        self._grace = grace
        self._first = 0.0
        self._previous: Dict[int, Any] = {}

    def before_train(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            logger.warning("Stop signals are not watched: training runs outside the main thread.")
            return
        self._trainer = self.trainer
        self._owner = os.getpid()
        for number in self._numbers:
            self._previous[number] = signal.signal(number, self._handle)

    def after_train(self) -> None:
        if self.trainer.stopped_by_signal and self.trainer.state.writing == "written":
            return  # what comes between here and the end of the process keeps its exit code
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, frame: Any) -> None:
        if os.getpid() != self._owner:  # a forked data worker before it sets its own
            return
        name = signal.Signals(number).name
        now = time.monotonic()
        if self._first and now - self._first > self._grace:
            self._again(number, name)
            return
        if not self._first:
            self._first = now
            # No logging here: the signal may have come inside of it.
            os.write(2, f"{name}: finishing the step, then writing a checkpoint.\n".encode())
            self._trainer.request_stop(name, by_signal=True)

    def _again(self, number: int, name: str) -> None:
        writing = self._trainer.state.writing if self._trainer.stopping else ""
        if writing == "now":
            os.write(2, f"{name} again: the checkpoint is being written.\n".encode())
            return
        os.write(2, f"{name} again: exiting at once.\n".encode())
        os._exit(EXIT_PREEMPTED if writing == "written" else 128 + number)
