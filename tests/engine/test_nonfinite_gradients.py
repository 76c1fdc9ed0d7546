"""Gradients and weights that are not finite, with losses that are: nothing of them is saved."""

import math

import pytest
import torch
from engine_kit import run_ranks
from test_trainer_hooks import Line, line_trainer
from torch import nn

from d2ext.engine import (
    Checkpointer,
    GlobalNormClipper,
    HookBase,
    NonFiniteGuard,
    NonFiniteLossError,
    RunError,
    load_batch,
)
from d2ext.engine.hooks import ModelEMA, PeriodicCheckpointer
from d2ext.testing import count_ops


class Poison(HookBase):
    """One entry of the gradient becomes NaN, or another number, in one step."""

    def __init__(self, step, value=math.nan):
        self.step, self.value = step, value

    def after_backward(self):
        if self.trainer.iter == self.step:
            self.trainer.raw_model.weight.grad[1] = self.value


def poisoned(tmp_path, step, value=math.nan, period=0, **arguments):
    trainer = line_trainer(output_dir=str(tmp_path), max_iter=6, **arguments)
    ema = ModelEMA(trainer.raw_model)
    trainer.register_hooks([Poison(step, value), ema, PeriodicCheckpointer(period)])
    return trainer


def assert_all_finite(tmp_path):
    for path in tmp_path.glob("model_*.pth"):
        saved = torch.load(path)
        average = saved.get("trainer", {}).get("hooks", {}).get("ModelEMA", {}).get("average", {})
        for value in (*saved["model"].values(), *average.values()):
            assert torch.isfinite(value).all(), path


def test_in_the_last_step(tmp_path):
    trainer = poisoned(tmp_path, 5, period=2)
    with pytest.raises(NonFiniteLossError, match="gradient is not finite at iteration 5.*weight"):
        trainer.train()
    # Before the update, so that the weights of the report are still good.
    saved = load_batch(str(tmp_path / "nonfinite_0000005_rank0.pth"))
    assert torch.isfinite(saved["model"]["weight"]).all()
    assert not (tmp_path / "model_final.pth").exists()
    assert not (tmp_path / "model_final_ema.pth").exists()
    assert_all_finite(tmp_path)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_in_a_step_that_saves(tmp_path, value):
    """The gradients of that step are not looked at, its weights are."""
    trainer = poisoned(tmp_path, 3, value, period=2)
    with pytest.raises(NonFiniteLossError, match="model_0000001.pth is the last good one"):
        trainer.train()
    assert sorted(p.name for p in tmp_path.glob("*.pth")) == ["model_0000001.pth"]
    again = poisoned(tmp_path, -1, period=2)
    again.resume_or_load()
    again.train()
    assert again.finished and (tmp_path / "model_final_ema.pth").is_file()
    assert_all_finite(tmp_path)


def test_with_clipping_in_any_step(tmp_path):
    trainer = poisoned(tmp_path, 1, clipper=GlobalNormClipper(1.0))
    with pytest.raises(NonFiniteLossError, match="gradient is not finite at iteration 1"):
        trainer.train()


def test_an_update_that_overflows(tmp_path):
    trainer = poisoned(tmp_path, -1, period=1, lr=3e38, batches=[torch.full((4, 3), 1e3)])
    with pytest.raises(NonFiniteLossError, match="model_0000000.pth is not written"):
        trainer.train()
    assert not list(tmp_path.glob("*.pth"))


@pytest.mark.parametrize("clipper", [None, GlobalNormClipper(100.0)])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_skip_leaves_the_step_out(tmp_path, clipper, accumulate):
    guard = NonFiniteGuard("skip", output_dir=str(tmp_path))
    batches = [torch.ones(2, 3)]
    trainer = poisoned(
        tmp_path, 2, guard=guard, clipper=clipper, accumulate=accumulate, batches=batches
    )
    trainer.train()
    assert trainer.finished and guard.skips == 1
    assert trainer.storage.latest()["skipped_steps"][0] == 1
    other = line_trainer(batches, max_iter=5, clipper=clipper)
    other.train()
    assert torch.equal(other.raw_model.weight, trainer.raw_model.weight)


@pytest.mark.dist
def test_all_ranks_skip_together(tmp_path):
    def rank_main(rank):
        guard = NonFiniteGuard("skip", output_dir=str(tmp_path))
        batches = [torch.full((2, 3), float(rank + 1))]
        trainer = line_trainer(batches, max_iter=4, guard=guard)

        class Explode(HookBase):
            def on_losses(self, losses):
                if self.trainer.iter == 1 and rank == 1:
                    # 0 * inf in the backward pass, 0 in the forward pass.
                    zero = self.trainer.raw_model.weight.square().sum() * 0
                    losses = {**losses, "loss_root": zero.sqrt()}
                return losses

        trainer.register_hooks([Explode()])
        trainer.train()
        assert guard.skips == 1 and trainer.finished
        assert torch.isfinite(trainer.raw_model.weight).all()

    run_ranks(rank_main)


class Masked(Line):
    """Keeps a mask of -inf, as attention layers do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))


def test_what_was_infinite_from_the_start_is_the_models_own(tmp_path):
    Checkpointer(Masked(), str(tmp_path)).save("model_final")
    assert Checkpointer(Masked(), str(tmp_path)).get_checkpoint_file().endswith("model_final.pth")


def test_an_older_checkpoint_that_is_not_finite_is_skipped(tmp_path, caplog):
    model = nn.Linear(2, 1)
    checkpointer = Checkpointer(model, str(tmp_path))
    checkpointer.save("model_0000001")
    state = torch.load(tmp_path / "model_0000001.pth")
    state["model"]["weight"][0, 1] = math.nan
    torch.save(state, tmp_path / "model_0000003.pth")
    (tmp_path / "last_checkpoint").write_text("model_0000003.pth")
    assert checkpointer.get_checkpoint_file().endswith("model_0000001.pth")
    assert "model.weight is not finite" in caplog.text


def test_weights_that_are_not_finite_are_refused(tmp_path):
    state = {"model": {"weight": torch.tensor([[1.0, math.inf]]), "bias": torch.zeros(1)}}
    torch.save(state, tmp_path / "bad.pth")
    with pytest.raises(RunError, match="bad.pth.*weight.*not finite"):
        Checkpointer(nn.Linear(2, 1)).load(str(tmp_path / "bad.pth"))


@pytest.mark.parametrize("clipper", [None, GlobalNormClipper(1.0)])
def test_what_a_look_costs(clipper):
    """No read of the host where there was none; between two looks nothing at all."""

    def counts(period, last):
        guard = NonFiniteGuard(period=period)
        trainer = line_trainer(max_iter=last, guard=guard, clipper=clipper)
        seen = []

        class Count(HookBase):
            def after_step(self):
                if self.trainer.iter == 2:
                    with count_ops() as ops:
                        self.trainer.iter += 1
                        self.trainer.run_step()
                    seen.append(ops)

        trainer.register_hooks([Count()])
        trainer.train()
        return seen[0]

    never, due, between = counts(10**6, 9), counts(4, 9), counts(3, 9)
    assert between.by_name == never.by_name and between.syncs == never.syncs
    if clipper is not None:  # the norm is there in each step
        assert due.by_name == never.by_name and due.syncs == never.syncs
    else:
        # On a GPU it travels with the losses, which are read in one go.
        assert due.num_syncs == never.num_syncs + 1 and due.total <= never.total + 4
