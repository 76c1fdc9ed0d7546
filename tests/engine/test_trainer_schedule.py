"""Learning rate and iterations: real batch, epochs, dry run."""

import logging

import pytest
import torch
from engine_kit import load, metrics, toy_cfg

from d2ext.engine import Trainer, resolve_schedule
from d2ext.engine.schedule import scale_to_world_size


@pytest.fixture
def cfg(tmp_path):
    return toy_cfg(
        tmp_path,
        "SOLVER.BASE_LR", 0.02,
        "SOLVER.MAX_ITER", 90,
        "SOLVER.STEPS", (60, 80),
        "SOLVER.WARMUP_ITERS", 10,
        "SOLVER.CHECKPOINT_PERIOD", 30,
        "TEST.EVAL_PERIOD", 30,
        "SOLVER.IMS_PER_BATCH", 4,
        "SOLVER.REFERENCE_BATCH", 16,
    )  # fmt: skip


def test_a_different_batch_is_warned_of(cfg, caplog):
    with caplog.at_level(logging.WARNING, "d2ext"):
        same = resolve_schedule(cfg, 100)
    assert same.SOLVER.BASE_LR == 0.02 and same.SOLVER.MAX_ITER == 90
    assert "for 16 images a step, and this run has 4" in caplog.text
    assert "would be 0.005" in caplog.text and "SOLVER.AUTO_SCALE True" in caplog.text


def test_scaling_on_request_is_printed(cfg, caplog):
    cfg.SOLVER.AUTO_SCALE = True
    with caplog.at_level(logging.INFO, "d2ext"):
        scaled = resolve_schedule(cfg, 100)
    solver = scaled.SOLVER
    assert pytest.approx(0.005) == solver.BASE_LR
    assert (solver.MAX_ITER, solver.STEPS, solver.WARMUP_ITERS) == (360, (240, 320), 40)
    assert (solver.CHECKPOINT_PERIOD, scaled.TEST.EVAL_PERIOD) == (120, 120)
    assert "BASE_LR 0.02 -> 0.005, MAX_ITER 90 -> 360" in caplog.text
    assert resolve_schedule(scaled, 100) == scaled  # once is enough
    assert cfg.SOLVER.MAX_ITER == 90  # the caller's config is its own


@pytest.mark.parametrize("auto_scale", [False, True])
def test_a_reference_number_of_processes_scales_once(cfg, caplog, auto_scale):
    """Half of the processes have half of the batch, for which the schedule is scaled by then."""
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE = 16, 8
    cfg.SOLVER.AUTO_SCALE = auto_scale
    with caplog.at_level(logging.WARNING, "d2ext"):
        scaled = resolve_schedule(scale_to_world_size(cfg, 4), 100).SOLVER
    assert (scaled.IMS_PER_BATCH, scaled.MAX_ITER) == (8, 180)
    assert pytest.approx(0.01) == scaled.BASE_LR
    assert not caplog.records
    # A batch that is not the reference is scaled for, too.
    cfg.SOLVER.REFERENCE_BATCH = 32
    max_iter = resolve_schedule(scale_to_world_size(cfg, 4), 100).SOLVER.MAX_ITER
    assert max_iter == (360 if auto_scale else 180)


def test_nothing_is_said_if_the_batch_fits(cfg, caplog):
    cfg.SOLVER.REFERENCE_BATCH = 4
    resolve_schedule(cfg, 100)
    cfg.SOLVER.REFERENCE_BATCH = 0
    resolve_schedule(cfg, 100)
    assert not caplog.records


def test_a_schedule_in_epochs(cfg):
    cfg.SOLVER.REFERENCE_BATCH = 0
    cfg.SOLVER.EPOCHS, cfg.SOLVER.EPOCH_STEPS = 12.0, (8, 11)
    cfg.SOLVER.WARMUP_EPOCHS, cfg.SOLVER.CHECKPOINT_EPOCHS = 0.5, 1.0
    cfg.TEST.EVAL_EPOCHS = 2.0
    new = resolve_schedule(cfg, epoch_size=102)  # 25.5 steps
    assert (new.SOLVER.MAX_ITER, new.SOLVER.STEPS) == (306, (204, 281))
    assert (new.SOLVER.WARMUP_ITERS, new.SOLVER.CHECKPOINT_PERIOD) == (13, 26)
    assert new.TEST.EVAL_PERIOD == 51
    with pytest.raises(ValueError, match="needs a training loader with an epoch_size"):
        resolve_schedule(cfg, 0)


