"""Stopping when the system asks for it."""

import logging
import os
import signal
import threading
import time
from typing import Any, Dict, Sequence

from .base import HookBase

__all__ = ["StopOnSignal"]

logger = logging.getLogger(__name__)


class StopOnSignal(HookBase):
    """The first signal finishes the step and writes a checkpoint; a second one exits at once.

    A launcher and the scheduler above it often send the same signal twice within a moment, as does
    Ctrl-C in a process group; within ``grace`` seconds that counts as one.

    Args:
        names: signals by name, for example SIGTERM, SIGINT, SIGUSR1.
        grace: seconds after the first signal in which another one is the same wish.
    """

    def __init__(self, names: Sequence[str] = ("SIGTERM", "SIGINT"), grace: float = 1.0):
        unknown = [name for name in names if not hasattr(signal, name)]
        if unknown:
            raise ValueError(f"ENGINE.STOP_SIGNALS names '{unknown[0]}', which is no signal here.")
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
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _handle(self, number: int, frame: Any) -> None:
        if os.getpid() != self._owner:  # a forked data worker before it sets its own
            return
        name = signal.Signals(number).name
        now = time.monotonic()
        if self._first and now - self._first > self._grace:
            os.write(2, f"{name} again: exiting at once.\n".encode())
            os._exit(128 + number)
        if not self._first:
            self._first = now
            # No logging here: the signal may have come inside of it.
            os.write(2, f"{name}: finishing the step, then writing a checkpoint.\n".encode())
            self._trainer.request_stop(name, by_signal=True)
