"""What every stateful method holds after 30 steps on several ranks with uneven objects.

It is the same on all ranks, bit for bit, and what one process holds that saw the joined batches.
The head is two linear layers in float64, so that nothing but the method can differ.

Shapes: M rows (samples) of a rank, K of them positive, C classes, D features, W ranks.
"""

import pytest
import torch
from detectron2.utils import comm
from engine_kit import differences, load, run_ranks
from torch import nn

from d2ext.engine import Trainer
from d2ext.engine.hooks import LossWeights, ModelEMA
from d2ext.modeling.losses import CLS_LOSS_REGISTRY, Criterion, GuidedScale, SmoothL1Loss
from d2ext.modeling.losses.normalizers import EMANormalizer, PositiveNormalizer
from d2ext.modeling.losses.positives import Positives
from d2ext.modeling.sampling_free import PriorSums
from d2ext.ops.loss_weights import AdaptiveLossWeight, DynamicWeightAverage, UncertaintyWeight

pytestmark = [pytest.mark.dist, pytest.mark.slow]

STEPS, CLASSES, FEATURES = 30, 5, 6
WORLD_SIZES = (2, 3)


class Shift:
    """Deltas that are added to the corners; Detectron2's transforms decode in float32."""

    def get_deltas(self, priors, boxes):
        return boxes - priors

    def apply_deltas(self, deltas, priors):
        return priors + deltas


class Head(nn.Module):
    """Class and box predictions of rows of features, trained with a criterion."""

    def __init__(self, cls_loss="focal", guide=None, normalizer=None):
        super().__init__()
        loss = CLS_LOSS_REGISTRY.get(cls_loss)
        loss = loss(CLASSES) if cls_loss in ("efl", "eqfl", "eqlv2", "seesaw") else loss()
        torch.manual_seed(7)
        self.cls = nn.Linear(FEATURES, CLASSES + (0 if loss.sigmoid else 1))
        self.box = nn.Linear(FEATURES, 4)
        self.criterion = Criterion(cls_loss=loss, box_loss=SmoothL1Loss(beta=0.5), guide=guide)
        self.normalizer = normalizer or PositiveNormalizer(sync=True)
        self.double()

    def forward(self, batch):
        features, labels, priors, boxes = batch
        logits, deltas = self.cls(features), self.box(features)
        index = ((labels >= 0) & (labels < CLASSES)).nonzero().squeeze(1)
        positives = Positives(index, deltas[index], priors[index], boxes[index], Shift())
        divisor = self.normalizer(len(index), logits)
        losses = self.criterion(
            logits, labels, positives, cls_normalizer=divisor, box_normalizer=divisor
        )
        names = {"cls": "loss_cls", "box": "loss_box_reg"}
        return {names.get(name, f"loss_{name}"): value for name, value in losses.items()}


def draw_batch(step, rank, world_size):
    """The rows of a rank in a step: in turn it has no object, and now and then no row at all."""
    g = torch.Generator().manual_seed(1000 * step + rank)
    rows = int(torch.randint(8, 30, (), generator=g))
    without_rows = step % 10 == 5 and step // 10 % world_size == rank
    without_objects = step % 10 != 5 and step % 3 == 0 and step // 3 % world_size == rank
    rows = 0 if without_rows else rows
    labels = torch.randint(-1, CLASSES + 3, (rows,), generator=g).clamp(max=CLASSES)
    if without_objects:
        labels[labels < CLASSES] = CLASSES
    elif rows:
        # No fewer positives than ranks: where their mean is below 1 it counts as 1.
        labels[:4] = torch.arange(4)
    priors = torch.rand(rows, 4, generator=g, dtype=torch.float64)
    priors[:, 2:] += priors[:, :2] + 0.5
    boxes = priors + 0.2 * torch.rand(rows, 4, generator=g, dtype=torch.float64)
    features = torch.randn(rows, FEATURES, generator=g, dtype=torch.float64)
    features[:, 0] += labels.double()
    return features, labels, priors, boxes


def join(batches):
    return tuple(torch.cat(parts) for parts in zip(*batches))


def weights(make):
    return LossWeights(make_weighting=make)


def guide(**options):
    return GuidedScale(**options)


# (the head, hooks), both given the scale of counts: 1, or W in the process that sees all rows.
METHODS = {
    "efl": lambda scale: (Head("efl"), []),
    "eqfl": lambda scale: (Head("eqfl"), []),
    "eqlv2": lambda scale: (Head("eqlv2"), []),
    "seesaw": lambda scale: (Head("seesaw"), []),
    "ghmc": lambda scale: (Head("ghmc"), []),
    "running normaliser": lambda scale: (
        Head(normalizer=EMANormalizer(sync=True, initial=20.0 * scale)),
        [],
    ),
    "guide": lambda scale: (Head("bce", guide(sync=True)), []),
    "frozen guide with sigmas": lambda scale: (
        Head("bce", guide(mode="frozen", warmup=20, learn_sigma=True, sync=True)),
        [],
    ),
    "alwa": lambda scale: (Head(), [weights(lambda: AdaptiveLossWeight(2, interval=4))]),
    "uncertainty": lambda scale: (Head(), [weights(lambda: UncertaintyWeight(interval=4))]),
    "dwa": lambda scale: (Head(), [weights(lambda: DynamicWeightAverage(interval=4))]),
    "average of the weights": lambda scale: (Head("efl"), [ModelEMA]),
}
# A sum over ranks of what is divided by a mean over ranks is W times that of one process, and such
# a mean is a W-th. EQL v2 collects before it divides.
_SUMS = {"pos_grad": lambda w: 1 / w, "neg_grad": lambda w: 1 / w}
SCALED = {
    "efl": _SUMS,
    "eqfl": _SUMS,
    "average of the weights": _SUMS,
    "running normaliser": {"value": lambda w: w},
}


