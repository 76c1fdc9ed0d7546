"""Processes of tests, forked: a fresh interpreter would import for seconds what is here already."""

import functools
import gc
import os
import runpy
import signal
import subprocess
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

from campaigns.runs import forget_logs

from d2ext.engine import launch
from d2ext.engine.launch import free_port

__all__ = ["PATIENCE", "call", "call_python", "fork", "forked", "run_ranks", "wait_for_all"]

# Seconds after which a process counts as hanging; on a busy machine all of them are slow.
PATIENCE = 900


def fork(function):
    """Call ``function()`` in a forked process, which an error ends with 1; returns its number."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    gc.freeze()  # nothing of the parent's is garbage here: a collection would read all of it
    code = 1
    try:
        function()
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def wait_for_all(pids, grace=60):
    """The exit codes of forked processes; where one fails, the others soon have to end as well."""
    codes, deadline = {}, time.monotonic() + PATIENCE
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes and (found := os.waitpid(pid, os.WNOHANG))[0]:
                codes[pid] = os.waitstatus_to_exitcode(found[1])
                if codes[pid]:
                    deadline = min(deadline, time.monotonic() + grace)
        if time.monotonic() > deadline:
            for pid in set(pids) - set(codes):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.005)
    return [codes[pid] for pid in pids]


def forked(test):
    """Run a test in a process of its own: what it starts for good does not reach the next ones."""

    @functools.wraps(test)
    def run(*args, **kwargs):
        assert wait_for_all([fork(lambda: test(*args, **kwargs))]) == [0]

    return run


def call(function, cwd, env=None):
    """Call ``function()`` forked, in a folder; returns what :func:`subprocess.run` would.

    Args:
        function: what it prints goes through files in the folder.
        cwd: the folder.
        env: further environment variables; the folders of PYTHONPATH come first.
    """
    env = env or {}
    files = [Path(cwd, f".{name}.{os.getpid()}") for name in ("stdout", "stderr")]

    def main():
        forget_logs()
        for number, file in enumerate(files, start=1):
            handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            os.dup2(handle, number)
            os.close(handle)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
        sys.__stdout__, sys.__stderr__ = sys.stdout, sys.stderr
        os.chdir(cwd)
        os.environ.update(env)
        sys.path[:0] = [x for x in env.get("PYTHONPATH", "").split(os.pathsep) if x]
        function()

    (code,) = wait_for_all([fork(main)])
    stdout, stderr = (file.read_text(errors="replace") for file in files)
    for file in files:
        file.unlink()
    return subprocess.CompletedProcess([], code, stdout, stderr)


def call_python(*words, cwd, env=None):
    """``python WORDS``, a script or ``-m`` and a module, forked; see :func:`call`."""
    words = [str(word) for word in words]

    def main():
        if words[0] == "-m":
            sys.path.insert(0, str(cwd))
            sys.argv = words[1:]
            runpy.run_module(words[1], run_name="__main__", alter_sys=True)
        else:
            sys.path.insert(0, str(Path(words[0]).parent))
            sys.argv = words
            runpy.run_path(words[0], run_name="__main__")

    return call(main, cwd, env)


def run_ranks(function, world_size=2, seconds=PATIENCE):
    """Call ``function(rank)`` in forked processes joined by gloo; fails if one of them does."""
    port = free_port()

    def rank_main(rank):
        os.environ.update(
            RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank),
            LOCAL_WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip

        def main():
            function(rank)

        # An error with a sentence of its own becomes an exit code.
        sys.exit(launch(main, timeout=timedelta(seconds=seconds)))

    pids = [fork(lambda rank=rank: rank_main(rank)) for rank in range(world_size)]
    codes = wait_for_all(pids)
    assert codes == [0] * world_size, f"exit codes of the ranks: {codes}"
