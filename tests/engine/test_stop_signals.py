"""SIGTERM and SIGINT: finish the step, write a checkpoint, exit with 75; twice: exit at once."""

import os
import signal
import socket
import sys
import time
from datetime import timedelta

import pytest
from engine_kit import Run, differences, load, metrics, start_ranks, state_of, train
from process_kit import fork, wait_for_all
from test_trainer_hooks import line_trainer

from d2ext.engine import HookBase, launch
from d2ext.engine.hooks import PeriodicCheckpointer, StopOnSignal

LONG = ("SOLVER.MAX_ITER", 100000, "SOLVER.STEPS", "()")
SHORT = ("SOLVER.MAX_ITER", 8)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_with_75(tiny, tmp_path, number):
    out = tmp_path / "run"
    run = Run(tiny, out, *LONG, "DATALOADER.NUM_WORKERS", 2)
    run.wait_for("iter: 5 ")
    run.kill(number)
    assert run.wait() == 75, run.text
    name = (out / "last_checkpoint").read_text()
    steps = load(out / name)["iteration"] + 1
    assert f"Stopped after step {steps}: {number.name}; --resume goes on from here" in run.text
    assert "Results on" not in run.text  # no final evaluation: the run is not over


def test_stopping_changes_nothing(tiny, tmp_path):
    train(tiny, tmp_path / "a", *SHORT)
    train(tiny, tmp_path / "b", *SHORT, sabotage="terminate 4", code=75)
    assert (tmp_path / "b" / "last_checkpoint").read_text() == "model_0000004.pth"
    train(tiny, tmp_path / "b", "--resume", *SHORT)
    files = [tmp_path / name / "model_final.pth" for name in "ab"]
    assert differences(state_of(files[0]), state_of(files[1])) == []
    assert differences(metrics(tmp_path / "a"), metrics(tmp_path / "b")) == []


def test_another_signal_by_key(tiny, tmp_path):
    run = Run(tiny, tmp_path / "run", *LONG, "ENGINE.STOP_SIGNALS", "['SIGUSR1']")
    run.wait_for("iter: 3 ")
    run.kill(signal.SIGUSR1)
    assert run.wait() == 75, run.text


def test_a_second_signal_exits_at_once(tiny, tmp_path):
    run = Run(tiny, tmp_path / "run", *LONG, sabotage="hang 4")
    run.wait_for("iter: 3 ")
    run.wait_for("hanging")
    run.kill(signal.SIGTERM)
    run.wait_for("finishing the step")
    run.kill(signal.SIGTERM)  # the same wish, passed on by a launcher
    time.sleep(1.2)
    assert run.ended() is None
    run.kill(signal.SIGTERM)
    assert run.wait() == 128 + signal.SIGTERM
    assert not list((tmp_path / "run").glob("model_*.pth"))


@pytest.mark.dist
def test_one_rank_is_signalled_and_all_stop_together(tiny, tmp_path):
    runs = start_ranks(tiny, tmp_path / "run", *LONG, sabotage="terminate 5 1")
    assert [run.wait() for run in runs] == [75, 75], runs[0].text
    assert (tmp_path / "run" / "last_checkpoint").read_text() == "model_0000005.pth"
    assert len(load(tmp_path / "run" / "model_0000005.pth")["ranks"]) == 2


@pytest.mark.dist
@pytest.mark.slow
def test_spawned_processes_get_the_signal(tiny, tmp_path):
    """--num-gpus 2: the parent passes the signal on and keeps the code."""
    out = tmp_path / "run"
    run = Run(tiny, out, "--num-gpus", 2, *LONG, "SOLVER.CHECKPOINT_PERIOD", 3)
    run.wait_for("Saved checkpoint")
    run.kill(signal.SIGTERM)
    assert run.wait() == 75, run.text
    assert "--resume goes on from here" in run.text


@pytest.mark.parametrize("when", ["while it is written", "after it", "before it"])
def test_a_second_signal_and_the_checkpoint(tmp_path, when):
    """Once the checkpoint is under way, a second signal ends the run as the first one would."""

    def send():
        os.kill(os.getpid(), signal.SIGTERM)

    class Send(HookBase):
        def before_step(self):
            if self.trainer.iter == 2:
                send()

        def after_step(self):
            if when == "before it" and self.trainer.iter == 2:
                send()

        def after_train(self):
            if when == "after it":
                send()

    def main():
        trainer = line_trainer(output_dir=str(tmp_path), max_iter=9)
        trainer.register_hooks([StopOnSignal(grace=-1.0), Send(), PeriodicCheckpointer(0)])
        write = trainer.checkpointer.write

        def slow(*args, **kwargs):
            if when == "while it is written":
                send()
            write(*args, **kwargs)

        trainer.checkpointer.write = slow
        trainer.train()
        sys.exit(trainer.exit_code)

    (code,) = wait_for_all([fork(main)])
    names = [path.name for path in tmp_path.glob("*.pth")]
    if when == "before it":
        assert (code, names) == (128 + signal.SIGTERM, [])
    else:
        assert (code, names) == (75, ["model_0000002.pth"])


@pytest.mark.dist
def test_a_port_in_use_ends_in_a_sentence_on_all_ranks(tmp_path):
    """A program that listens there, and talks as no rank 0 does."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        url = f"tcp://127.0.0.1:{server.getsockname()[1]}"

        def rank_main(rank):
            sys.stderr = (tmp_path / str(rank)).open("w", buffering=1)
            options = {"num_machines": 2, "machine_rank": rank, "dist_url": url}
            launch(print, 1, timeout=timedelta(seconds=1), device="cpu", **options)

        began = time.monotonic()
        pids = [fork(lambda rank=rank: rank_main(rank)) for rank in range(2)]
        assert wait_for_all(pids) == [1, 1]
    assert time.monotonic() - began < 60
    for rank in range(2):
        text = (tmp_path / str(rank)).read_text()
        assert f"Process {rank} of 2 cannot meet the others at {url}" in text
        assert "--dist-url" in text and "Traceback" not in text
