"""The criterion, its normalisers, and what is refused when it is built."""

import pytest
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from model_kit import build, make_batch, small_cfg, train_step

from d2ext import get_cfg
from d2ext.modeling.losses import (
    BCELoss,
    CoupledTerms,
    Criterion,
    EMANormalizer,
    FocalLoss,
    GIoULoss,
    PositiveNormalizer,
    Positives,
    QualityFocalLoss,
    SmoothL1Loss,
    SoftmaxLoss,
    build_box_loss,
    build_cls_loss,
)
from d2ext.ops.boxes import giou_loss


def samples(num=12, num_classes=4, positives=5, seed=0):
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(num, num_classes, generator=g).requires_grad_()
    labels = torch.full((num,), num_classes)
    labels[-1] = -1
    index = torch.arange(positives)
    labels[:positives] = torch.randint(0, num_classes, (positives,), generator=g)
    xy = torch.rand(positives, 2, generator=g) * 20
    priors = torch.cat([xy, xy + 10], dim=1)
    deltas = (torch.randn(positives, 4, generator=g) * 0.1).requires_grad_()
    boxes = priors + 1
    return logits, labels, Positives(index, deltas, priors, boxes, Box2BoxTransform((1, 1, 1, 1)))


def test_it_sums_and_divides():
    logits, labels, positives = samples()
    criterion = Criterion(cls_loss=FocalLoss(), box_loss=GIoULoss())
    losses = criterion(logits, labels, positives, cls_normalizer=2.0, box_normalizer=4.0)
    assert list(losses) == ["cls", "box"]
    expected = giou_loss(positives.decoded, positives.boxes).sum() / 4
    torch.testing.assert_close(losses["box"], expected)
    torch.testing.assert_close(losses["cls"], FocalLoss()(logits, labels) / 2)


@pytest.mark.parametrize("box_loss", [SmoothL1Loss(0.5), GIoULoss()])
def test_box_weights_and_scale(box_loss):
    logits, labels, positives = samples()
    weights = torch.linspace(0, 1, len(positives))
    losses = Criterion(cls_loss=BCELoss(), box_loss=box_loss)(
        logits, labels, positives,
        cls_normalizer=1.0, box_normalizer=2.0, box_weights=weights, box_scale=3.0,
    )  # fmt: skip
    rows = box_loss(positives)
    rows = rows if rows.dim() == 1 else rows.sum(1)
    torch.testing.assert_close(losses["box"], (rows * weights).sum() * 3 / 2)


def test_quality_is_the_iou_of_the_positives():
    logits, labels, positives = samples()
    losses = Criterion(cls_loss=QualityFocalLoss(), box_loss=GIoULoss())(
        logits, labels, positives, cls_normalizer=1.0, box_normalizer=1.0
    )
    quality = torch.zeros(len(labels))
    quality[positives.index] = positives.iou.detach()
    torch.testing.assert_close(losses["cls"], QualityFocalLoss()(logits, labels, 1.0, quality))
    assert torch.autograd.grad(losses["cls"], positives.deltas, allow_unused=True)[0] is None


def test_a_coupling_adds_to_positives_only_and_a_guide_comes_last():
    logits, labels, positives = samples()

    class Coupling(torch.nn.Module):
        def forward(self, cls_loss, rows, row_labels, box, positives):
            assert rows.shape[0] == box.shape[0] == len(positives)
            return CoupledTerms(cls_loss.per_row(rows, row_labels), 2 * box, {"tc": box * 0 + 1})

    class Guide(torch.nn.Module):
        def forward(self, losses):
            return {**losses, "cls": losses["cls"] * 10}

    plain = Criterion(cls_loss=BCELoss(), box_loss=SmoothL1Loss())
    coupled = Criterion(
        cls_loss=BCELoss(), box_loss=SmoothL1Loss(), coupling=Coupling(), guide=Guide()
    )
    divisors = {"cls_normalizer": 2.0, "box_normalizer": 3.0}
    a = plain(logits, labels, positives, **divisors)
    b = coupled(logits, labels, positives, **divisors)
    extra = BCELoss().per_row(logits[positives.index], labels[positives.index]).sum() / 2
    torch.testing.assert_close(b["cls"], (a["cls"] + extra) * 10)
    torch.testing.assert_close(b["box"], a["box"] * 2)
    torch.testing.assert_close(b["tc"], torch.tensor(len(positives) / 2))


