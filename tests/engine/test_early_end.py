"""Runs that end before their last step: what is still done, and what a resume makes of it."""

import logging

import pytest
from detectron2.utils import comm
from engine_kit import load, metrics, run_ranks, toy_cfg, train
from test_trainer_hooks import line_trainer

from d2ext.engine import HookBase, Trainer
from d2ext.engine.hooks import (
    EarlyStopping,
    Evaluate,
    PeriodicCheckpointer,
    PeriodicWriter,
    PreciseBN,
    ValidationLoss,
)


class Ask(HookBase):
    """Asks to stop in one event of step 3; stands before the hooks that evaluate."""

    def __init__(self, event, ranks=(0,)):
        self.ranks = ranks
        setattr(self, event, self._ask)

    def _ask(self):
        if self.trainer.iter == 3 and comm.get_rank() in self.ranks:
            self.trainer.request_stop("time is up")


class Evaluations(Evaluate):
    """Evaluates to given figures, in turn, and notes the steps."""

    def __init__(self, period, figures=None):
        super().__init__(period, self._next)
        self.figures, self.steps = figures or [1.0] * 99, []

    def _next(self):
        self.steps.append(self.trainer.iter)
        return {"bbox": {"AP": self.figures[len(self.steps) - 1]}}


@pytest.mark.parametrize("event, last", [("before_step", 3), ("after_step", 4)])
def test_what_a_hook_ends_is_evaluated(tmp_path, event, last):
    """All hooks of a step agree on whether it is the last one."""
    trainer, evaluate = line_trainer(max_iter=10, output_dir=str(tmp_path)), Evaluations(0)
    validate = ValidationLoss(0, trainer.raw_model, lambda: [])
    trainer.register_hooks([Ask(event), validate, evaluate, PeriodicCheckpointer(0)])
    trainer.train()
    assert trainer.completed_steps == last + 1 and trainer.finished
    assert evaluate.steps == [last]
    assert trainer.storage.latest()["val/total_loss"][1] == last
    assert load(tmp_path / "model_final.pth")["iteration"] == last


@pytest.mark.dist
@pytest.mark.parametrize("log_period", [1, 20])
def test_ranks_that_read_their_losses_late_evaluate_in_the_last_step(log_period):
    """As on GPUs: a writer that reads a step's losses must not change which step is the last."""

    def rank_main(rank):
        trainer, evaluate = line_trainer(max_iter=10), Evaluations(0)
        trainer.step.recorder.lag = True
        trainer.register_hooks([Ask("before_step"), evaluate, PeriodicWriter([], log_period)])
        trainer.train()
        assert trainer.finished and trainer.completed_steps < 10
        assert evaluate.steps == [trainer.completed_steps - 1]

    run_ranks(rank_main)


