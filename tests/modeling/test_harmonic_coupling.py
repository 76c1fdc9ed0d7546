"""The harmonic coupling: each part, each place, what is logged and what is refused."""

import logging
import re

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage
from golden_kit import golden
from model_kit import small_cfg

from d2ext import get_cfg
from d2ext.modeling.losses import (
    BCELoss,
    Criterion,
    EQLv2Loss,
    EqualizedFocalLoss,
    EqualizedQualityFocalLoss,
    FocalLoss,
    GIoULoss,
    HarmonicCoupling,
    HarmonicIoULoss,
    Positives,
    SmoothL1Loss,
    SoftmaxLoss,
    build_box_loss,
    build_criterion,
    build_harmonic_coupling,
)
from d2ext.ops.harmonic import harmonic_iou_loss, literal_slopes
from d2ext.ops.sigmoid_losses import sigmoid_loss_per_row

ALONE = {"alpha_hiou": 0.0, "tc_weight": 0.0}  # the harmonic loss without the two other parts
DIVISORS = {"cls_normalizer": 2.0, "box_normalizer": 4.0}


class Shift:
    """Box deltas that are added to the prior, in whatever precision they come."""

    def apply_deltas(self, deltas, boxes):
        return boxes + deltas

    def get_deltas(self, boxes, targets):
        return targets - boxes


def samples(num=14, columns=4, positives=6, dtype=torch.float32, seed=0, softmax=False):
    """Logits, labels and positives that may need gradients in either precision."""
    g = torch.Generator().manual_seed(seed)
    logits = torch.randn(num, columns, generator=g, dtype=torch.float64).to(dtype)
    num_classes = columns - 1 if softmax else columns
    labels = torch.full((num,), num_classes)
    labels[-1] = -1
    index = torch.arange(1, positives + 1)
    labels[index] = torch.randint(0, num_classes, (positives,), generator=g)
    xy = torch.rand(positives, 2, generator=g, dtype=torch.float64) * 20
    priors = torch.cat([xy, xy + 10], dim=1).to(dtype)
    deltas = torch.randn(positives, 4, generator=g, dtype=torch.float64).to(dtype)
    boxes = priors + 0.7
    logits.requires_grad_()
    deltas.requires_grad_()
    return logits, labels, Positives(index, deltas, priors, boxes, Shift())


def losses_of(cls_loss, coupling=None, box_loss=None, data=None, **kwargs):
    logits, labels, positives = data or samples(softmax=not cls_loss.sigmoid)
    criterion = Criterion(cls_loss=cls_loss, box_loss=box_loss or SmoothL1Loss(), coupling=coupling)
    losses = criterion(logits, labels, positives, **{**DIVISORS, **kwargs})
    return losses, logits, labels, positives


@pytest.mark.parametrize("cls_loss", [SoftmaxLoss(), BCELoss(), FocalLoss()])
def test_detached_betas_are_weights(cls_loss):
    """The coupled gradient is the plain one, each positive's times its own constant."""
    losses, logits, labels, positives = losses_of(cls_loss, HarmonicCoupling(**ALONE))
    grads = torch.autograd.grad(losses["cls"] + losses["box"], [logits, positives.deltas])
    rows = positives.index
    ce = cls_loss.per_row(logits[rows], labels[rows])
    loc = SmoothL1Loss()(positives).sum(1)
    weight = torch.ones(len(labels))
    weight[rows] += torch.exp(-loc.detach())
    valid = labels >= 0
    plain = cls_loss.per_row(logits[valid], labels[valid])
    expected = (weight[valid] * plain).sum() / 2
    expected_box = ((1 + torch.exp(-ce.detach())) * loc).sum() / 4
    torch.testing.assert_close(losses["cls"], expected)
    torch.testing.assert_close(losses["box"], expected_box)
    wanted = torch.autograd.grad(expected + expected_box, [logits, positives.deltas])
    for actual, grad in zip(grads, wanted):
        torch.testing.assert_close(actual, grad)


def test_literal_gradients_have_the_slopes_of_the_formula():
    data = samples(softmax=True)
    logits, labels, positives = data
    rows = positives.index
    literal = HarmonicCoupling(detach_betas=False, **ALONE)
    losses, *_ = losses_of(
        SoftmaxLoss(), literal, data=data, cls_normalizer=1.0, box_normalizer=1.0
    )
    total = losses["cls"] + losses["box"]
    grad_logits, grad_deltas = torch.autograd.grad(total, [logits, positives.deltas])
    ce = SoftmaxLoss().per_row(logits[rows], labels[rows])
    loc = SmoothL1Loss()(positives).sum(1)
    m_c, m_l = literal_slopes(ce, loc)
    wanted = torch.autograd.grad((m_c * ce).sum() + (m_l * loc).sum(), [logits, positives.deltas])
    torch.testing.assert_close(grad_logits[rows], wanted[0][rows])
    torch.testing.assert_close(grad_deltas, wanted[1])


