"""Metrics files, the progress bar, validation loss, best checkpoint, early stopping."""

import copy
import io
import logging
import sys
import types

import pytest
import torch
from engine_kit import differences, load, metrics, toy_cfg
from test_trainer_hooks import line_trainer

from d2ext.engine import HookBase, Trainer
from d2ext.engine.hooks import BestCheckpointer, EarlyStopping, ValidationLoss
from d2ext.engine.hooks.validation_loss import untouched
from d2ext.engine.writers import ProgressBar, build_writers


def test_json_and_tensorboard(tiny, tmp_path):
    words = ("ENGINE.TENSORBOARD", True, "TEST.EVAL_PERIOD", 3)
    Trainer(toy_cfg(tmp_path, *words)).train()
    lines = metrics(tmp_path)
    assert [line["iteration"] for line in lines] == [1, 2, 3, 5]
    assert {"total_loss", "loss_cls", "loss_box_reg", "lr"} <= set(lines[0])
    assert "bbox/AP" in lines[1] and "bbox/AP" in lines[-1]
    assert list(tmp_path.glob("events.out.tfevents*"))


@pytest.fixture
def wandb(monkeypatch):
    """A stand-in for the package wandb that keeps what it is told."""
    module = types.ModuleType("wandb")
    module.started, module.logged, module.finished = [], {}, []

    class Run:
        id = "run-1"

        def log(self, values, step):
            module.logged.setdefault(step, {}).update(values)

        def finish(self):
            module.finished.append(self.id)

    module.init = lambda **arguments: module.started.append(arguments) or Run()
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


def test_wandb(tiny, tmp_path, wandb):
    words = ("ENGINE.WANDB.ENABLED", True, "ENGINE.WANDB.PROJECT", "shapes")
    Trainer(toy_cfg(tmp_path, *words)).train()
    assert wandb.started[0]["project"] == "shapes" and wandb.finished == ["run-1"]
    assert {"total_loss", "lr"} <= set(wandb.logged[5]) and "bbox/AP" in wandb.logged[5]
    # A resumed run goes on in the same one.
    trainer = Trainer(toy_cfg(tmp_path, *words, "SOLVER.MAX_ITER", 8))
    trainer.resume_or_load(True)
    trainer.train()
    assert wandb.started[1]["id"] == "run-1" and max(wandb.logged) == 7