@pytest.mark.parametrize("cls_loss", [BCELoss(), FocalLoss(), SoftmaxLoss()])
def test_rows_sum_to_the_whole(cls_loss):
    logits, labels, _ = samples()
    labels = labels.clamp(max=logits.shape[1] - 1)
    rows = cls_loss.per_row(logits[:-1], labels[:-1])
    torch.testing.assert_close(rows.sum(), cls_loss(logits, labels))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_are_float32_under_autocast(dtype):
    logits, labels, positives = samples()
    half = Positives(
        positives.index, positives.deltas.to(dtype), positives.priors, positives.boxes,
        positives.transform,
    )  # fmt: skip
    criterion = Criterion(cls_loss=FocalLoss(), box_loss=GIoULoss())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = criterion(logits.to(dtype), labels, half, cls_normalizer=1.0, box_normalizer=1.0)
    assert all(v.dtype == torch.float32 for v in losses.values())


def test_who_asks_first_under_no_grad_takes_no_graph_from_others():
    _, _, positives = samples()
    with torch.no_grad():
        assert positives.iou.requires_grad
    giou_loss(positives.decoded, positives.boxes).sum().backward()
    assert positives.deltas.grad.any()


def test_no_positives_keep_the_graph():
    logits, labels, positives = samples(positives=0)
    losses = Criterion(cls_loss=BCELoss(), box_loss=GIoULoss())(
        logits, labels, positives, cls_normalizer=1.0, box_normalizer=1.0
    )
    assert losses["box"].item() == 0
    losses["box"].backward()
    assert positives.deltas.grad.shape == (0, 4)


def test_ema_normaliser_is_detectron2s_and_survives():
    ema, like, value = EMANormalizer(initial=100), torch.zeros(()), 100.0
    assert not ema.state_dict()  # as upstream's model, until it has moved
    for count in (3, 0, 40):
        value = value * 0.9 + max(count, 1) * (1 - 0.9)
        assert ema(count, like).item() == torch.tensor(value).item()
    saved = ema.state_dict()
    again = EMANormalizer(initial=100)
    again.load_state_dict(saved)
    assert again(5, like) == ema(5, like)
    again.load_state_dict({})  # a checkpoint of upstream's
    assert again.value.item() == 100
    with torch.no_grad():
        again(7, like)
    again.eval()(7, like)
    assert again.value.item() == 100


def test_positive_normaliser():
    assert PositiveNormalizer()(0, torch.zeros(())) == 1.0
    assert PositiveNormalizer(sync=True)(7, torch.zeros(())).item() == 7.0


def test_normaliser_of_a_model_is_saved_with_it():
    cfg = small_cfg("configs/COCO/retinanet_R_50_FPN_1x.yaml")
    first = build(cfg)
    train_step(first, make_batch())
    second = build(cfg)
    second.load_state_dict(first.state_dict())
    assert second.normalizer.value == first.normalizer.value != 100
    a, _ = train_step(first, make_batch())
    b, _ = train_step(second, make_batch())
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize(
    ("place", "name", "match"),
    [
        ("dense", "softmax", "MODEL.DENSE.CLS_LOSS cannot be 'softmax'"),
        ("roi", "qfl", "MODEL.ROI_BOX_HEAD.CLS_LOSS cannot be 'qfl'"),
        ("dense", "focl", "no class loss 'focl'.*Did you mean 'focal'"),
    ],
)
def test_class_losses_that_make_no_sense_are_refused(place, name, match):
    with pytest.raises((ValueError, KeyError), match=match):
        build_cls_loss(get_cfg(), name, place=place, num_classes=3)


def test_other_refusals():
    with pytest.raises(KeyError, match="no box loss 'gio'.*giou"):
        build_box_loss(get_cfg(), "gio")
    with pytest.raises(ValueError, match="gamma"):
        FocalLoss(gamma=-1)
    with pytest.raises(ValueError, match="beta"):
        SmoothL1Loss(beta=-1)
    faster = "configs/COCO/faster_rcnn_R_50_FPN_1x.yaml"
    with pytest.raises(ValueError, match="PRIOR_PROB"):
        build(small_cfg(faster, ["MODEL.ROI_BOX_HEAD.PRIOR_PROB", 0.01]))
    with pytest.raises(ValueError, match="NORMALIZER_SYNC is .*; it must be"):
        build(
            small_cfg("configs/COCO/fcos_R_50_FPN_1x.yaml", ["MODEL.DENSE.NORMALIZER_SYNC", "yes"])
        )
    with pytest.raises(ValueError, match="MODEL.FCOS.IN_FEATURES asks for p2"):
        build(small_cfg("configs/COCO/fcos_R_50_FPN_1x.yaml", ["MODEL.FCOS.IN_FEATURES", ["p2"]]))