@pytest.mark.parametrize("cls_loss", [SoftmaxLoss(), BCELoss(), FocalLoss()])
@pytest.mark.parametrize("source", ["loss", "bce", "gt_prob"])
def test_gradcheck(cls_loss, source):
    logits, labels, positives = samples(num=6, positives=4, dtype=torch.float64,
                                        softmax=not cls_loss.sigmoid)  # fmt: skip
    criterion = Criterion(
        cls_loss=cls_loss,
        box_loss=SmoothL1Loss(1.0),
        coupling=HarmonicCoupling(detach_betas=False, beta_c_source=source),
    )

    def total(logits, deltas):
        fresh = Positives(positives.index, deltas, positives.priors, positives.boxes, Shift())
        return sum(criterion(logits, labels, fresh, **DIVISORS).values())

    inputs = (logits.detach().requires_grad_(), positives.deltas.detach().requires_grad_())
    assert torch.autograd.gradcheck(total, inputs)


@pytest.mark.parametrize("detach", [True, False])
def test_grid_of_loss_pairs(detach):
    """The coupling on the stored grid of class and box losses, from 0 to 10,000."""
    data = golden("harmonic", "pairs")
    folder = f"{'detach' if detach else 'grad'}/f64"
    ce = torch.tensor(data["ce"]).flatten().requires_grad_()
    loc = torch.tensor(data["loc"]).flatten().requires_grad_()

    class Given(BCELoss):
        def per_row(self, logits, labels, quality=None):
            return ce

    nothing = torch.zeros(len(ce), 4, dtype=torch.float64)
    positives = Positives(torch.arange(len(ce)), nothing, nothing, nothing, Shift())
    logits, labels = nothing[:, :1], torch.zeros(len(ce)).long()
    terms = HarmonicCoupling(detach_betas=detach, **ALONE)(Given(), logits, labels, loc, positives)
    (ce + terms.cls_extra + terms.box).sum().backward()
    for actual, name in (
        (ce + terms.cls_extra, "weighted_cls"), (terms.box, "weighted_loc"),
        (ce.grad, "dF_dce"), (loc.grad, "dF_dloc"),
    ):  # fmt: skip
        expected = data[f"{folder}/{name}"].flatten()
        np.testing.assert_allclose(actual.detach().numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.5, 0.8, 1.0])
def test_harmonic_iou_as_box_loss(gamma):
    data = golden("harmonic", "hiou")
    gt = torch.tensor(data["boxes/gt"])
    deltas = (torch.tensor(data["boxes/pred"]) - gt).requires_grad_()
    cfg = get_cfg()
    cfg.MODEL.HARMONIC.GAMMA = gamma
    loss = build_box_loss(cfg, "harmonic_iou")
    assert isinstance(loss, HarmonicIoULoss)
    rows = loss(Positives(torch.arange(len(gt)), deltas, gt, gt, Shift()))
    rows.sum().backward()
    close = {"rtol": 1e-7, "atol": 1e-10}  # deltas lose some digits of the stored coordinates
    np.testing.assert_allclose(rows.detach(), data[f"boxes/f64/loss_g{gamma}"], **close)
    np.testing.assert_allclose(deltas.grad, data[f"boxes/f64/grad_g{gamma}"], **close)


def test_harmonic_iou_with_gamma_0_is_the_iou_loss():
    _, _, positives = samples()
    torch.testing.assert_close(HarmonicIoULoss(0.0)(positives), 1 - positives.iou)


def test_the_iou_term_is_added_before_the_betas():
    data = samples()
    logits, labels, positives = data
    rows = positives.index
    losses, *_ = losses_of(BCELoss(), HarmonicCoupling(tc_weight=0.0), data=data)
    ce = BCELoss().per_row(logits[rows], labels[rows])
    base = SmoothL1Loss()(positives).sum(1)
    loc = base + 1.5 * harmonic_iou_loss(positives.iou, 0.8)
    torch.testing.assert_close(losses["box"], ((1 + torch.exp(-ce)) * loc).sum() / 4)
    plain, *_ = losses_of(BCELoss(), data=data)
    torch.testing.assert_close(losses["cls"], plain["cls"] + (torch.exp(-loc) * ce).sum() / 2)
    coupling = HarmonicCoupling(tc_weight=0.0, beta_r_source="base")
    losses, *_ = losses_of(BCELoss(), coupling, data=data)
    torch.testing.assert_close(losses["cls"], plain["cls"] + (torch.exp(-base) * ce).sum() / 2)


