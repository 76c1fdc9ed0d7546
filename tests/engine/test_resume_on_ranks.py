"""Three and more ranks add gradients up in the order of their buckets: a resume keeps it."""

import pytest
import torch
from engine_kit import run_ranks
from torch import nn

from d2ext.engine import Trainer
from d2ext.engine.hooks import ModelEMA, PeriodicCheckpointer

pytestmark = pytest.mark.dist

SIZE = 96


class Shuffled(nn.Module):
    """Layers that are used in another order than they are registered in, as a pyramid's are."""

    order = (3, 0, 4, 1, 2)

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList(nn.Linear(SIZE, SIZE) for _ in self.order)

    def forward(self, batch):
        for k in self.order:
            batch = self.layers[k](batch).tanh()
        return {"loss": batch.square().mean(), "loss_l1": batch.abs().mean()}


def make_trainer(rank, folder, accumulate, **arguments):
    generator = torch.Generator().manual_seed(rank)
    batches = [torch.randn(4, SIZE, generator=generator) for _ in range(6 * accumulate)]
    model = Shuffled()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    arguments = {"output_dir": str(folder), "accumulate": accumulate, **arguments}
    trainer = Trainer(model, batches, optimizer, **arguments)
    trainer.register_hooks([PeriodicCheckpointer(3)])
    return trainer


@pytest.mark.parametrize("world_size", [3, 4])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resume_is_exact(tmp_path, world_size, accumulate):
    def rank_main(rank):
        whole = make_trainer(rank, tmp_path / "whole", accumulate, max_iter=6)
        whole.train()
        make_trainer(rank, tmp_path / "parts", accumulate, max_iter=3).train()
        again = make_trainer(rank, tmp_path / "parts", accumulate, max_iter=6)
        again.resume_or_load()
        again.data_loader = again.data_loader[3 * accumulate :]
        again.train()
        assert again.step.order.names == whole.step.order.names
        for a, b in zip(whole.raw_model.parameters(), again.raw_model.parameters()):
            assert torch.equal(a, b)

    run_ranks(rank_main, world_size)


class Joins(nn.Module):
    """A buffer that joins the state dict in the first step, as a normaliser of losses does."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("value", torch.zeros(()), persistent=False)

    def forward(self, batch):
        self.value += 1
        self._non_persistent_buffers_set.discard("value")
        return {"loss": (self.weight * batch).square().sum()}


def test_the_average_of_a_model_whose_buffer_joins_late(tmp_path):
    def rank_main(rank):
        model = Joins()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        batches = [torch.ones(2, 3)]
        trainer = Trainer(model, batches, optimizer, output_dir=str(tmp_path), max_iter=2)
        ema = ModelEMA(model)
        trainer.register_hooks([ema, PeriodicCheckpointer(1)])
        trainer.train()
        assert "value" not in ema.model_state_dict()

    run_ranks(rank_main)
    saved = torch.load(tmp_path / "model_final.pth")
    assert (
        "value" in saved["model"] and "weight" in saved["trainer"]["hooks"]["ModelEMA"]["average"]
    )
    assert (tmp_path / "model_final_ema.pth").is_file()