def test_wandb_is_optional(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="pip install wandb"):
        build_writers(toy_cfg(tmp_path, "ENGINE.WANDB.ENABLED", True), 5)


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_bar_on_a_terminal(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    trainer = Trainer(toy_cfg(tmp_path))
    trainer.train()
    line = sys.stderr.getvalue().rstrip("\n").split("\r")[-1]
    assert "6/6" in line and "#" * 20 in line
    for word in ("loss ", "lr ", "eta 0:00:00", "mem "):
        assert word in line


def test_no_bar_in_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    kinds = [type(writer) for writer in build_writers(toy_cfg(tmp_path), 5)]
    assert ProgressBar not in kinds
    cfg = toy_cfg(tmp_path, "ENGINE.PROGRESS_BAR", "on")
    assert ProgressBar in [type(writer) for writer in build_writers(cfg, 5)]


def test_log_lines_do_not_run_into_the_bar():
    stream, log = Terminal(), Terminal()
    handler = logging.StreamHandler(log)
    logging.getLogger("d2ext").addHandler(handler)
    bar = ProgressBar(10, stream)
    try:
        bar.start(None)
        drawn = stream.getvalue().split("\r")[-1]
        assert "0/10" in drawn
        logging.getLogger("d2ext").warning("said")
        handler.handle(logging.LogRecord("detectron2.utils.events", 20, "", 0, "loss", (), None))
        # The line is blank again, with the cursor at its start.
        assert stream.getvalue().split("\r")[-2:] == [" " * len(drawn), ""]
        assert log.getvalue() == "said\n"
    finally:
        bar.close()
        logging.getLogger("d2ext").removeHandler(handler)


def snapshot(model):
    return {
        "state": {k: v.clone() for k, v in model.state_dict().items()},
        "normalizer": model.normalizer,
        "modes": [m.training for m in model.modules()],
        "random": torch.get_rng_state(),
    }


def test_validation_loss_touches_no_state(tiny, tmp_path):
    """Batch norm, statistics, running normalisers, gradients, modes and random numbers."""
    trainer = Trainer(toy_cfg(tmp_path, "TEST.VAL_LOSS.PERIOD", 2))
    trainer.train()
    model = trainer.raw_model
    model.body[1].eval()  # a frozen layer stays frozen
    before = snapshot(model)
    hook = next(h for h in trainer.all_hooks if isinstance(h, ValidationLoss))
    first, second = hook.measure(), hook.measure()
    assert differences(before, snapshot(model)) == []
    assert first == second and set(first) == {"loss_cls", "loss_box_reg", "total_loss"}
    # The same measurement without protection changes all of them.
    model.train()
    with torch.no_grad():
        for batch, _ in hook._batches():
            model(batch)
    changed = differences(before, snapshot(model))
    assert {".state.seen", ".state.body.1.running_mean", ".random"} <= set(changed)
    assert any("normalizer" in path for path in changed)


def test_validation_loss_changes_no_training(tiny, tmp_path):
    finals = []
    for name, words in (("with", ("TEST.VAL_LOSS.PERIOD", 2)), ("without", ())):
        Trainer(toy_cfg(tmp_path / name, *words)).train()
        data = load(tmp_path / name / "model_final.pth")
        finals.append({k: data[k] for k in ("model", "ranks")})
    assert differences(*finals) == []
    logged = [x for x in metrics(tmp_path / "with") if "val/total_loss" in x]
    assert [x["iteration"] for x in logged] == [1, 3, 5]
    assert logged[0]["val/total_loss"] == pytest.approx(
        logged[0]["val/loss_cls"] + logged[0]["val/loss_box_reg"]
    )


def test_efl_statistics_are_untouched():
    from d2ext.modeling.losses import EqualizedFocalLoss

    loss = EqualizedFocalLoss(3)
    logits = torch.randn(5, 3, requires_grad=True)
    labels = torch.tensor([0, 1, 2, 3, 3])
    loss(logits, labels, 5.0)
    before = copy.deepcopy(loss.state_dict())
    with untouched(loss):
        loss(logits, labels, 5.0)
        assert differences(dict(before), dict(loss.state_dict())) != []
    assert differences(dict(before), dict(loss.state_dict())) == []


class Figures(HookBase):
    """Puts given figures into the log, one a step."""

    def __init__(self, values):
        self.values = values

    def after_step(self):
        value = self.values[self.trainer.iter]
        if value is not None:
            self.trainer.storage.put_scalar("bbox/AP", value, smoothing_hint=False)


def test_the_best_checkpoint(tmp_path):
    values = [None, 3.0, float("nan"), 5.0, 4.0, 5.0]
    trainer = line_trainer(max_iter=6, output_dir=str(tmp_path))
    trainer.register_hooks([Figures(values), best := BestCheckpointer("bbox/AP")])
    trainer.train()
    assert (best.best, best.best_iter) == (5.0, 3)
    assert load(tmp_path / "model_best.pth")["iteration"] == 3
    # It is never what a run resumes from.
    assert not (tmp_path / "last_checkpoint").exists()


def test_the_least_can_be_the_best(tmp_path):
    trainer = line_trainer(output_dir=str(tmp_path))
    trainer.register_hooks([Figures([3.0, 2.0, 4.0, 5.0]), BestCheckpointer("bbox/AP", "min")])
    trainer.train()
    assert load(tmp_path / "model_best.pth")["iteration"] == 1
    with pytest.raises(ValueError, match="choose max or min"):
        BestCheckpointer("bbox/AP", "most")


def test_a_figure_that_never_comes_up_is_said(tmp_path, caplog):
    trainer = line_trainer(output_dir=str(tmp_path))
    trainer.register_hooks([Figures([1.0] * 4), BestCheckpointer("box/AP")])
    trainer.train()
    assert "'box/AP' never came up (figures with a '/': bbox/AP)" in caplog.text


@pytest.mark.parametrize(
    # The best is step 4's, followed by three others; or step 1's, and 2, 4 and 5 are no better.
    "min_delta, stopped_at",
    [(0.0, 8), (0.5, 6)],
    ids=["any improvement", "a large one"],
)
def test_early_stopping_with_patience(tmp_path, caplog, min_delta, stopped_at):
    values = [1.0, 2.0, 1.5, None, 2.1, 2.0, 2.0, 2.0, 2.0]
    trainer = line_trainer(max_iter=9)
    trainer.register_hooks([Figures(values), EarlyStopping("bbox/AP", 3, min_delta=min_delta)])
    with caplog.at_level(logging.INFO, "d2ext"):
        trainer.train()
    assert trainer.completed_steps == stopped_at
    assert trainer.finished and trainer.exit_code == 0
    assert "bbox/AP has not improved" in caplog.text


def test_early_stopping_by_config_writes_a_final_checkpoint(tiny, tmp_path):
    words = (
        "ENGINE.EARLY_STOPPING.PATIENCE", 2, "ENGINE.EARLY_STOPPING.METRIC", "bbox/AP",
        "ENGINE.EARLY_STOPPING.MIN_DELTA", 1000.0, "TEST.EVAL_PERIOD", 1, "SOLVER.MAX_ITER", 50,
    )  # fmt: skip
    trainer = Trainer(toy_cfg(tmp_path, *words))
    trainer.train()
    assert trainer.completed_steps == 3
    assert load(tmp_path / "model_final.pth")["iteration"] == 2
