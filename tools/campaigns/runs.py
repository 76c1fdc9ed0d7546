"""``train_net.py`` in processes of its own: started, waited for, killed."""

import contextlib
import functools
import gc
import importlib
import logging
import os
import runpy
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any, Callable, Dict, List, NoReturn, Optional, Sequence

from detectron2.utils import logger as upstream_logger
from detectron2.utils.collect_env import collect_env_info

from d2ext.engine.launch import free_port

from .sabotage import VARIABLE
from .toy import toy_options

__all__ = [
    "ROOT",
    "Run",
    "all_loggers",
    "forget_log_files",
    "forget_logs",
    "live_in_a_fork",
    "start_ranks",
    "start_subprocess",
    "train",
]

ROOT = Path(__file__).resolve().parents[2]
"""The checkout, which has ``train_net.py``."""


def arguments_of(output_dir: Any, words: Sequence[Any]) -> List[str]:
    """The toy's options come first, so that words may change them; a config file replaces them."""
    words = [str(word) for word in words]
    count = next((k for k, word in enumerate(words) if word.isupper() and "." in word), len(words))
    options = [str(word) for word in toy_options(output_dir)]
    if "--config-file" in words:
        options = ["OUTPUT_DIR", str(output_dir)]
    hooks = ["ENGINE.HOOKS", "['Sabotage', 'Watch']"]
    return ["--import", "campaigns.toy", *words[:count], *options, *hooks, *words[count:]]


def environment_of(data: Any, sabotage: str) -> Dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "tools"), os.environ.get("PYTHONPATH", "")])
    return {
        "TINY_ROOT": str(data),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": path,
        VARIABLE: sabotage,
    }


def all_loggers() -> List[logging.Logger]:
    """The root logger and every other one."""
    known = logging.root.manager.loggerDict.values()
    return [logging.root, *(logger for logger in known if isinstance(logger, logging.Logger))]


def forget_logs() -> None:
    """In a forked process: log nothing where the parent does, whose files are not its own."""
    for logger in all_loggers():
        logger.handlers.clear()
    forget_log_files()


def forget_log_files() -> None:
    """Detectron2 sets up a folder's log once; afterwards it does so again."""
    upstream_logger.setup_logger.cache_clear()
    upstream_logger._cached_log_stream.cache_clear()


@functools.cache
def _import_what_runs_need() -> None:
    """What every run imports late, and so again in each forked process: half of its time."""
    for name in ("faster_coco_eval", "lvis"):
        importlib.import_module(name)
    collect_env_info()


def live_in_a_fork(output: int, life: Callable[[], int]) -> NoReturn:
    """The life of a forked process; it never returns into the code of its parent.

    Args:
        output: the open file that all it prints goes to.
        life: what it does; returns the exit code.
    """
    gc.freeze()  # the parent's objects are no garbage here: a collection would read all of them
    code = 1
    try:
        forget_logs()
        os.dup2(output, 1)
        os.dup2(output, 2)
        os.close(output)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        code = life()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush()
        os._exit(code)


class Run:
    """train_net.py in a forked process, which does not have to import everything again.

    Args:
        data: the folder of the tiny data set.
        output_dir: OUTPUT_DIR; what the run prints goes beside it, into ``{output_dir}.log``.
        words: further words of the command line, flags first.
        sabotage: see :mod:`campaigns.sabotage`.
        env: further environment variables.
        pipe: print through a pipe, which no limit on the size of files reaches.
    """

    def __init__(
        self,
        data: Any,
        output_dir: Any,
        *words: Any,
        sabotage: str = "",
        env: Optional[Dict[str, str]] = None,
        pipe: bool = False,
    ):
        self.log = Path(f"{output_dir}.log")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.code = None
        self.log.touch()
        self._start = self.log.stat().st_size
        self._copier = None
        output = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        if pipe:
            self._copier = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=output)
            os.close(output)
            output = os.dup(self._copier.stdin.fileno())
            self._copier.stdin.close()
        _import_what_runs_need()
        sys.stdout.flush()
        sys.stderr.flush()
        arguments = arguments_of(output_dir, words)
        environment = {**environment_of(data, sabotage), **(env or {})}
        self.pid = os.fork()
        if self.pid == 0:
            live_in_a_fork(output, lambda: self._train(arguments, environment))
        os.close(output)

    @staticmethod
    def _train(arguments: List[str], environment: Dict[str, str]) -> int:
        os.environ.update(environment)
        sys.argv = ["train_net.py", *arguments]
        runpy.run_path(str(ROOT / "train_net.py"), run_name="__main__")
        return 0

    @property
    def text(self) -> str:
        """What this run has printed."""
        return self.log.read_bytes()[self._start :].decode(errors="replace")

    def wait_for(self, word: str, count: int = 1, seconds: float = 900) -> None:
        """Wait until the output has a word so often, or the process has ended."""
        deadline = time.monotonic() + seconds
        while self.text.count(word) < count and self.ended() is None:
            assert time.monotonic() < deadline, f"'{word}' never came:\n{self.text}"
            time.sleep(0.005)

    def ended(self) -> Optional[int]:
        """The exit code, or None while it runs; minus the signal that ended the process."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
                if self._copier is not None:
                    self._copier.wait()
        return self.code

    def kill(self, number: int) -> None:
        if self.ended() is None:
            os.kill(self.pid, number)

    def wait(self, seconds: float = 900) -> int:
        """Wait for the exit code; see :meth:`ended`."""
        deadline = time.monotonic() + seconds
        while self.ended() is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, 9)
                raise AssertionError(f"The run did not end:\n{self.text}")
            time.sleep(0.01)
        return self.code


def train(data: Any, output_dir: Any, *words: Any, sabotage: str = "", code: int = 0) -> str:
    """Run train_net.py to its end and check its exit code; returns its output."""
    run = Run(data, output_dir, *words, sabotage=sabotage)
    assert run.wait() == code, run.text
    return run.text


def start_ranks(
    data: Any, output_dir: Any, *words: Any, sabotage: str = "", world_size: int = 2
) -> List[Run]:
    """train_net.py in several processes, with torchrun's environment variables."""
    port = free_port()
    return [
        Run(
            data,
            output_dir,
            *words,
            sabotage=sabotage,
            env={
                "RANK": str(rank),
                "WORLD_SIZE": str(world_size),
                "LOCAL_RANK": str(rank),
                "LOCAL_WORLD_SIZE": str(world_size),
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(port),
            },
        )
        for rank in range(world_size)
    ]


def start_subprocess(
    data: Any,
    output_dir: Any,
    *words: Any,
    sabotage: str = "",
    launcher: Sequence[str] = (),
) -> subprocess.Popen:
    """train_net.py as a user starts it, from nothing."""
    command = [*(launcher or [sys.executable]), str(ROOT / "train_net.py")]
    return subprocess.Popen(
        [*command, *arguments_of(output_dir, words)],
        env={**os.environ, **environment_of(data, sabotage)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
