"""Messages between ranks: one a step for all that methods keep, none of it changed by that."""

import pytest
import torch
from detectron2.utils import comm
from engine_kit import run_ranks
from torch import nn

from d2ext.engine import NonFiniteGuard, Trainer
from d2ext.engine.hooks import LossWeights
from d2ext.modeling.losses.equalized_focal import EqualizedFocalLoss
from d2ext.modeling.losses.normalizers import (
    EMANormalizer,
    PositiveNormalizer,
    divisor_and_mean,
)
from d2ext.ops.loss_weights import DynamicWeightAverage

NUM_CLASSES = 3


class Detector(nn.Module):
    """EFL and a box loss on a linear layer."""

    def __init__(self, normalizer):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(4, NUM_CLASSES)
        self.cls_loss = EqualizedFocalLoss(NUM_CLASSES)
        self.normalizer = normalizer

    def forward(self, batch):
        features, labels = batch
        logits = self.layer(features)
        divisor = self.normalizer(int((labels < NUM_CLASSES).sum()), logits)
        box = logits.square().sum() / divisor
        return {"loss_cls": self.cls_loss(logits, labels, divisor), "loss_box_reg": box}


def make_trainer(rank, *, skipping=False, sync=False, accumulate=1, steps=4):
    g = torch.Generator().manual_seed(rank)
    batches = [
        (torch.randn(6, 4, generator=g), torch.randint(0, NUM_CLASSES + 1, (6,), generator=g))
        for _ in range(steps * accumulate)
    ]
    model = Detector(PositiveNormalizer(sync=sync))
    weights = LossWeights(make_weighting=lambda: DynamicWeightAverage(interval=1))
    trainer = Trainer(
        model=model,
        data_loader=batches,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        max_iter=steps,
        accumulate=accumulate,
        guard=NonFiniteGuard("skip" if skipping else "stop"),
    )
    trainer.register_hooks([weights])
    return trainer, weights


def count_messages(trainer):
    """Train, and return the number of all-reduces of each step but the first."""
    original, calls = torch.distributed.all_reduce, []
    # DistributedDataParallel sends the gradients from C++, past this function.
    torch.distributed.all_reduce = lambda *a, **k: (calls.append(trainer.iter), original(*a, **k))
    try:
        trainer.train()
    finally:
        torch.distributed.all_reduce = original
    return [calls.count(step) for step in range(1, trainer.max_iter)]


def state(trainer, weights):
    buffers = {k: v.clone() for k, v in trainer.raw_model.state_dict().items()}
    return buffers, weights.weights


@pytest.mark.dist
def test_one_message_a_step_and_the_same_training():
    def rank_main(rank):
        trainer, weights = make_trainer(rank)
        assert count_messages(trainer) == [1, 1, 1]
        buffers, losses = state(trainer, weights)
        assert buffers["cls_loss.pos_grad"].sum() > 0 and losses["loss_cls"] != 1.0
        # A step that may be skipped ends without a message, so everything is sent at once there:
        # the statistics, the losses that are weighed, the flag, the losses that are logged.
        at_once, weights_at_once = make_trainer(rank, skipping=True)
        assert count_messages(at_once) == [4, 4, 4]
        expected, expected_losses = state(at_once, weights_at_once)
        assert losses == expected_losses
        for name, value in buffers.items():
            assert torch.equal(value, expected[name]), name
        for other in comm.all_gather(buffers):
            assert all(torch.equal(v, buffers[k]) for k, v in other.items())
        assert len({str(w) for w in comm.all_gather(losses)}) == 1
        # What the losses are divided by is needed before they exist.
        assert count_messages(make_trainer(rank, sync=True)[0]) == [2, 2, 2]
        # The second micro-step reads what the first one collected.
        assert count_messages(make_trainer(rank, accumulate=2)[0]) == [3, 3, 3]

    run_ranks(rank_main)


@pytest.mark.dist
def test_a_normaliser_takes_another_mean_along():
    def rank_main(rank):
        original, calls = torch.distributed.all_reduce, []
        torch.distributed.all_reduce = lambda x, *a, **k: (calls.append(x), original(x, *a, **k))
        like, total = torch.zeros(()), torch.tensor(1.5 + rank)
        for normalizer in (PositiveNormalizer(sync=True), EMANormalizer(sync=True)):
            calls.clear()
            divisor, mean = divisor_and_mean(normalizer, 3 + 4 * rank, like, total)
            assert len(calls) == 1 and float(mean) == 2.0 and mean.dtype == total.dtype
        assert float(divisor) == pytest.approx(0.9 * 100 + 0.1 * 5)
        # One that does not look at the count, and one of somebody else's.
        divisor, mean = divisor_and_mean(normalizer.eval(), 3, like, total)
        assert float(divisor) == pytest.approx(0.9 * 100 + 0.1 * 5) and float(mean) == 2.0
        divisor, mean = divisor_and_mean(lambda count, like: count, 3, like, total)
        assert divisor == 3 and float(mean) == 2.0
        torch.distributed.all_reduce = original

    run_ranks(rank_main)
