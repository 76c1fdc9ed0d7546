"""The classes of the rivals: state, what they read, precision, and empty batches."""

import pytest
import torch

from d2ext import losses
from d2ext.losses import Criterion, Positives
from d2ext.ops import box_variants

CLASSES = 3
CLS = {
    "varifocal": losses.VarifocalLoss,
    "mal": losses.MatchabilityAwareLoss,
    "ecm": lambda: losses.EffectiveClassMarginLoss(CLASSES, counts=[9, 1, 0]),
}
BOX = {
    "nwd": losses.NWDLoss,
    "mpdiou": losses.MPDIoULoss,
    "log_iou": losses.LogIoULoss,
    "inner_iou": losses.InnerIoULoss,
    "wiou": losses.WiseIoULoss,
    "ghm_r": losses.GHMRLoss,
}


class Shift:
    """Deltas are differences of coordinates."""

    def get_deltas(self, priors, boxes):
        return boxes - priors

    def apply_deltas(self, deltas, priors):
        return priors + deltas


def samples(count=6, positive=4, dtype=torch.float32, columns=CLASSES):
    g = torch.Generator().manual_seed(0)
    logits = torch.randn(count, columns, generator=g).to(dtype).requires_grad_()
    labels = torch.full((count,), CLASSES)
    labels[:positive] = torch.arange(positive) % CLASSES
    corner = torch.rand(positive, 2, generator=g) * 20
    boxes = torch.cat([corner, corner + 10], dim=1)
    deltas = torch.randn(positive, 4, generator=g).to(dtype).requires_grad_()
    sizes = torch.full((positive, 2), 64)
    index = torch.arange(positive)
    return logits, labels, Positives(index, deltas, boxes + 1, boxes, Shift(), sizes), deltas


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("positive", [4, 1, 0])
@pytest.mark.parametrize("cls, box", [*zip(CLS, BOX), *(("varifocal", b) for b in list(BOX)[3:])])
def test_losses_are_float32_and_connected(cls, box, positive, dtype):
    columns = CLASSES + (cls == "ecm")
    logits, labels, positives, deltas = samples(positive=positive, dtype=dtype, columns=columns)
    coupling = losses.CorrelationCoupling()
    criterion = Criterion(cls_loss=CLS[cls](), box_loss=BOX[box](), coupling=coupling)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = criterion(logits, labels, positives, cls_normalizer=4.0, box_normalizer=4.0)
    assert set(found) == {"cls", "box", "corr"}
    assert all(x.dtype == torch.float32 and torch.isfinite(x) for x in found.values())
    sum(found.values()).backward()
    assert torch.isfinite(logits.grad).all() and logits.grad.any()
    assert torch.isfinite(deltas.grad).all() and (deltas.grad.any() or not positive)


@pytest.mark.parametrize("cls", list(CLS))
def test_rows_sum_to_the_loss(cls):
    logits, labels, positives, _ = samples(columns=CLASSES + (cls == "ecm"))
    labels[-1] = -1
    quality = torch.zeros(6).index_copy(0, positives.index, positives.iou.detach())
    loss = CLS[cls]()
    rows = loss.per_row(logits, labels, quality)
    torch.testing.assert_close(rows.sum() / 3, loss(logits, labels, 3.0, quality))
    assert rows[-1] == 0


def test_mean_of_wise_iou_moves_in_training_only_and_before_it_is_used():
    _, _, positives, _ = samples()
    loss = losses.WiseIoULoss(momentum=0.5)
    mean = 0.5 + 0.5 * float(1 - positives.iou.detach().mean())
    value = loss(positives)
    assert float(loss.mean) == pytest.approx(mean)
    want = box_variants.wise_iou_loss(positives.decoded, positives.boxes, mean=loss.mean)
    assert torch.equal(value, want)
    with torch.no_grad():
        loss(positives)
    loss.eval()(positives)
    loss.train()(samples(positive=0)[2])
    assert float(loss.mean) == pytest.approx(mean)
    other = losses.WiseIoULoss(momentum=0.5)
    other.load_state_dict(loss.state_dict())
    assert torch.equal(other.mean, loss.mean)
    assert not losses.WiseIoULoss(version=1).state_dict()