def test_without_the_factors_the_iou_term_and_tc_remain():
    data = samples()
    *_, positives = data
    plain, *_ = losses_of(FocalLoss(), data=data)
    losses, *_ = losses_of(FocalLoss(), HarmonicCoupling(couple=False, tc_weight=0.5), data=data)
    double, *_ = losses_of(FocalLoss(), HarmonicCoupling(couple=False, tc_weight=1.0), data=data)
    assert torch.equal(losses["cls"], plain["cls"])
    torch.testing.assert_close(
        losses["box"], plain["box"] + 1.5 * harmonic_iou_loss(positives.iou).sum() / 4
    )
    assert losses["tc"] > 0
    torch.testing.assert_close(double["tc"], 2 * losses["tc"])


def test_highest_score_is_never_the_backgrounds():
    logits, labels, positives = samples(softmax=True)
    with torch.no_grad():
        logits[:, -1] = 9.0
        logits[:, 0] = 3.0
    coupling = HarmonicCoupling(tc_score="max")
    score = coupling._score(SoftmaxLoss(), logits, labels)
    assert torch.equal(score, logits.softmax(1)[:, 0])
    loss = EQLv2Loss(3, objectness=True)
    assert torch.equal(coupling._score(loss, logits, labels), loss.scores(logits).amax(dim=1))
    named = HarmonicCoupling(tc_score="gt")._score(loss, logits[1:7], labels[1:7])
    assert torch.equal(named, loss.scores(logits[1:7]).gather(1, labels[1:7, None])[:, 0])


def test_box_weights_and_scale_come_after_the_coupling():
    data = samples()
    weights = torch.linspace(0.1, 1, 6)
    losses, *_ = losses_of(FocalLoss(), HarmonicCoupling(**ALONE), data=data, box_weights=weights,
                           box_scale=2.0)  # fmt: skip
    plain, *_ = losses_of(FocalLoss(), HarmonicCoupling(**ALONE), data=data)
    logits, labels, positives = data
    ce = FocalLoss().per_row(logits[positives.index], labels[positives.index])
    rows = (1 + torch.exp(-ce)) * SmoothL1Loss()(positives).sum(1)
    torch.testing.assert_close(losses["box"], 2 * (weights * rows).sum() / 4)
    assert torch.equal(losses["cls"], plain["cls"])


def test_equalized_focal_loss_is_coupled_with_the_statistics_it_was_computed_with():
    data = samples()
    logits, labels, positives = data
    efl = EqualizedFocalLoss(4)
    losses_of(efl, data=data)  # the statistics leave their start
    before = efl.pos_neg.clone()
    coupled, *_ = losses_of(efl, HarmonicCoupling(**ALONE), data=data)
    assert not torch.equal(efl.pos_neg, before)
    row = {"kind": "efl", "grad_ratio": before}
    ce = sigmoid_loss_per_row(logits[positives.index], labels[positives.index], **row)
    beta_r = torch.exp(-SmoothL1Loss()(positives).sum(1))
    plain = sigmoid_loss_per_row(logits, labels, **row).sum() / 2
    torch.testing.assert_close(coupled["cls"], plain + (beta_r * ce).sum() / 2)


def test_a_class_loss_with_quality_gets_the_iou():
    losses, logits, _, positives = losses_of(EqualizedQualityFocalLoss(4), HarmonicCoupling())
    grads = torch.autograd.grad(sum(losses.values()), [logits, positives.deltas])
    assert all(torch.isfinite(g).all() and g.any() for g in grads)


CLS = {"dense": ("focal", "bce", "efl", "eqfl"), "rpn": ("bce", "focal"),
       "roi": ("softmax", "bce", "focal", "efl")}  # fmt: skip
BOX = ("smooth_l1", "iou", "giou", "diou", "ciou", "harmonic_iou")


