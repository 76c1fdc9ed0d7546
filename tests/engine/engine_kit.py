"""What the engine's tests share: configs of the toy detector, runs of train_net.py, ranks."""

import os
import sys
import traceback
from datetime import timedelta

from d2ext import get_cfg
from d2ext.engine import launch
from d2ext.engine.launch import free_port
from d2ext.faults.compare import differences, load, metrics, state_of
from d2ext.faults.runs import ROOT, Run, start_ranks, start_subprocess, train
from d2ext.faults.toy import toy_options

__all__ = [
    "ROOT",
    "Run",
    "differences",
    "load",
    "metrics",
    "run_ranks",
    "start_ranks",
    "start_subprocess",
    "state_of",
    "toy_cfg",
    "toy_options",
    "train",
]


def toy_cfg(output_dir, *words):
    """The toy detector's config, with more KEY VALUE words."""
    cfg = get_cfg()
    cfg.merge_from_list([*toy_options(output_dir), *words])
    return cfg


def run_ranks(function, world_size=2, seconds=60):
    """Call ``function(rank)`` in forked processes joined by gloo; fails if one of them does."""
    port = free_port()
    pids = []
    for rank in range(world_size):
        pid = os.fork()
        if pid == 0:
            code = 1
            os.environ.update(
                RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK=str(rank),
                LOCAL_WORLD_SIZE=str(world_size), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
            )  # fmt: skip
            try:
                launch(function, args=(rank,), timeout=timedelta(seconds=seconds))
                code = 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stderr.flush()
                os._exit(code)
        pids.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    assert codes == [0] * world_size, f"exit codes of the ranks: {codes}"
