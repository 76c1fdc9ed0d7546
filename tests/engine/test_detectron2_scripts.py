"""Scripts written for Detectron2's trainers, with ours in their place and nothing else changed."""

import json

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import create_ddp_model as upstream_ddp_model
from detectron2.engine import default_writers
from detectron2.engine import hooks as upstream
from detectron2.utils.events import JSONWriter
from engine_kit import run_ranks, toy_cfg
from fvcore.common.checkpoint import Checkpointer as PlainCheckpointer
from test_trainer_hooks import Line

from d2ext.engine import Trainer


def batches():
    return [torch.full((2, 3), float(k + 1)) for k in range(5)]


@pytest.mark.parametrize("kind", [PlainCheckpointer, DetectionCheckpointer])
def test_a_foreign_checkpointer_resumes(tmp_path, kind):
    """As Detectron2's ``test_checkpoint_resume``."""
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trainer = Trainer(model, batches(), optimizer)
    checkpointer = kind(model, str(tmp_path), opt=optimizer, trainer=trainer)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    trainer.register_hooks(
        [
            upstream.LRScheduler(scheduler=scheduler),
            upstream.PeriodicCheckpointer(checkpointer, 10),
        ]
    )
    trainer.train(0, 12)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)
    assert scheduler.last_epoch == 12
    optimizer = torch.optim.SGD(model.parameters(), 999)
    trainer = Trainer(model, batches(), optimizer)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    trainer.register_hooks([upstream.LRScheduler(scheduler=scheduler)])
    checkpointer = kind(model, str(tmp_path), opt=optimizer, trainer=trainer)
    checkpointer.resume_or_load("not_there.pth")
    assert trainer.iter == 11  # the last finished step
    assert scheduler.last_epoch == 12
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-5)


def lazy_script(folder, resume, max_iter):
    """What ``do_train`` of Detectron2's tools/lazyconfig_train_net.py does."""
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    model = upstream_ddp_model(model)
    trainer = Trainer(model, batches(), optimizer)
    checkpointer = DetectionCheckpointer(model, folder, trainer=trainer)
    steps = []
    trainer.register_hooks(
        [
            upstream.IterationTimer(),
            upstream.PeriodicCheckpointer(checkpointer, period=2),
            upstream.EvalHook(100, lambda: None),
            upstream.PeriodicWriter(default_writers(folder, max_iter), period=1),
            upstream.CallbackHook(after_step=lambda trainer: steps.append(trainer.iter)),
        ]
    )
    checkpointer.resume_or_load("", resume=resume)
    start_iter = trainer.iter + 1 if resume and checkpointer.has_checkpoint() else 0
    trainer.train(start_iter, max_iter)
    return steps


def test_the_lazy_script_goes_on_where_it_stopped(tmp_path):
    assert lazy_script(str(tmp_path), False, 4) == [0, 1, 2, 3]
    assert lazy_script(str(tmp_path), True, 7) == [4, 5, 6]


@pytest.mark.dist
def test_a_model_that_is_wrapped_already(tmp_path):
    def rank_main(rank):
        model = upstream_ddp_model(Line(), device_ids=None)
        trainer = Trainer(model, batches(), torch.optim.SGD(model.parameters(), 0.1), max_iter=2)
        assert trainer.model is model and trainer.raw_model is model.module
        trainer.train()

    run_ranks(rank_main)


def test_another_loader_in_the_middle():
    model = Line()
    trainer = Trainer(model, batches(), torch.optim.SGD(model.parameters(), 0.1))
    trainer.train(0, 3)
    trainer.reset_data_loader(lambda: [torch.zeros(2, 3)])
    trainer.train(3, 5)
    assert trainer.completed_steps == 5
    assert trainer.storage.latest()["total_loss"][0] == 0.0


@pytest.mark.parametrize("period", [1, 3])
def test_figures_are_gathered_every_so_many_steps(tmp_path, period):
    model = Line()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    trainer = Trainer(model, batches(), optimizer, gather_metric_period=period)
    file = str(tmp_path / "metrics.json")
    trainer.register_hooks([upstream.PeriodicWriter([JSONWriter(file)], period=1)])
    trainer.train(0, 7)
    with open(file) as stream:
        lines = [json.loads(line) for line in stream]
    steps = [line["iteration"] for line in lines if "total_loss" in line]
    assert steps == [k for k in range(7) if (k + 1) % period == 0]


def test_the_overrides_of_the_default_trainer(tiny, tmp_path):
    """Each documented method of ``DefaultTrainer``, overridden as there, is what is used."""
    called = []

    class Own(Trainer):
        pass

    def watch(name, static):
        original = getattr(Trainer, name)

        def method(self_or_cls, *args, **kwargs):
            called.append(name)
            function = original.__func__ if static else original
            return function(self_or_cls, *args, **kwargs)

        setattr(Own, name, classmethod(method) if static else method)

    statics = ("build_model", "build_optimizer", "build_lr_scheduler", "build_train_loader")
    statics += ("build_test_loader", "build_evaluator", "test")
    methods = ("build_hooks", "build_writers", "run_step", "before_train", "after_train")
    methods += ("before_step", "after_step", "after_backward", "state_dict", "train")
    for name in statics:
        watch(name, True)
    for name in methods:
        watch(name, False)

    def scale(cfg, num_workers):
        called.append("auto_scale_workers")
        return cfg

    Own.auto_scale_workers = staticmethod(scale)
    cfg = toy_cfg(tmp_path, "SOLVER.MAX_ITER", 1)
    trainer = Own(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    assert set(called) == {*statics, *methods, "auto_scale_workers"}