def test_repeat_factor_sampling_counts(tiny, tmp_path):
    words = (
        "SOLVER.EPOCHS", 3.0,
        "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler",
        "DATALOADER.REPEAT_THRESHOLD", 0.99,
        "DATALOADER.REPEAT_ROUNDING", "ceil",
    )  # fmt: skip
    loader = Trainer.build_train_loader(toy_cfg(tmp_path, *words))
    assert loader.epoch_size > 7 and loader.epoch_size == int(loader.epoch_size)
    trainer = Trainer(toy_cfg(tmp_path, *words))
    assert trainer.max_iter == -(-3 * int(loader.epoch_size) // 2)
    plain = Trainer(toy_cfg(tmp_path, "SOLVER.EPOCHS", 3.0))
    assert plain.max_iter == 11  # 21 images, 2 a step


def test_a_step_at_the_last_iteration_is_left_out(cfg):
    cfg.SOLVER.STEPS = (60, 90, 100)
    assert resolve_schedule(cfg, 1).SOLVER.STEPS == (60,)


def test_the_learning_rate_follows(tiny, tmp_path):
    trainer = Trainer(toy_cfg(tmp_path, "SOLVER.MAX_ITER", 6, "ENGINE.LOG_PERIOD", 1))
    trainer.train()
    lrs = [line["lr"] for line in metrics(tmp_path)]
    torch.testing.assert_close(
        torch.tensor(lrs), torch.tensor([1e-5, 0.005005, 0.01, 0.01, 0.001, 0.001])
    )


def test_a_resumed_run_says_which_keys_stay_the_checkpoints(tiny, tmp_path, caplog):
    """The optimiser goes on as it was; the schedule may change."""
    words = ("SOLVER.WARMUP_ITERS", 0, "TEST.EVAL_PERIOD", 0, "DATASETS.TEST", ())
    Trainer(toy_cfg(tmp_path, *words, "SOLVER.MAX_ITER", 1)).train()
    changes = ("SOLVER.BASE_LR", 0.003, "SOLVER.WEIGHT_DECAY", 0.5, "SOLVER.STEPS", (2,))
    for count in (3, 4):  # also in the log of the resume after the next one
        caplog.clear()
        trainer = Trainer(toy_cfg(tmp_path, *words, *changes, "SOLVER.MAX_ITER", count))
        with caplog.at_level(logging.WARNING, "d2ext"):
            trainer.resume_or_load()
        trainer.train()
        assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.001)
        assert trainer.optimizer.param_groups[0]["weight_decay"] == 0.0001
        assert f" -> {count}" in caplog.text
        assert "BASE_LR stays 0.01, not 0.003, WEIGHT_DECAY stays 0.0001, not 0.5" in caplog.text
        assert "MOMENTUM" not in caplog.text


def test_fast_dev_run(tiny, tmp_path):
    """A handful of steps, one checkpoint, one evaluation, whatever the config."""
    cfg = toy_cfg(
        tmp_path,
        "ENGINE.FAST_DEV_RUN", True,
        "SOLVER.EPOCHS", 500.0,
        "SOLVER.CHECKPOINT_PERIOD", 1,
        "TEST.EVAL_PERIOD", 1,
        "TEST.VAL_LOSS.PERIOD", 1,
        "TEST.EXPECTED_RESULTS", [["bbox", "AP", 99.0, 0.1]],
        "ENGINE.EARLY_STOPPING.PATIENCE", 1,
    )  # fmt: skip
    calls = []

    class Counting(Trainer):
        @classmethod
        def test(cls, cfg, model, evaluators=None):
            calls.append(1)
            return super().test(cfg, model, evaluators)

    trainer = Counting(cfg)
    trainer.train()
    assert len(calls) == 1 and 1 < trainer.completed_steps < 10
    assert [p.name for p in tmp_path.glob("*.pth")] == ["model_final.pth"]
    assert load(tmp_path / "model_final.pth")["iteration"] == trainer.completed_steps - 1