def test_precise_batch_norm_comes_before_the_last_evaluation(tiny, tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(PreciseBN, "update_stats", lambda self: steps.append(self.trainer.iter))
    trainer = Trainer(toy_cfg(tmp_path, "TEST.PRECISE_BN.ENABLED", True, "TEST.EVAL_PERIOD", 3))
    trainer.register_hooks([Ask("before_step")])
    trainer.train(max_iter=9)
    assert steps == [2, 3]


def stopping_trainer(folder, figures=None, patience=2, period=2):
    trainer = line_trainer(max_iter=20, output_dir=str(folder))
    evaluate = Evaluations(period, figures)
    early = EarlyStopping("bbox/AP", patience)
    trainer.register_hooks([evaluate, early, PeriodicCheckpointer(0)])
    return trainer, evaluate


def resumed(folder, new_schedule=False, **arguments):
    trainer, evaluate = stopping_trainer(folder, **arguments)
    trainer.resume_or_load(True, new_schedule=new_schedule)
    trainer.train()
    return trainer, evaluate


def test_a_run_that_stopped_early_stays_finished(tmp_path, caplog):
    trainer, evaluate = stopping_trainer(tmp_path)
    trainer.train()
    assert evaluate.steps == [1, 3, 5] and trainer.finished
    final = (tmp_path / "model_final.pth").read_bytes()
    for patience in (2, 1):
        with caplog.at_level(logging.INFO, "d2ext"):
            trainer, evaluate = resumed(tmp_path, patience=patience)
        assert trainer.completed_steps == 6 and trainer.finished and trainer.exit_code == 0
        assert evaluate.steps == [] and (tmp_path / "model_final.pth").read_bytes() == final
        assert (
            "Stopped after step 6: bbox/AP has not improved on 1.0 (step 1) for 2 " in caplog.text
        )
    # With more patience it goes on.
    trainer, evaluate = resumed(tmp_path, patience=3)
    assert evaluate.steps == [7] and trainer.finished


def test_a_new_schedule_has_new_patience(tmp_path):
    stopping_trainer(tmp_path)[0].train()
    trainer, evaluate = resumed(tmp_path, new_schedule=True)
    assert evaluate.steps == [1, 3, 5] and trainer.completed_steps == 6


class Killed(Exception):
    pass


class Kill(HookBase):
    runs_last = True

    def __init__(self, step):
        self.step = step

    def after_step(self):
        if self.trainer.iter == self.step:
            raise Killed


def test_killed_between_the_wish_and_the_last_step(tmp_path):
    """Several processes stop one step after the wish: the run that is resumed does it for them."""

    def rank_main(rank):
        trainer, _ = stopping_trainer(tmp_path)
        trainer.register_hooks([PeriodicCheckpointer(2), Kill(5)])
        with pytest.raises(Killed):
            trainer.train()

    run_ranks(rank_main)
    for steps in ([6], []):
        trainer, evaluate = resumed(tmp_path)
        assert evaluate.steps == steps and trainer.finished and trainer.completed_steps == 7


def test_killed_in_the_last_evaluation(tmp_path):
    """The evaluation is done, and nothing else, whoever had asked for the end."""
    trainer = line_trainer(max_iter=20, output_dir=str(tmp_path))
    hooks = [Ask("before_step"), Evaluations(0, ["no number"]), PeriodicCheckpointer(0)]
    trainer.register_hooks(hooks)
    with pytest.raises(ValueError, match="let it return numbers"):
        trainer.train()
    trainer = line_trainer(max_iter=20, output_dir=str(tmp_path))
    trainer.register_hooks([evaluate := Evaluations(0), PeriodicCheckpointer(0)])
    trainer.resume_or_load(True)
    trainer.train()
    assert evaluate.steps == [3] and trainer.completed_steps == 4 and trainer.finished


def test_early_stopping_waits_for_what_the_end_evaluates(tmp_path):
    """The validation loss comes more often than the evaluation, which the last step needs, too."""
    trainer, evaluate = line_trainer(max_iter=20, output_dir=str(tmp_path)), Evaluations(0)
    validate = ValidationLoss(2, trainer.raw_model, lambda: [])
    trainer.register_hooks([validate, evaluate, EarlyStopping("val/total_loss", 2, "min")])
    trainer.train()
    assert evaluate.steps == [6] and trainer.completed_steps == 7


def test_a_new_schedule_survives_a_kill_before_its_first_checkpoint(tiny, tmp_path):
    """Resumed, it begins at its first step, and the figures of the old schedule are kept."""
    words = ("ENGINE.LOG_PERIOD", 1, "SOLVER.STEPS", "()")
    train(tiny, tmp_path, *words)
    new = (*words, "SOLVER.MAX_ITER", 4, "SOLVER.BASE_LR", 0.003)
    train(tiny, tmp_path, "--reset-schedule", *new, sabotage="kill 2", code=-9)
    assert "from step 0 to 4" in train(tiny, tmp_path, "--resume", *new)
    assert load(tmp_path / "model_final.pth")["trainer"]["data"]["batches"] == 10
    lines = metrics(tmp_path)
    assert [line["iteration"] for line in lines] == [*range(6), *range(4)]
    assert lines[-1]["lr"] == pytest.approx(0.003)
