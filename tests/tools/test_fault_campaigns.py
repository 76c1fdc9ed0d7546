"""The campaigns of tools/faults.py with small numbers, and processes that lose each other."""

import os
import re
import runpy
import signal
import sys

import pytest
from campaigns.damage import DamageCampaign
from campaigns.disk import DiskCampaign
from campaigns.inputs import InputCampaign, outcome_of
from campaigns.kills import EVERYTHING, KINDS, KillCampaign
from campaigns.record import Record
from campaigns.runs import arguments_of, environment_of
from campaigns.soak import soak, soak_problems
from campaigns.watch import growth
from engine_kit import ROOT, differences, load, metrics, start_ranks, state_of
from process_kit import call, call_python
from torch.distributed.launcher.api import LaunchConfig, elastic_launch


@pytest.mark.slow
@pytest.mark.dist
def test_kills_of_every_kind_lose_nothing(tiny, tmp_path):
    campaign = KillCampaign(tiny, tmp_path / "runs", Record(tmp_path / "a.jsonl", "kills", 4), 4)
    assert campaign.run(4), campaign.record.lines
    assert campaign.kills >= 4 and "runs that lost something" in campaign.summary()
    # Started again, it has nothing to do.
    again = KillCampaign(tiny, tmp_path / "runs", Record(tmp_path / "a.jsonl", "kills", 4), 4)
    assert again.run(4) and len(again.record.lines) == len(campaign.record.lines)
    assert {line["kind"] for line in again.record.lines} <= set(KINDS)


@pytest.mark.slow
def test_damaged_checkpoints_load_equal_or_are_refused(tiny, tmp_path):
    campaign = DamageCampaign(tiny, tmp_path / "runs", Record(tmp_path / "a.jsonl", "damages", 1))
    assert campaign.run(100), campaign.summary()
    outcomes = [line["outcome"] for line in campaign.record.lines]
    assert len(outcomes) == 100 and outcomes.count("refused") > 50


@pytest.mark.slow
def test_full_disks_end_the_run_with_one_sentence(tiny, tmp_path):
    campaign = DiskCampaign(tiny, tmp_path / "runs", Record(tmp_path / "a.jsonl", "disks", 2), 2)
    assert campaign.run(4), campaign.record.lines


@pytest.mark.slow
def test_a_soaked_run_does_not_grow(tiny, tmp_path):
    # Short, so that memory, which settles for some hundred steps, is for tools/faults.py.
    found = soak(tiny, tmp_path, steps=120, period=5)
    assert found["measurements"] == 24 and soak_problems(found, allowed_mib=20.0) == []


def test_growth_is_seen(tmp_path):
    lines = [
        f'{{"step": {k}, "rss_mib": {100 + k}, "descriptors": 9, "threads": 2, '
        f'"python_threads": {1 + k // 8}}}\n'
        for k in range(16)
    ]
    (tmp_path / "watch.jsonl").write_text("".join(lines))
    found = growth(tmp_path / "watch.jsonl")
    assert found["rss_mib"] == [105.5, 113.5]
    assert soak_problems(found) == ["rss_mib 105.5 -> 113.5", "python_threads 1.0 -> 2.0"]


def test_a_difference_is_a_loss(tmp_path):
    record = Record(tmp_path / "a.jsonl", "kills", 0)
    record.add(index=0, kind="moment", kills=50, differences=[".model.x"])
    campaign = KillCampaign(tmp_path, tmp_path, record)
    assert not campaign.run(50)
    assert "| all | 50 | 1 | 1 |" in campaign.summary()


@pytest.mark.slow
@pytest.mark.dist
def test_a_rank_that_is_killed_or_does_not_answer_stops_the_other(tiny, tmp_path):
    """With a sentence instead of a traceback; at once if it is killed."""
    words = ("--process-timeout", 0.05, "SOLVER.MAX_ITER", 8)
    hanging = start_ranks(tiny, tmp_path / "hang", *words, sabotage="hang 5 1")
    words = ("SOLVER.MAX_ITER", 8, "SOLVER.CHECKPOINT_PERIOD", 3)
    killed = start_ranks(tiny, tmp_path / "run", *words, sabotage="kill 5 1")
    assert [run.wait() for run in killed] == [1, -signal.SIGKILL], killed[0].text
    assert hanging[0].wait() == 1, hanging[0].text
    hanging[1].kill(signal.SIGKILL)
    hanging[1].wait()
    for text in (killed[0].text, hanging[0].text):
        assert "Process 0 of 2 stops, because another one has ended or does not answer" in text
        assert "Traceback" not in text
    assert re.search(r"does not answer \([A-Z][^\[\]/]*\); look for", killed[0].text)


def _live(arguments, env):
    """One life of a process under torchrun."""
    os.environ.update(env)
    sys.argv = ["train_net.py", *arguments]
    try:
        runpy.run_path(str(ROOT / "train_net.py"), run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise RuntimeError(f"exit code {end.code}") from None


@pytest.mark.slow
@pytest.mark.dist
def test_torchrun_starts_the_processes_again(tiny, tmp_path):
    """--max-restarts and --resume: the run goes on from its checkpoint, bit for bit."""
    words = (*EVERYTHING, "SOLVER.MAX_ITER", 8)
    whole, out = tmp_path / "whole", tmp_path / "run"
    runs = start_ranks(tiny, whole, *words)
    # What torchrun --standalone does, but that its processes are forked.
    config = LaunchConfig(
        1, 1, 2, run_id="test", rdzv_backend="c10d", rdzv_endpoint="localhost:0", max_restarts=1,
        start_method="fork", monitor_interval=0.05,
    )  # fmt: skip
    arguments = arguments_of(out, ["--resume", *words])
    env = environment_of(tiny, "kill-once 6 1")
    done = call(lambda: elastic_launch(config, _live)(arguments, env), cwd=tmp_path)
    text = done.stdout + done.stderr
    assert [run.wait() for run in runs] == [0, 0], runs[0].text
    assert done.returncode == 0 and "Resumed at step 6" in text, text
    finals = [state_of(folder / "model_final.pth") for folder in (whole, out)]
    assert differences(*finals) == []
    assert len(load(out / "model_final.pth")["ranks"]) == 2
    assert differences(metrics(whole), metrics(out)) == []


def test_the_tool_wants_to_know_what_to_do(tmp_path):
    done = call_python(ROOT / "tools" / "faults.py", cwd=tmp_path)
    assert done.returncode == 2 and "Name at least one of --kills" in done.stderr


def test_bad_inputs_of_commands_end_in_a_sentence(tmp_path):
    campaign = InputCampaign(None, tmp_path / "run", Record(tmp_path / "a.jsonl", "inputs", 1), 1)
    assert campaign.run(12), campaign.record.lines
    assert {line["words"] for line in campaign.record.lines} >= {"data check bad.json --output out"}
    assert campaign.summary().splitlines()[-1] == "| all | 12 | 0 | 0 | 0 |"
    trace = "Traceback (most recent call last):"
    outcomes = [outcome_of(*x) for x in ((-9, "", False), (1, trace, False), (0, "", False))]
    assert outcomes == ["hang", "traceback", "silent"]
    assert (
        outcome_of(1, "A sentence.", False) == "sentence" and outcome_of(0, "", True) == "unharmed"
    )
