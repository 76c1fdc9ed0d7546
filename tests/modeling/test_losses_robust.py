"""Class losses, box losses and assigners on degenerate boxes, bad numbers and empty images."""

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, Instances
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from d2ext.modeling.assigners import (
    ATSSAssigner,
    CenterAssigner,
    IoUAssigner,
    Priors,
    pack_targets,
)
from d2ext.modeling.losses import BOX_LOSS_REGISTRY, CLS_LOSS_REGISTRY, Criterion, GHMCLoss
from d2ext.modeling.losses.positives import Positives

CLASSES = 4
INF, NAN = float("inf"), float("nan")
CLS_LOSSES = sorted(CLS_LOSS_REGISTRY.names())
STATEFUL = {"efl", "eqfl", "eqlv2", "seesaw"}
# A point, two lines, a sliver, one beside the image, the whole plane, an ordinary one.
ODD = [
    [20.0, 20, 20, 20],
    [30, 10, 30, 90],
    [10, 30, 90, 30],
    [40, 40, 40.01, 90],
    [-900, -900, -800, -800],
    [-1e4, -1e4, 1e4, 1e4],
    [16, 16, 80, 80],
]


def make_cls_loss(name):
    loss = CLS_LOSS_REGISTRY.get(name)
    if name == "ecm":
        return loss(CLASSES, counts=range(1, CLASSES + 1))
    return loss(CLASSES) if name in STATEFUL else loss()


def columns_of(loss):
    return CLASSES + int(loss.objectness or not loss.sigmoid)


def quality_of(loss, labels):
    return torch.full(labels.shape, 0.5) if loss.needs_quality else None


@given(
    st.sampled_from(CLS_LOSSES),
    st.integers(0, 6),
    st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    st.sampled_from([0.0, 20.0, -20.0, 1e4, -1e4]),
    st.sampled_from(["mixed", "background", "ignored", "one class"]),
)
def test_class_losses_are_finite_at_any_finite_logit(name, count, dtype, size, kind):
    loss = make_cls_loss(name)
    g = torch.Generator().manual_seed(count)
    logits = torch.randn(count, columns_of(loss), generator=g) * size
    logits = logits.clamp(-1e4, 1e4).to(dtype).requires_grad_()
    labels = {
        "mixed": torch.randint(-1, CLASSES + 1, (count,), generator=g),
        "background": torch.full((count,), CLASSES),
        "ignored": torch.full((count,), -1),
        "one class": torch.zeros(count, dtype=torch.long),
    }[kind]
    # As the criterion calls it: half precision arrives as float32.
    wide = logits.float() if dtype in (torch.float16, torch.bfloat16) else logits
    for _ in range(2):  # the second time with statistics
        value = loss(wide, labels, 1.0, quality_of(loss, labels))
        (grad,) = torch.autograd.grad(value, logits)
        assert torch.isfinite(value) and torch.isfinite(grad).all()
        assert all(torch.isfinite(b).all() for b in loss.buffers())
    if kind == "ignored":
        assert value == 0 and (grad == 0).all()


@pytest.mark.parametrize("name", CLS_LOSSES)
def test_a_nan_logit_is_seen_and_leaves_the_statistics_finite(name):
    loss = make_cls_loss(name)
    torch.manual_seed(0)
    logits = torch.randn(8, columns_of(loss))
    labels = torch.tensor([0, 1, 2, 3, 4, 4, 4, -1])
    loss(logits.clone().requires_grad_(), labels, 1.0, quality_of(loss, labels))
    logits[4, 1] = NAN
    value = loss(logits.requires_grad_(), labels, 1.0, quality_of(loss, labels))
    assert torch.isnan(value)
    assert all(torch.isfinite(b).all() for b in loss.buffers())


def test_nan_is_no_term_of_any_region_of_ghmc():
    logits, labels = torch.tensor([[2.0, NAN], [-1.0, 3.0]]), torch.tensor([0, 2])
    loss = GHMCLoss(bins=2, momentum=0.75)
    assert torch.isnan(loss(logits.requires_grad_(), labels))
    # |p - target|: 0.12, NaN, 0.27 and 0.95.
    assert loss.count.tolist() == [2.0, 1.0]