@pytest.mark.parametrize("detach", [True, False])
@pytest.mark.parametrize("place, cls", [(p, c) for p in CLS for c in CLS[p]])
def test_every_combination_has_gradients(place, cls, detach):
    cfg = get_cfg()
    node = cfg.MODEL.HARMONIC
    node.ENABLED = node.ON_RPN = True
    node.DETACH_BETAS = detach
    columns = 1 if place == "rpn" else 4
    softmax = cls == "softmax"
    for box in BOX:
        for source in ("loss", "bce", "gt_prob"):
            node.BETA_C_SOURCE = source
            criterion = build_criterion(
                cfg, place=place, cls_loss=cls, box_loss=box, num_classes=columns - softmax
            )
            logits, labels, positives = samples(columns=columns, softmax=softmax)
            losses = criterion(logits, labels, positives, **DIVISORS)
            assert list(losses) == ["cls", "box", "tc"]
            for name, leaves in (("cls", [logits]), ("box", [positives.deltas]),
                                 ("tc", [logits, positives.deltas])):  # fmt: skip
                grads = torch.autograd.grad(losses[name], leaves, retain_graph=True)
                assert all(torch.isfinite(g).all() and g.any() for g in grads), (box, source, name)


def test_no_positives_keep_names_and_graph():
    losses, logits, _, positives = losses_of(
        SoftmaxLoss(), HarmonicCoupling(), data=samples(positives=0, softmax=True)
    )
    assert losses["box"].item() == losses["tc"].item() == 0
    sum(losses.values()).backward()
    assert torch.isfinite(logits.grad).all() and positives.deltas.grad.shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_float32_under_autocast(dtype):
    logits, labels, positives = samples()
    with torch.no_grad():
        logits[1] = 60.0  # e^H and e^-CE leave the range of float16
    half = Positives(positives.index, positives.deltas.detach().to(dtype), positives.priors,
                     positives.boxes, Shift())  # fmt: skip
    whole = Positives(positives.index, half.deltas.float(), positives.priors, positives.boxes,
                      Shift())  # fmt: skip
    criterion = Criterion(cls_loss=BCELoss(), box_loss=GIoULoss(), coupling=HarmonicCoupling())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = criterion(logits.to(dtype), labels, half, **DIVISORS)
    exact = criterion(logits.to(dtype).float(), labels, whole, **DIVISORS)
    for name, value in losses.items():
        assert value.dtype == torch.float32
        assert torch.equal(value, exact[name])


RETINANET = "configs/COCO/retinanet_R_50_FPN_1x.yaml"
FASTER = "configs/COCO/faster_rcnn_R_50_FPN_1x.yaml"
ON = ["MODEL.HARMONIC.ENABLED", True]


def test_what_is_logged():
    criterion = Criterion(
        cls_loss=SoftmaxLoss(),
        box_loss=SmoothL1Loss(),
        coupling=HarmonicCoupling(place="roi"),
        log_period=3,
    )
    logits, labels, positives = samples(softmax=True)
    rows = positives.index
    with EventStorage() as storage:
        criterion(logits, labels, positives, **DIVISORS)
        assert not storage.histories()
        storage.step()
        storage.step()
        with torch.no_grad():
            criterion(logits, labels, positives, **DIVISORS)
        criterion.eval()(logits, labels, positives, **DIVISORS)
        assert not storage.histories()
        criterion.train()(logits, labels, positives, **DIVISORS)
        latest = {k: v for k, (v, _) in storage.latest().items()}
    ce = SoftmaxLoss().per_row(logits[rows], labels[rows]).detach()
    loc = SmoothL1Loss()(positives).sum(1) + 1.5 * harmonic_iou_loss(positives.iou)
    loc = loc.detach()
    m_c, m_l = literal_slopes(ce, loc)
    score = logits.softmax(1)[rows, labels[rows]]
    expected = {
        "beta_r": torch.exp(-loc).mean(),
        "beta_c": torch.exp(-ce).mean(),
        "score_iou_gap": (score - positives.iou).abs().mean(),
        "negative_cls_slope": (m_c < 0).float().mean(),
        "negative_box_slope": (m_l < 0).float().mean(),
    }
    assert set(latest) == {f"harmonic/roi/{k}" for k in expected}
    for name, value in expected.items():
        assert latest[f"harmonic/roi/{name}"] == pytest.approx(value.item(), abs=1e-6)


