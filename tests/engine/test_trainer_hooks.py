"""Events: which fire, how often, in which order, on whom, and what they may change."""

import pytest
import torch
from detectron2.engine import HookBase as UpstreamHookBase
from detectron2.engine import hooks as upstream
from engine_kit import ROOT, run_ranks, toy_cfg, train
from torch import nn

from d2ext.engine import HOOK_REGISTRY, HookBase, Trainer

EVENTS = ("before_train", "before_step", "on_losses", "after_backward", "after_step", "after_train")


class Diary(HookBase):
    """Writes down every event, with the micro-step of on_losses."""

    def __init__(self):
        self.events = []


def _note(event):
    def method(self, *args):
        where = (self.trainer.iter, self.trainer.micro_step) if event == "on_losses" else ()
        self.events.append((event, *where))

    return method


for _event in EVENTS:
    setattr(Diary, _event, _note(_event))


class Line(nn.Module):
    """loss_a = mean (w x)^2, loss_b = mean |w x|."""

    def __init__(self, size=3):
        super().__init__()
        torch.manual_seed(1)
        self.weight = nn.Parameter(torch.randn(size))

    def forward(self, batch):
        product = self.weight * batch
        return {"loss_a": product.square().mean(), "loss_b": product.abs().mean()}


def line_trainer(batches=None, lr=0.1, **arguments):
    model = Line()
    batches = [torch.randn(4, 3) for _ in range(8)] if batches is None else batches
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    arguments = {"max_iter": 4, **arguments}
    return Trainer(model=model, data_loader=batches, optimizer=optimizer, **arguments)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_each_event_once_a_step(accumulate):
    trainer, diary = line_trainer(accumulate=accumulate), Diary()
    trainer.register_hooks([diary])
    trainer.train()
    step = ["before_step", *["on_losses"] * accumulate, "after_backward", "after_step"]
    assert [e[0] for e in diary.events] == ["before_train", *step * 4, "after_train"]
    micro = [e[1:] for e in diary.events if e[0] == "on_losses"]
    assert micro == [(i, m) for i in range(4) for m in range(accumulate)]


@pytest.mark.dist
def test_on_every_rank(tmp_path):
    def rank_main(rank):
        trainer, diary = line_trainer(), Diary()
        trainer.register_hooks([diary])
        trainer.train()
        assert [e[0] for e in diary.events].count("after_backward") == 4
        assert len(diary.events) == 2 + 4 * 4

    run_ranks(rank_main)


def test_gradients_are_there_after_backward():
    seen = []

    class Look(UpstreamHookBase):
        def after_backward(self):
            seen.append(self.trainer.raw_model.weight.grad.clone())

    trainer = line_trainer()
    trainer.register_hooks([Look()])
    trainer.train()
    assert len(seen) == 4 and all(g.abs().sum() > 0 for g in seen)


def test_on_losses_replaces_values_and_gradients():
    class Weigh(HookBase):
        def on_losses(self, loss_dict):
            assert loss_dict["loss_a"].grad_fn is not None
            assert not torch.is_autocast_enabled("cpu")
            return {"loss_a": loss_dict["loss_a"] * 3.0}

    batch = torch.randn(4, 3)
    trainer = line_trainer([batch], max_iter=1)
    before = trainer.raw_model.weight.detach().clone()
    trainer.register_hooks([Weigh()])
    trainer.train()
    reference = Line()
    (reference(batch)["loss_a"] * 3.0).backward()
    torch.testing.assert_close(trainer.raw_model.weight, before - 0.1 * reference.weight.grad)
    expected = 3.0 * reference(batch)["loss_a"].item()
    assert trainer.storage.latest()["total_loss"][0] == pytest.approx(expected)


def test_on_losses_hooks_see_what_the_one_before_returned():
    class Double(HookBase):
        def on_losses(self, loss_dict):
            return {k: v * 2 for k, v in loss_dict.items()}

    class Watch(HookBase):
        def on_losses(self, loss_dict):
            self.total = sum(loss_dict.values()).item()

    watch, trainer = Watch(), line_trainer([torch.ones(1, 3)], max_iter=1)
    trainer.register_hooks([Double(), Double(), watch])
    trainer.train()
    assert watch.total == pytest.approx(
        4 * sum(v.item() for v in Line()(torch.ones(1, 3)).values())
    )


def test_a_model_that_returns_one_loss():
    trainer = line_trainer()
    trainer.raw_model.forward = lambda batch: (trainer.raw_model.weight * batch).square().mean()
    trainer.train()
    assert "total_loss" in trainer.storage.latest()
    assert "loss_a" not in trainer.storage.latest()