@pytest.mark.parametrize("cls_name", ["focal", "eqfl", "efl", "bce", "qfl", "ghmc"])
@pytest.mark.parametrize("box_name", sorted(BOX_LOSS_REGISTRY.names()))
def test_criterion_on_degenerate_boxes(cls_name, box_name):
    """Priors and objects without area, far away, identical; also no positive at all."""
    boxes = torch.tensor(ODD)
    priors = torch.tensor(ODD[::-1])
    criterion = Criterion(
        cls_loss=make_cls_loss(cls_name), box_loss=BOX_LOSS_REGISTRY.get(box_name)()
    )
    transform = Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
    # Detectron2 refuses to encode against a prior without area: none of its anchors is one.
    sides = priors[:, 2:] - priors[:, :2]
    priors = torch.where((sides > 0).all(1, keepdim=True), priors, torch.tensor(ODD[-1]))
    of_deltas = box_name in ("smooth_l1", "ghm_r")
    usable = (boxes[:, 2:] > boxes[:, :2]).all(1) if of_deltas else boxes[:, 0] < INF
    for keep in (usable, torch.zeros(len(ODD), dtype=torch.bool)):
        logits = nn.Parameter(torch.zeros(len(ODD), CLASSES))
        deltas = nn.Parameter(torch.zeros(len(ODD), 4))
        labels = torch.where(keep, 1, CLASSES)
        index = keep.nonzero()[:, 0]
        sizes = torch.full((len(index), 2), 1000.0)
        positives = Positives(index, deltas[index], priors[index], boxes[index], transform, sizes)
        losses = criterion(logits, labels, positives, cls_normalizer=2.0, box_normalizer=2.0)
        sum(losses.values()).backward()
        assert all(torch.isfinite(v) for v in losses.values()), losses
        assert torch.isfinite(logits.grad).all() and torch.isfinite(deltas.grad).all()
        assert losses["box"] > 0 if len(index) else losses["box"] == 0


def make_priors():
    shift = (torch.arange(12) + 0.5) * 8
    y, x = torch.meshgrid(shift, shift, indexing="ij")
    levels = []
    for half in (4.0, 16.0):
        boxes = torch.stack([x - half, y - half, x + half, y + half], dim=-1).reshape(-1, 4)
        levels.append(Boxes(boxes))
    return Priors.from_boxes(levels)


ASSIGNERS = {
    "iou": IoUAssigner([0.4, 0.5], [0, -1, 1], allow_low_quality=True),
    "iou, high quality only": IoUAssigner([0.4, 0.5], [0, -1, 1]),
    "center": CenterAssigner(),
    "atss": ATSSAssigner(),
}
PRIORS = make_priors()
coordinates = st.one_of(
    st.floats(-50, 150, width=32), st.sampled_from([0.0, 4.0, 48.0, 1e4, -1e4, INF, -INF, NAN])
)
objects = st.lists(st.tuples(*[coordinates] * 4), max_size=4)


def targets_of(images):
    instances = []
    for boxes in images:
        x = Instances((96, 96), gt_boxes=Boxes(torch.tensor(boxes).reshape(-1, 4)))
        x.gt_classes = torch.arange(len(boxes)) % CLASSES
        instances.append(x)
    return pack_targets(instances)


@given(st.sampled_from(list(ASSIGNERS)), st.lists(objects, min_size=1, max_size=3))
def test_assigners_take_any_boxes(name, images):
    """Points, lines, inside out, infinite, NaN, empty images: labels and indices stay valid."""
    targets = targets_of(images)
    found = ASSIGNERS[name](PRIORS, targets, CLASSES)
    assert found.labels.shape == (len(images), len(PRIORS.boxes))
    assert ((found.labels >= -1) & (found.labels <= CLASSES)).all()
    assert ((found.matched >= 0) & (found.matched < max(len(targets.boxes), 1))).all()
    assert found.matched_boxes(targets).shape == (*found.labels.shape, 4)
    positive = (found.labels >= 0) & (found.labels < CLASSES)
    for image, boxes in enumerate(images):
        if not boxes:
            assert (found.labels[image] == CLASSES).all()
        # An object is never that of another image.
        assert (targets.image[found.matched[image][positive[image]]] == image).all()


@pytest.mark.parametrize("name", ASSIGNERS)
@pytest.mark.parametrize("column", range(4))
@pytest.mark.parametrize("first", [True, False])
def test_a_nan_box_gets_nothing_and_takes_nothing(name, column, first):
    """Data with such a box are refused where they are read; here it is as if it were not there."""
    good, bad = [13.0, 13.0, 45.0, 45.0], [20.0, 20.0, 70.0, 70.0]
    bad[column] = NAN
    alone = ASSIGNERS[name](PRIORS, targets_of([[good]]), CLASSES)
    both = ASSIGNERS[name](PRIORS, targets_of([[bad, good] if first else [good, bad]]), CLASSES)
    # Classes are numbered in the order of the objects.
    own = 1 if first else 0
    wanted = alone.labels[0] == 0
    assert wanted.any() and torch.equal(both.labels[0] == own, wanted)
    assert (both.matched[0][wanted] == own).all()
    assert torch.equal(both.labels[0][~wanted], alone.labels[0][~wanted])
