"""What a run does to itself at a chosen step or moment, for the tests of what survives it.

The environment variable ``D2EXT_SABOTAGE`` says what: "kill 7" sends SIGKILL in step 7, and
"kill 7 1" does so in rank 1 only.
"""

import builtins
import multiprocessing
import os
import resource
import signal
import time
from typing import Any, Callable, Dict, Optional

from detectron2.config import CfgNode
from detectron2.utils import comm

from d2ext import _files
from d2ext.engine import HOOK_REGISTRY, HookBase

__all__ = ["ACTIONS", "VARIABLE"]

VARIABLE = "D2EXT_SABOTAGE"


class _AtStep(HookBase):
    """Does something to the run at one step."""

    def __init__(self, action: Callable, step: int):
        self.action, self.step = action, step

    def on_losses(self, loss_dict: Dict[str, Any]) -> Optional[Dict[str, Any]]:
        if self.trainer.iter == self.step:
            return self.action(self.trainer, loss_dict)
        return None


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _kill(trainer: Any, loss_dict: Dict[str, Any]) -> None:
    # In the last micro-step: with accumulation, some gradients of this step exist already.
    if trainer.micro_step == trainer.accumulate - 1:
        _die()


def _kill_once(trainer: Any, loss_dict: Dict[str, Any]) -> None:
    """In the first life under torchrun, which starts the processes again."""
    if os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        _die()


def _kill_worker(trainer: Any, loss_dict: Dict[str, Any]) -> None:
    """One of the data workers, as the system does when it is out of memory."""
    workers = multiprocessing.active_children()
    os.kill(workers[trainer.iter % len(workers)].pid, signal.SIGKILL)
    while True:  # torch reports it by an exception out of a signal handler
        time.sleep(0.05)


def _terminate(trainer: Any, loss_dict: Dict[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def _kill_in_evaluation(trainer: Any, loss_dict: Dict[str, Any]) -> None:
    """While the evaluation that ends this step is under way."""
    evaluate = next(h for h in trainer.all_hooks if type(h).__name__ == "Evaluate")
    evaluate._function = _die


def _hang(trainer: Any, loss_dict: Dict[str, Any]) -> None:
    print("hanging", flush=True)
    while True:
        time.sleep(0.05)


def _nan(trainer: Any, loss_dict: Dict[str, Any]) -> Dict[str, Any]:
    return {**loss_dict, "loss_cls": loss_dict["loss_cls"] * float("nan")}


class _FillDisk(HookBase):
    """From a step on, no file of this process may grow beyond so many bytes: a full disk."""

    def __init__(self, step: int, size: int):
        self.step, self.size = step, size

    def on_losses(self, loss_dict: Dict[str, Any]) -> None:
        if self.trainer.iter == self.step:
            hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, hard))


ACTIONS = {
    "kill": _kill,
    "kill-once": _kill_once,
    "kill-worker": _kill_worker,
    "kill-in-evaluation": _kill_in_evaluation,
    "terminate": _terminate,
    "nan": _nan,
    "hang": _hang,
}


class _InWriting(HookBase):
    """SIGKILL before one of the calls that write, flush, rename and remove files atomically.

    Args:
        call: the number of that call, counted over the whole run; -1 only counts, and prints the
            count at the end.
    """

    def __init__(self, call: int):
        self.call, self.count = call, 0

    def before_train(self) -> None:
        _files.open = self._open  # type: ignore[attr-defined]
        for name in ("fsync", "replace", "remove"):
            setattr(os, name, self._counted(getattr(os, name)))

    def after_train(self) -> None:
        print(f"{self.count} calls wrote files.", flush=True)

    def _tick(self) -> None:
        if self.count == self.call:
            _die()
        self.count += 1

    def _counted(self, function: Callable) -> Callable:
        def counted(*args: Any, **kwargs: Any) -> Any:
            self._tick()
            return function(*args, **kwargs)

        return counted

    def _open(self, *args: Any, **kwargs: Any) -> Any:
        self._tick()
        # Unbuffered: what has been written before the kill is in the file, as on a slow disk.
        return _CountedStream(builtins.open(*args, buffering=0, **kwargs), self._tick)


class _CountedStream:
    """A stream that reports each write."""

    def __init__(self, stream: Any, tick: Callable):
        self._stream, self._tick = stream, tick

    def write(self, data: Any) -> int:
        self._tick()
        return self._stream.write(data)

    def __enter__(self) -> "_CountedStream":
        return self

    def __exit__(self, *error: Any) -> None:
        self._stream.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@HOOK_REGISTRY.register()
def Sabotage(cfg: CfgNode) -> Optional[HookBase]:
    """The hook that the environment variable asks for; None without it, and on other ranks."""
    words = os.environ.get(VARIABLE, "").split()
    if words[:1] == ["fill-disk"]:
        return _FillDisk(int(words[1]), int(words[2]))
    if not words or (len(words) > 2 and int(words[2]) != comm.get_rank()):
        return None
    if words[0] == "kill-in-writing":
        return _InWriting(int(words[1]))
    return _AtStep(ACTIONS[words[0]], int(words[1]))
