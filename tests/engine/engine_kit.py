"""What the engine's tests share: a config of the toy detector, and train_net.py in a process."""

import json
import os
import runpy
import subprocess
import sys
import time
import traceback
from datetime import timedelta
from pathlib import Path

import torch

from d2ext import get_cfg
from d2ext.engine import launch
from d2ext.engine.launch import free_port

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]


def toy_options(output_dir):
    """The toy detector on the tiny data set, as KEY VALUE words."""
    return [
        "MODEL.META_ARCHITECTURE", "ToyDetector",
        "MODEL.DEVICE", "cpu",
        "DATASETS.TRAIN", ("tiny_train",),
        "DATASETS.TEST", ("tiny_val",),
        "DATALOADER.NUM_WORKERS", 0,
        "INPUT.MIN_SIZE_TRAIN", (64, 80),
        "INPUT.MIN_SIZE_TEST", 64,
        "INPUT.CROP.ENABLED", True,
        "SOLVER.IMS_PER_BATCH", 2,
        "SOLVER.MAX_ITER", 6,
        "SOLVER.WARMUP_ITERS", 2,
        "SOLVER.STEPS", (4,),
        "SOLVER.BASE_LR", 0.01,
        "SOLVER.CHECKPOINT_PERIOD", 0,
        "TEST.EVAL_PERIOD", 0,
        "ENGINE.LOG_PERIOD", 2,
        "ENGINE.TENSORBOARD", False,
        "SEED", 3,
        "OUTPUT_DIR", str(output_dir),
    ]  # fmt: skip


def toy_cfg(output_dir, *words):
    """The same as a config, with more KEY VALUE words."""
    cfg = get_cfg()
    cfg.merge_from_list([*toy_options(output_dir), *words])
    return cfg


def _arguments(output_dir, words):
    """The toy's options come first, so that words may change them; a config file replaces them."""
    words = [str(word) for word in words]
    count = next((k for k, word in enumerate(words) if word.isupper() and "." in word), len(words))
    options = [str(word) for word in toy_options(output_dir)]
    if "--config-file" in words:
        options = ["OUTPUT_DIR", str(output_dir)]
    hooks = ["ENGINE.HOOKS", "['Sabotage']"]
    return ["--import", "tiny_project", *words[:count], *options, *hooks, *words[count:]]


def _environment(data, sabotage):
    path = os.pathsep.join([str(ROOT), str(HERE), os.environ.get("PYTHONPATH", "")])
    return {
        "TINY_ROOT": str(data),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": path,
        "TINY_SABOTAGE": sabotage,
    }


class Run:
    """train_net.py in a forked process, which does not have to import everything again."""

    def __init__(self, data, output_dir, *words, sabotage="", env=None):
        self.log = Path(f"{output_dir}.log")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.code = None
        self.log.touch()
        self._start = self.log.stat().st_size
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.environ.update({**_environment(data, sabotage), **(env or {})})
                stream = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(stream, 1)
                os.dup2(stream, 2)
                sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w", buffering=1)
                sys.argv = ["train_net.py", *_arguments(output_dir, words)]
                runpy.run_path(str(ROOT / "train_net.py"), run_name="__main__")
            except SystemExit as error:
                code = error.code or 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                os._exit(code)

    @property
    def text(self):
        return self.log.read_bytes()[self._start :].decode(errors="replace")

    def wait_for(self, word, count=1, seconds=60):
        """Wait until the output has a word so often, or the process has ended."""
        deadline = time.monotonic() + seconds
        while self.text.count(word) < count and self.ended() is None:
            assert time.monotonic() < deadline, f"'{word}' never came:\n{self.text}"
            time.sleep(0.005)

    def ended(self):
        """The exit code, or None while it runs; minus the signal that ended the process."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def kill(self, number):
        if self.ended() is None:
            os.kill(self.pid, number)

    def wait(self, seconds=120):
        """Wait for the exit code; see :meth:`ended`."""
        deadline = time.monotonic() + seconds
        while self.ended() is None:
            if time.monotonic() > deadline:
                os.kill(self.pid, 9)
                raise AssertionError(f"The run did not end:\n{self.text}")
            time.sleep(0.01)
        return self.code


def train(data, output_dir, *words, sabotage="", code=0):
    """Run train_net.py to its end and check its exit code; returns its output."""
    run = Run(data, output_dir, *words, sabotage=sabotage)
    assert run.wait() == code, run.text
    return run.text


def start_ranks(data, output_dir, *words, sabotage="", world_size=2):
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


def start_subprocess(data, output_dir, *words, sabotage="", launcher=()):
    """train_net.py as a user starts it, from nothing."""
    command = [*(launcher or [sys.executable]), str(ROOT / "train_net.py")]
    return subprocess.Popen(
        [*command, *_arguments(output_dir, words)],
        env={**os.environ, **_environment(data, sabotage)},
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def load(path):
    return torch.load(path, map_location="cpu", weights_only=True)


def state_of(path):
    """A checkpoint without what a clock measured, and without the config, whose keys may differ in
    what must not matter (workers, periods)."""
    data = load(path)
    data.pop("config", None)
    storage = data["trainer"]["storage"]
    for part in storage.values():
        for name in [n for n in part if "time" in n or "eta" in n]:
            del part[name]
    return data


def metrics(output_dir):
    """The lines of metrics.json without what a clock measured."""
    lines = map(json.loads, Path(output_dir, "metrics.json").read_text().splitlines())
    lines = [{k: v for k, v in x.items() if "time" not in k and "eta" not in k} for x in lines]
    # Times of the first steps after a resume are left out of the average, so a line may hold
    # nothing but the last time before.
    return [line for line in lines if set(line) != {"iteration"}]


def differences(a, b, path=""):
    """Paths at which two nested structures of tensors and plain values differ, bit for bit."""
    if type(a) is not type(b):
        return [f"{path}: {type(a)} and {type(b)}"]
    if isinstance(a, torch.Tensor):
        same = a.dtype == b.dtype and a.shape == b.shape
        same = same and a.contiguous().numpy().tobytes() == b.contiguous().numpy().tobytes()
        return [] if same else [path]
    if isinstance(a, dict):
        found = [f"{path}.{k}" for k in set(a) ^ set(b)]
        return found + [d for k in a if k in b for d in differences(a[k], b[k], f"{path}.{k}")]
    if isinstance(a, (list, tuple)):
        if len(a) != len(b):
            return [f"{path}: {len(a)} and {len(b)} items"]
        return [d for k, (x, y) in enumerate(zip(a, b)) for d in differences(x, y, f"{path}.{k}")]
    return [] if a == b or (a != a and b != b) else [f"{path}: {a} and {b}"]
