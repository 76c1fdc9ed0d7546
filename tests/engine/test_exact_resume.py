"""Training 2N steps is N steps, kill, resume, N steps: bit for bit, in every arrangement."""

import os
import signal

import pytest
import torch
from engine_kit import Run, differences, load, metrics, start_ranks, state_of, train

pytestmark = pytest.mark.slow

EVERYTHING = (
    "SOLVER.MAX_ITER", 8, "SOLVER.CHECKPOINT_PERIOD", 3, "TEST.EVAL_PERIOD", 3,
    "ENGINE.EMA.ENABLED", True, "TEST.VAL_LOSS.PERIOD", 2,
    "TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2,
    "SOLVER.ALWA.ENABLED", True, "SOLVER.ALWA.INTERVAL", 2,
    "SOLVER.ALWA.GROUPS", "['toy=loss_cls/loss_box_reg']",
    "ENGINE.BEST_CHECKPOINT.METRIC", "val/total_loss", "ENGINE.BEST_CHECKPOINT.MODE", "min",
)  # fmt: skip


def check_same(a, b, files=("model_final.pth", "model_best.pth")):
    for name in files:
        assert differences(state_of(a / name), state_of(b / name)) == []
    assert differences(metrics(a), metrics(b)) == []


@pytest.fixture(scope="module")
def whole(tiny, tmp_path_factory):
    """An uninterrupted run."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    train(tiny, out, *EVERYTHING)
    return out


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_killed_in_a_step(tiny, whole, tmp_path, workers):
    out = tmp_path / "run"
    words = (*EVERYTHING, "DATALOADER.NUM_WORKERS", workers)
    train(tiny, out, *words, sabotage="kill 7", code=-signal.SIGKILL)
    assert "step 6 from" in train(tiny, out, "--resume", *words)
    check_same(whole, out)


def test_killed_at_any_moment(tiny, whole, tmp_path):
    """SIGKILL from outside, again and again, wherever the run happens to be."""
    out = tmp_path / "run"
    words = (*EVERYTHING, "SOLVER.CHECKPOINT_PERIOD", 1)
    for saved in (1, 3, 5):
        run = Run(tiny, out, "--resume", *words)
        run.wait_for("Saved checkpoint", saved)
        run.kill(signal.SIGKILL)
        assert run.wait() in (0, -signal.SIGKILL), run.text
    train(tiny, out, "--resume", *words)
    # The period is part of no state; everything else is equal.
    check_same(whole, out)


def test_killed_while_evaluating(tiny, whole, tmp_path):
    """The checkpoint of that step exists, and the resumed run begins with the evaluation."""
    out = tmp_path / "run"
    train(tiny, out, *EVERYTHING, sabotage="kill-in-evaluation 5", code=-signal.SIGKILL)
    text = train(tiny, out, "--resume", *EVERYTHING)
    assert "at step 6 from" in text and "interrupted at Evaluate" in text
    check_same(whole, out)


def test_killed_between_micro_steps(tiny, tmp_path):
    words = (*EVERYTHING, "SOLVER.ACCUMULATE", 2, "SOLVER.IMS_PER_BATCH", 4)
    train(tiny, tmp_path / "a", *words)
    train(tiny, tmp_path / "b", *words, sabotage="kill 4", code=-signal.SIGKILL)
    assert "step 3 from" in train(tiny, tmp_path / "b", "--resume", *words)
    check_same(tmp_path / "a", tmp_path / "b")


def test_without_a_seed(tiny, tmp_path):
    """A random seed is part of the state: the order of the data goes on all the same, and batch
    norm is measured on the same images."""
    words = (
        "SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 1, "SEED", -1,
        "TEST.PRECISE_BN.ENABLED", True, "TEST.PRECISE_BN.NUM_ITER", 2,
    )  # fmt: skip
    out = tmp_path / "run"
    train(tiny, out, *words)
    final = state_of(out / "model_final.pth")
    assert final["trainer"]["data"]["seed"] != 3  # that of the toy's options
    for name in ("model_final.pth", "model_0000004.pth", "model_0000003.pth"):
        os.remove(out / name)
    (out / "last_checkpoint").write_text("model_0000002.pth")
    train(tiny, out, "--resume", *words)
    assert differences(final, state_of(out / "model_final.pth")) == []


@pytest.mark.parametrize("rounding", ["stochastic", "ceil"])
def test_repeat_factors_and_aspect_ratio_groups(tiny, tmp_path, rounding):
    words = (
        "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler",
        "DATALOADER.REPEAT_THRESHOLD", 0.9, "DATALOADER.REPEAT_ROUNDING", rounding,
        "DATALOADER.ASPECT_RATIO_GROUPING", True, "SOLVER.MAX_ITER", 9,
        "SOLVER.CHECKPOINT_PERIOD", 4,
    )  # fmt: skip
    train(tiny, tmp_path / "a", *words)
    train(tiny, tmp_path / "b", *words, sabotage="kill 6", code=-signal.SIGKILL)
    train(tiny, tmp_path / "b", "--resume", *words)
    check_same(tmp_path / "a", tmp_path / "b", ["model_final.pth"])


@pytest.mark.dist
def test_two_ranks(tiny, tmp_path):
    """Batch norm and random states of each rank go on by themselves."""
    for name, sabotage in (("a", ""), ("b", "kill 5")):
        runs = start_ranks(tiny, tmp_path / name, *EVERYTHING, sabotage=sabotage)
        codes = [run.wait() for run in runs]
        assert codes == [-9, -9] if sabotage else [0, 0], runs[0].text
    runs = start_ranks(tiny, tmp_path / "b", "--resume", *EVERYTHING)
    assert [run.wait() for run in runs] == [0, 0], runs[0].text
    check_same(tmp_path / "a", tmp_path / "b")
    ranks = load(tmp_path / "a" / "model_final.pth")["ranks"]
    assert len(ranks) == 2 and "body.1.running_mean" in ranks[1]["buffers"]
    assert not torch.equal(ranks[0]["random"]["torch"], ranks[1]["random"]["torch"])


def test_the_log_says_what_was_restored(tiny, tmp_path):
    out = tmp_path / "run"
    train(tiny, out, "SOLVER.MAX_ITER", 3)
    text = train(tiny, out, "--resume", "SOLVER.MAX_ITER", 4, "ENGINE.EMA.ENABLED", True)
    assert "restored: model, optimizer, hook LRScheduler" in text
    assert "Missing on resume: a saved state of the hook ModelEMA." in text
    assert "MAX_ITER 3 -> 4" in text
    data = load(out / "model_final.pth")
    data["trainer"]["hooks"]["Forgotten"] = {"x": 1}
    torch.save(data, out / "model_final.pth")
    text = train(tiny, out, "--resume", "SOLVER.MAX_ITER", 5, "ENGINE.EMA.ENABLED", True)
    assert "a hook for the saved state of Forgotten" in text
    data["model"].pop("cls.bias")
    torch.save(data, out / "model_final.pth")
    text = train(tiny, out, "--resume", "SOLVER.MAX_ITER", 6, code=1)
    assert "has no weights for cls.bias" in text


def test_weights_that_ranks_share_from_now_on_are_those_of_rank_0(tiny, tmp_path):
    """A rank's own weights are for the setting under which each rank has its own."""
    out = tmp_path / "run"
    words = ["SOLVER.ALWA.ENABLED", True, "SOLVER.ALWA.INTERVAL", 2, "SOLVER.ALWA.STATS_ON", "raw"]
    train(tiny, out, *words, "SOLVER.ALWA.SYNC", "none", "SOLVER.MAX_ITER", 3)
    data = load(out / "model_final.pth")
    (key,) = data["ranks"][0]["hooks"]
    ((group, own),) = data["ranks"][0]["hooks"][key]["groups"].items()
    shared = data["trainer"]["hooks"][key]["groups"][group]["weight"]
    own["weight"] = 0.125
    for sync, last in (("none", 0.125), ("mean", shared)):
        torch.save(data, out / "model_final.pth")
        train(tiny, out, "--resume", *words, "SOLVER.ALWA.SYNC", sync, "SOLVER.MAX_ITER", 4,
              "SOLVER.ALWA.START_ITER", 100)  # fmt: skip
        saved = load(out / "model_final.pth")["trainer"]["hooks"][key]["groups"][group]
        assert saved["weight"] == last


def test_three_words_for_three_things(tiny, tmp_path):
    first = tmp_path / "first"
    words = ("SOLVER.MAX_ITER", 4, "SOLVER.WARMUP_ITERS", 0, "SOLVER.STEPS", "(3,)")
    train(tiny, first, *words)
    before = load(first / "model_final.pth")

    # Weights: a new run, which has the weights and nothing else.
    text = train(tiny, tmp_path / "second", "--init-from", first / "model_final.pth", *words)
    assert "from step 0 to 4" in text
    assert load(tmp_path / "second" / "model_final.pth")["trainer"]["data"]["batches"] == 4

    # A new schedule: step 0 and its learning rate, but momentum and data go on.
    text = train(tiny, first, "--reset-schedule", *words, "SOLVER.BASE_LR", 0.004)
    assert "Resumed with a new schedule" in text and "from step 0 to 4" in text
    after = load(first / "model_final.pth")
    assert after["trainer"]["data"]["batches"] == 8
    assert metrics(first)[-2]["lr"] == pytest.approx(0.004)
    assert not torch.equal(before["model"]["cls.weight"], after["model"]["cls.weight"])

    # Resume: complete already, so nothing is left to do.
    assert "from step 4 to 4" in train(tiny, first, "--resume", *words)
