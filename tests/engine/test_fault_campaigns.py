"""The campaigns of tools/faults.py with small numbers, and processes that lose each other."""

import re
import signal
import subprocess
import sys

import pytest
from engine_kit import ROOT, differences, metrics, start_ranks, start_subprocess, state_of

from d2ext.faults.damage import DamageCampaign
from d2ext.faults.disk import DiskCampaign
from d2ext.faults.kills import EVERYTHING, KINDS, KillCampaign
from d2ext.faults.record import Record
from d2ext.faults.soak import soak, soak_problems
from d2ext.faults.watch import growth


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
    found = soak(tiny, tmp_path, steps=240, period=10)
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


@pytest.mark.dist
def test_a_killed_rank_stops_the_other(tiny, tmp_path):
    """At once, and with a sentence instead of a traceback."""
    words = ("SOLVER.MAX_ITER", 8, "SOLVER.CHECKPOINT_PERIOD", 3)
    runs = start_ranks(tiny, tmp_path / "run", *words, sabotage="kill 5 1")
    assert [run.wait() for run in runs] == [1, -signal.SIGKILL], runs[0].text
    text = runs[0].text
    assert re.search(
        r"Process 0 of 2 stops, because another one has ended or does not answer "
        r"\([A-Z][^\[\]/]*\); look for",
        text,
    ), text
    assert "Traceback" not in text


@pytest.mark.slow
@pytest.mark.dist
def test_a_rank_that_does_not_answer_stops_the_other(tiny, tmp_path):
    words = ("--process-timeout", 0.2, "SOLVER.MAX_ITER", 8)
    runs = start_ranks(tiny, tmp_path / "run", *words, sabotage="hang 5 1")
    assert runs[0].wait() == 1, runs[0].text
    assert "Process 0 of 2 stops, because another one" in runs[0].text
    runs[1].kill(signal.SIGKILL)
    runs[1].wait()


@pytest.mark.slow
@pytest.mark.dist
def test_torchrun_starts_the_processes_again(tiny, tmp_path):
    """--max-restarts and --resume: the run goes on from its checkpoint, bit for bit."""
    words = (*EVERYTHING, "SOLVER.MAX_ITER", 8)
    whole, out = tmp_path / "whole", tmp_path / "run"
    runs = start_ranks(tiny, whole, *words)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    # More than the one that is needed: on a busy machine gloo may fail to connect once more.
    launcher += ["--nproc-per-node", "2", "--max-restarts", "4"]
    process = start_subprocess(
        tiny, out, "--resume", *words, sabotage="kill-once 6 1", launcher=launcher
    )
    text = process.communicate(timeout=900)[0]
    assert [run.wait() for run in runs] == [0, 0], runs[0].text
    assert process.returncode == 0 and "Resumed at step 6" in text, text
    finals = [state_of(folder / "model_final.pth") for folder in (whole, out)]
    assert differences(*finals) == []
    assert differences(metrics(whole), metrics(out)) == []


def test_the_tool_wants_to_know_what_to_do():
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "faults.py")], capture_output=True, text=True
    )
    assert done.returncode == 2 and "Name at least one of --kills" in done.stderr