def train(method, batches, scale=1):
    """All state of a method after the steps."""
    model, hooks = METHODS[method](scale)
    hooks = [hook(model, decay=0.9) if hook is ModelEMA else hook for hook in hooks]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    trainer = Trainer(model=model, data_loader=batches, optimizer=optimizer, max_iter=STEPS)
    trainer.register_hooks(hooks)
    trainer.train()
    return {
        "model": {k: v.clone() for k, v in model.state_dict().items()},
        "hooks": [hook.state_dict() for hook in hooks],
    }


def measure_prior(batches):
    sums = PriorSums(CLASSES)
    for _, labels, _, _ in batches:
        sums.add(labels, labels[(labels >= 0) & (labels < CLASSES)])
    return sums.result()._asdict()


@pytest.fixture(scope="module", params=WORLD_SIZES)
def ranks(request, tmp_path_factory):
    """The number of ranks and, by method, the state of each of them."""
    path, world_size = tmp_path_factory.mktemp("ranks") / "states.pt", request.param

    def rank_main(rank):
        batches = [draw_batch(step, rank, world_size) for step in range(STEPS)]
        states = {method: train(method, batches) for method in METHODS}
        states["prior"] = measure_prior(batches)
        gathered = comm.all_gather(states)
        if rank == 0:
            torch.save({method: [x[method] for x in gathered] for method in states}, path)

    run_ranks(rank_main, world_size)
    return world_size, load(path)


def joined_batches(world_size):
    return [
        join([draw_batch(step, rank, world_size) for rank in range(world_size)])
        for step in range(STEPS)
    ]


def assert_near(actual, expected, factors, name=""):
    """Equal within 1e-6 of the largest entry, whatever the structure."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key in expected:
            assert_near(actual[key], expected[key], factors, str(key))
    elif isinstance(expected, (list, tuple)):
        assert len(actual) == len(expected)
        for a, b in zip(actual, expected):
            assert_near(a, b, factors, name)
    elif isinstance(expected, torch.Tensor):
        factor = factors.get(name.rsplit(".", 1)[-1], 1.0)
        error = (actual.double() * factor - expected.double()).abs().max()
        assert error <= 1e-6 * expected.double().abs().max(), (name, float(error))
    elif isinstance(expected, float):
        assert actual == pytest.approx(expected, rel=1e-6, abs=1e-9), name
    else:
        assert actual == expected, name


def test_the_batches_are_uneven():
    for world_size in WORLD_SIZES:
        positives = torch.zeros(STEPS, world_size)
        rows = torch.zeros(STEPS, world_size)
        for step in range(STEPS):
            for rank in range(world_size):
                labels = draw_batch(step, rank, world_size)[1]
                rows[step, rank] = len(labels)
                positives[step, rank] = ((labels >= 0) & (labels < CLASSES)).sum()
        assert (positives.sum(1) >= world_size).all()
        assert ((positives == 0).sum(0) >= 3).all() and (rows == 0).any(1).sum() == STEPS // 10


@pytest.mark.parametrize("method", METHODS)
def test_state_is_equal_on_all_ranks_and_that_of_one_process(ranks, method):
    world_size, states = ranks
    first, *others = states[method]
    for other in others:
        assert not differences(first, other)
    alone = train(method, joined_batches(world_size), scale=world_size)
    factors = {k: factor(world_size) for k, factor in SCALED.get(method, {}).items()}
    assert_near(first, alone, factors)
    # It has moved, or the test shows nothing.
    start = METHODS[method](1)[0].state_dict()
    moved = {k for k, v in first["model"].items() if k in start and not torch.equal(v, start[k])}
    assert moved >= {"cls.weight", "box.weight"}
    assert moved | {"normalizer.value"} >= set(start), set(start) - moved
    assert all(state for state in first["hooks"])


def test_measured_prior_is_equal_on_all_ranks_and_that_of_one_process(ranks):
    world_size, states = ranks
    first, *others = states["prior"]
    assert all(other == first for other in others)
    alone = measure_prior(joined_batches(world_size))
    # Batches of ranks are smaller, and more: only their number and spread differ.
    for name in ("foreground", "samples", "class_foreground", "class_objects"):
        assert first[name] == alone[name] and alone["foreground"] > 0
    assert first["batches"] == world_size * alone["batches"]