def test_negative_slopes_are_counted():
    """A badly classified but well placed box, and a confident but badly placed one."""
    logits = torch.tensor([[-8.0, 8.0], [8.0, -8.0]], requires_grad=True)
    labels = torch.zeros(2, dtype=torch.long)
    priors = torch.tensor([[0.0, 0.0, 10.0, 10.0]]).repeat(2, 1)
    deltas = torch.tensor([[0.0, 0.0, 0.0, 0.0], [4.0, 4.0, 4.0, 4.0]])
    positives = Positives(torch.arange(2), deltas, priors, priors, Shift())
    criterion = Criterion(
        cls_loss=SoftmaxLoss(),
        box_loss=SmoothL1Loss(),
        coupling=HarmonicCoupling(**ALONE),
        log_period=1,
    )
    with EventStorage() as storage:
        criterion(logits, labels, positives, **DIVISORS)
    assert storage.latest()["harmonic/dense/negative_box_slope"][0] == 0.5
    assert storage.latest()["harmonic/dense/negative_cls_slope"][0] == 0.5


@pytest.mark.parametrize(
    "overrides, match",
    [
        (["MODEL.DENSE.CLS_LOSS", "qfl"], "QualityFocalLoss does not have; choose .*COUPLE"),
        (["MODEL.ANCHOR_GENERATOR.NAME", "RotatedAnchorGenerator"], "rotated boxes"),
    ],
)
def test_refusals(overrides, match):
    cfg = small_cfg(RETINANET, [*ON, *overrides])
    with pytest.raises(ValueError, match=match):
        build_criterion(
            cfg, place="dense", cls_loss=cfg.MODEL.DENSE.CLS_LOSS, box_loss="smooth_l1",
            num_classes=3,
        )  # fmt: skip


@pytest.mark.parametrize(
    "argument, value, match",
    [
        ("gamma", -0.1, "gamma of the harmonic IoU loss must be 0"),
        ("gamma", float("inf"), "gamma of the harmonic IoU loss must be 0"),
        ("beta_c_source", "focal", "beta_c_source must be loss or bce or gt_prob"),
        ("beta_r_source", "hiou", "beta_r_source must be loc or base"),
        ("tc_margin_mode", "soft", "tc_margin_mode must be subtract or hard"),
        ("tc_score", "mean", "tc_score must be gt or max"),
        ("tc_margin", 1.5, "tc_margin must be in"),
        ("tc_weight", -1.0, "tc_weight must be 0"),
        ("alpha_hiou", -1.0, "alpha_hiou must be 0"),
    ],
)
def test_the_constructor_complains_in_its_own_words_and_the_builder_in_keys(argument, value, match):
    with pytest.raises(ValueError, match=match):
        HarmonicCoupling(**{argument: value})
    key = f"MODEL.HARMONIC.{argument.upper().replace('TC_', 'TC.')}"
    cfg = small_cfg(RETINANET, [*ON, key, value])
    with pytest.raises(ValueError, match=re.sub(rf"^{argument} must", f"{key} must", match)):
        build_harmonic_coupling(cfg, place="dense", cls_loss=FocalLoss(), box_loss=SmoothL1Loss())


def test_rotated_boxes_are_refused_everywhere():
    cfg = small_cfg(FASTER, [*ON, "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS", (1.0,) * 5])
    with pytest.raises(ValueError, match="rotated boxes"):
        build_criterion(cfg, place="roi", cls_loss="softmax", box_loss="smooth_l1", num_classes=3)
    boxes = torch.zeros(2, 5)
    positives = Positives(torch.arange(2), boxes, boxes, boxes, Shift())
    with pytest.raises(ValueError, match="boxes of 5 numbers"):
        HarmonicCoupling()(BCELoss(), torch.zeros(2, 1), torch.zeros(2), torch.zeros(2), positives)


def test_a_class_loss_without_rows_may_have_the_other_parts():
    cfg = small_cfg(RETINANET, [*ON, "MODEL.HARMONIC.COUPLE", False])
    criterion = build_criterion(
        cfg, place="dense", cls_loss="qfl", box_loss="smooth_l1", num_classes=4
    )
    logits, labels, positives = samples()
    losses = criterion(logits, labels, positives, **DIVISORS)
    assert losses["tc"] > 0


def test_warnings(caplog):
    cfg = small_cfg(RETINANET, ON)
    with caplog.at_level(logging.WARNING):
        build_criterion(cfg, place="dense", cls_loss="focal", box_loss="smooth_l1", num_classes=3)
        assert "twice" not in caplog.text
        build_criterion(cfg, place="dense", cls_loss="focal", box_loss="giou", num_classes=3)
    assert "counts the overlap twice" in caplog.text
    with pytest.warns(UserWarning, match="above 1"):
        HarmonicIoULoss(1.2)
