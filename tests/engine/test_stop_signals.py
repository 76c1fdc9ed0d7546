"""SIGTERM and SIGINT: finish the step, write a checkpoint, exit with 75; twice: exit at once."""

import signal
import time

import pytest
from campaigns.runs import arguments_of, environment_of
from engine_kit import ROOT, Run, differences, load, metrics, start_ranks, state_of, train
from process_kit import call_python

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


@pytest.mark.dist
@pytest.mark.slow
def test_torchrun(tiny, tmp_path):
    """Under torchrun the same command is one of several processes."""
    out = tmp_path / "run"
    words = ("--standalone", "--nproc-per-node", 2, ROOT / "train_net.py")
    words = (*words, *arguments_of(out, ["SOLVER.MAX_ITER", 3]))
    env = environment_of(tiny, sabotage="")
    done = call_python("-m", "torch.distributed.run", *words, cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(load(out / "model_final.pth")["ranks"]) == 2