def test_upstream_hooks_work_unchanged(tmp_path):
    called = []
    trainer = line_trainer()
    trainer.scheduler = torch.optim.lr_scheduler.StepLR(trainer.optimizer, 2, 0.1)
    trainer.register_hooks(
        [
            upstream.IterationTimer(),
            upstream.LRScheduler(),
            upstream.CallbackHook(after_step=lambda t: called.append(t.iter)),
            upstream.EvalHook(2, lambda: {"task": {"AP": 1.0 + trainer.iter}}),
            upstream.TorchMemoryStats(),
        ]
    )
    trainer.train()
    assert called == [0, 1, 2, 3]
    assert trainer.storage.latest()["task/AP"][0] > 1.0
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(0.001)


class Counter(HookBase):
    def __init__(self, start=0):
        self.count = start

    def after_step(self):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state_dict):
        self.count = state_dict["count"]


def test_any_number_of_hooks_of_a_class_is_saved(tmp_path):
    first, second = (line_trainer(output_dir=str(tmp_path)) for _ in range(2))
    first.register_hooks([Counter(10), Counter(20), Counter(30)])
    first.train()
    first.save_checkpoint("model_0000003")
    second.register_hooks([Counter(), Counter(), Counter()])
    second.resume_or_load()
    assert [h.count for h in second._hooks] == [14, 24, 34]
    assert second.start_iter == 4


def test_a_checkpoint_holds_what_later_hooks_did(tmp_path):
    """A hook registered after the checkpointer still runs before it."""
    from d2ext.engine.hooks import PeriodicCheckpointer

    trainer = line_trainer(output_dir=str(tmp_path))
    trainer.register_hooks([PeriodicCheckpointer(2)])
    trainer.register_hooks([Counter()])
    trainer.train()
    saved = torch.load(tmp_path / "model_0000001.pth", weights_only=True)
    assert saved["trainer"]["hooks"]["Counter"] == {"count": 2}


def test_a_state_that_cannot_be_saved_fails_before_the_first_step(tmp_path):
    class Bad(Counter):
        def state_dict(self):
            return {"inner": {"what": object()}}

    trainer = line_trainer()
    trainer.register_hooks([Bad(), diary := Diary()])
    with pytest.raises(TypeError, match="hook .*Bad.inner.what is a object"):
        trainer.train()
    assert ("before_step",) not in diary.events


def test_hooks_by_name(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(HOOK_REGISTRY, "_obj_map", dict(HOOK_REGISTRY._obj_map))

    @HOOK_REGISTRY.register()
    def TwoCounters(cfg):
        return [Counter(), Counter(cfg.SOLVER.MAX_ITER)]

    HOOK_REGISTRY.register(NoHook := type("NoHook", (), {"__new__": lambda cls, cfg: None}))
    trainer = Trainer(toy_cfg(tmp_path, "ENGINE.HOOKS", ["TwoCounters", "NoHook"]))
    assert [h.count for h in trainer.all_hooks if isinstance(h, Counter)] == [0, 6]
    assert NoHook is not None
    with pytest.raises(ValueError, match="ENGINE.HOOKS is .'Missing'.; it must be .*TwoCounters"):
        Trainer(toy_cfg(tmp_path, "ENGINE.HOOKS", ["Missing"]))


def test_hooks_from_a_users_module(tiny, tmp_path):
    """--import registers them, without a line of ours changed."""
    train(tiny, tmp_path / "run", sabotage="terminate 2", code=75)


def test_an_exception_reaches_after_train():
    class Fail(HookBase):
        def after_backward(self):
            raise ZeroDivisionError("on purpose")

    trainer, diary = line_trainer(), Diary()
    trainer.register_hooks([diary, Fail()])
    with pytest.raises(ZeroDivisionError):
        trainer.train()
    assert diary.events[-1] == ("after_train",) and not trainer.finished


def test_a_hook_may_ask_to_stop():
    class Enough(HookBase):
        def after_step(self):
            if self.trainer.iter == 1:
                self.trainer.request_stop("enough")

    trainer = line_trainer()
    trainer.register_hooks([Enough()])
    trainer.train()
    # The hooks of that step have begun, each taking it for a step like any other.
    assert trainer.completed_steps == 3 and trainer.finished and trainer.exit_code == 0


def test_the_hook_in_the_docs(tiny, tmp_path):
    page = (ROOT / "docs" / "trainer.md").read_text()
    (code,) = [b.split("```")[0] for b in page.split("```python\n")[1:] if "HalveBoxLoss" in b]
    exec(compile(code, "docs/trainer.md", "exec"), {})
    trainer = Trainer(toy_cfg(tmp_path, "ENGINE.HOOKS", ["HalveBox"], "SOLVER.MAX_ITER", 3))
    trainer.train()
    plain = Trainer(toy_cfg(tmp_path / "plain", "SOLVER.MAX_ITER", 1))
    plain.train()
    halved, whole = (t.storage.history("loss_box_reg").values()[0][0] for t in (trainer, plain))
    assert halved == pytest.approx(whole / 2)