@pytest.mark.parametrize("module, loss", [
    ("d2ext.losses.box_variants", lambda: losses.WiseIoULoss(momentum=0.5)),
    ("d2ext.losses.box_variants", lambda: losses.GHMRLoss(momentum=0.5)),
])  # fmt: skip
def test_statistics_are_those_of_all_ranks(module, loss, monkeypatch):
    """Two ranks of equal samples: sums double, means and weights are those of one."""
    _, _, positives, _ = samples()
    alone, shared = loss(), loss()
    want = alone(positives)
    monkeypatch.setattr(f"{module}.reduce_sum", lambda tensor: 2 * tensor)
    torch.testing.assert_close(shared(positives), want)
    state = [next(iter(x.state_dict().values())) for x in (alone, shared)]
    scale = 2 if isinstance(shared, losses.GHMRLoss) else 1
    torch.testing.assert_close(state[1], scale * state[0])


def test_ghm_r_is_the_operation_and_its_counts_decay_where_they_are_used():
    _, _, positives, _ = samples()
    deltas, targets = positives.deltas, positives.target_deltas
    want = box_variants.ghm_r_loss(deltas, targets)
    torch.testing.assert_close(losses.GHMRLoss()(positives), want)
    loss = losses.GHMRLoss(momentum=0.75)
    torch.testing.assert_close(loss(positives), 4 * want)  # starts at 0, as the authors' does
    now = box_variants.ghm_r_bins(deltas, targets)[1]
    torch.testing.assert_close(loss.count, 0.25 * now)


def test_class_margins_wait_for_counts():
    loss = losses.EffectiveClassMarginLoss(CLASSES)
    logits, labels, _, _ = samples(columns=CLASSES + 1)
    with pytest.raises(RuntimeError, match="set MODEL.ECM.COUNTS"):
        loss(logits, labels)
    with pytest.raises(ValueError, match="one count for each of 3 classes, not 2"):
        loss.take_image_counts([1, 2])
    loss.take_image_counts([5, 0, 2])
    assert torch.isfinite(loss(logits, labels))
    assert loss.scores(logits).shape == (6, CLASSES)
    assert loss.state_dict()["counts"].tolist() == [5, 0, 2]


def test_the_correlation_is_not_normalised():
    logits, labels, positives, _ = samples()
    terms = {"cls_loss": losses.BCELoss(), "box_loss": losses.IoULoss()}
    criterion = Criterion(**terms, coupling=losses.CorrelationCoupling(weight=0.5))
    values = [
        criterion(logits, labels, positives, cls_normalizer=n, box_normalizer=n) for n in (1.0, 8.0)
    ]
    assert values[0]["corr"] == values[1]["corr"] != 0
    plain = Criterion(**terms)(logits, labels, positives, cls_normalizer=8.0, box_normalizer=8.0)
    assert plain["cls"] == values[1]["cls"] and plain["box"] == values[1]["box"]


@pytest.mark.parametrize("make, message", [
    (lambda: losses.NWDLoss(0), "constant must be above 0"),
    (lambda: losses.WiseIoULoss(version=2), "version must be 1 or 3, not 2"),
    (lambda: losses.GHMRLoss(bins=0), "bins must be 1 or more"),
    (lambda: losses.VarifocalLoss(alpha=-1), "alpha must be 0 or more"),
    (lambda: losses.CorrelationCoupling(kind="kendall"), "kind must be one of"),
    (lambda: losses.CorrelationCoupling(weight=0), "weight must be above 0"),
])  # fmt: skip
def test_bad_arguments_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_mpdiou_without_sizes_is_refused():
    _, _, positives, _ = samples()
    positives.image_sizes = None
    with pytest.raises(ValueError, match="needs the sizes of the images; pass image_sizes"):
        losses.MPDIoULoss()(positives)
