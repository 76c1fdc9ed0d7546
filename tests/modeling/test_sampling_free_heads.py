"""Detectors without sampling: what they learn from, how they start and what they keep."""

import math

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage
from model_kit import build, make_batch, small_cfg, train_step

from d2ext import get_cfg
from d2ext.modeling.losses import BoxLoss, ClsLoss, Criterion, GuidedScale
from d2ext.modeling.roi_heads.unsampled import MaskRows
from d2ext.modeling.sampling_free import (
    PriorMeasurement,
    PriorSums,
    find_optimal_bias,
    measure_priors,
    set_prior_bias,
)
from d2ext.ops.sampling_free import prior_to_bias

ON = ["MODEL.SAMPLING_FREE.ENABLED", True]
DENSE = ["retinanet", "fcos", "atss"]
RCNN = ["faster_rcnn", "mask_rcnn", "cascade_mask_rcnn"]


def cfg_of(name, *words):
    return small_cfg(f"configs/COCO/{name}_R_50_FPN_1x.yaml", [*ON, *words])


# ------------------------------------------------------------------ the guide


def test_guide_scales_value_and_gradient_only_of_the_class_loss():
    cls, box = torch.tensor(8.0, requires_grad=True), torch.tensor(2.0, requires_grad=True)
    scaled = GuidedScale(weight=2.0)({"cls": cls, "box": box})
    assert scaled["cls"].item() == 4.0 and scaled["box"] is box
    scaled["cls"].backward()
    assert cls.grad.item() == 0.5 and box.grad is None


@pytest.mark.parametrize(("cls", "box"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0)])
def test_guide_without_class_or_box_loss_is_a_finite_zero(cls, box):
    cls = torch.tensor(cls, requires_grad=True)
    scaled = GuidedScale()({"cls": cls, "box": torch.tensor(box)})["cls"]
    scaled.backward()
    assert scaled.item() == 0 and cls.grad.item() == 0


@pytest.mark.parametrize("place", ["roi", "rpn"])
def test_any_divisor_of_the_class_loss_cancels(place):
    box = torch.tensor(0.3)
    results = []
    for divisor in (1.0, 512.0):
        logit = torch.tensor(0.7, requires_grad=True)
        cls = torch.nn.functional.softplus(logit) / divisor
        scaled = GuidedScale(place=place)({"cls": cls, "box": box})["cls"]
        scaled.backward()
        results.append((scaled.item(), logit.grad.item()))
    assert results[0] == pytest.approx(results[1], rel=1e-6)


def test_raw_loss_and_ratio_are_logged_now_and_then():
    criterion = Criterion(
        cls_loss=ClsLoss(), box_loss=BoxLoss(), guide=GuidedScale(place="dense"), log_period=3
    )
    criterion.box_loss.forward = lambda positives: torch.tensor([1.0])
    with EventStorage() as storage:
        for step in range(4):
            storage.iter = step
            criterion.cls_loss.forward = lambda *args, step=step: torch.tensor(2.0 + step)
            criterion(torch.zeros(1, 1), None, None, cls_normalizer=1, box_normalizer=1)
        latest = storage.latest()
    assert latest == {"guided/dense/cls_raw": (4.0, 2), "guided/dense/ratio": (0.25, 2)}


def test_frozen_guide_is_saved_and_stays():
    first = GuidedScale(mode="frozen", warmup=2)
    for cls in (2.0, 4.0, 8.0):
        first({"cls": torch.tensor(cls), "box": torch.tensor(1.0)})
    assert first.ratio.item() == 0.25 and first.iters.item() == 2
    second = GuidedScale(mode="frozen", warmup=2)
    second.load_state_dict(first.state_dict())
    losses = {"cls": torch.tensor(8.0), "box": torch.tensor(1.0)}
    assert second(losses)["cls"].item() == 2.0
    second.restart()
    assert second(losses)["cls"].item() == 1.0 and second.iters.item() == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["GUIDE", "always"], "GUIDE is 'always'; it must be one of 'per_step'"),
        (["REG_NORM", "4P"], "REG_NORM is '4P'; it must be one of 'fg'"),
        (["LEARN_SIGMA", True], "LEARN_SIGMA needs GUIDE frozen"),
        (["LEARN_SIGMA", True, "GUIDE", "none"], "needs GUIDE frozen, not none"),
        (["PRIOR", 1.5], "PRIOR is 1.5; it must be a number of at least 0"),
        (["PRIOR", 0.1, "SCORE_THRESH", "class_adaptive"], "class_adaptive needs the number"),
        (["CLS_SCALE.DENSE", 0.0], "CLS_SCALE.DENSE is 0.0; it must be a number above 0"),
    ],
)
def test_what_makes_no_sense_is_refused(words, message):
    words = [f"MODEL.SAMPLING_FREE.{w}" if i % 2 == 0 else w for i, w in enumerate(words)]
    with pytest.raises(ValueError, match=message):
        build(cfg_of("retinanet", *words))


def test_ohem_beside_no_sampling_is_refused():
    for place in ("RPN", "ROI"):
        with pytest.raises(ValueError, match=f"MODEL.OHEM.ON_{place}"):
            build(cfg_of("faster_rcnn", f"MODEL.OHEM.ON_{place}", True))


# ------------------------------------------------------------------ detectors


@pytest.mark.parametrize("name", DENSE + RCNN)
def test_class_losses_follow_the_box_losses(name):
    model = build(cfg_of(name))
    losses, grads = train_step(model, make_batch((3, 0), masks="mask" in name))
    follows = {
        "retinanet": {"loss_cls": losses.get("loss_box_reg")},
        "fcos": {"loss_fcos_cls": (losses.get("loss_fcos_loc", 0)
                                   + losses.get("loss_fcos_ctr", 0)) / 2},
        "atss": {"loss_cls": (losses.get("loss_box_reg", 0) + losses.get("loss_quality", 0)) / 2},
    }.get(name)  # fmt: skip
    if follows is None:
        stages = [f"_stage{i}" for i in range(3)] if "cascade" in name else [""]
        follows = {f"loss_cls{s}": 2 * losses[f"loss_box_reg{s}"] for s in stages}
        follows["loss_rpn_cls"] = losses["loss_rpn_loc"]
    for key, expected in follows.items():
        torch.testing.assert_close(losses[key], expected)
    assert all(torch.isfinite(g).all() for g in grads.values())


@pytest.mark.parametrize("name, key", [("retinanet", "loss_box_reg"), ("fcos", "loss_fcos_loc")])
@pytest.mark.parametrize("loss, numbers", [("smooth_l1", 4), ("giou", 1)])
def test_the_box_loss_is_the_mean_over_all_its_numbers(name, key, loss, numbers, monkeypatch):
    model = build(cfg_of(name, "MODEL.DENSE.BOX_LOSS", loss))
    mean = train_step(model, make_batch())[0][key]
    monkeypatch.setattr(type(model), "numbers_per_box", lambda self: 1)
    torch.testing.assert_close(train_step(model, make_batch())[0][key], numbers * mean)


@pytest.mark.parametrize("name", DENSE + RCNN)
def test_images_without_objects_give_zeros_with_a_graph(name):
    model = build(cfg_of(name))
    losses, grads = train_step(model, make_batch((0, 0), masks="mask" in name))
    assert all(v.item() == 0 for v in losses.values())
    assert all(torch.isfinite(g).all() for g in grads.values())
    wanted = {n for n, p in model.named_parameters() if p.requires_grad}
    if "mask" not in name:  # as upstream, the mask head is not run without foreground
        assert set(grads) == wanted


@pytest.mark.parametrize("name", DENSE)
def test_frozen_guide_with_sigmas_on_dense_detectors(name):
    words = ["MODEL.SAMPLING_FREE.GUIDE", "frozen", "MODEL.SAMPLING_FREE.LEARN_SIGMA", True]
    model = build(cfg_of(name, *words))
    losses, grads = train_step(model, make_batch())
    assert any(k.endswith("_sigma") for k in losses)
    assert grads["criterion.guide.sigma"].ne(0).all()
    assert model.criterion.guide.iters.item() == 1
    # The 2021 code keeps RPN and ROI heads per step.
    rcnn = build(cfg_of("faster_rcnn", *words))
    assert not [k for k in rcnn.state_dict() if "guide" in k]


def test_bias_alone_without_a_guide():
    words = ["MODEL.SAMPLING_FREE.GUIDE", "none", "MODEL.SAMPLING_FREE.PRIOR", 1e-3,
             "MODEL.SAMPLING_FREE.REG_NORM", "native"]  # fmt: skip
    model = build(cfg_of("retinanet", *words))
    plain = build(
        small_cfg(
            "configs/COCO/retinanet_R_50_FPN_1x.yaml",
            ["MODEL.DENSE.CLS_LOSS", "bce", "MODEL.RETINANET.PRIOR_PROB", 1e-3],
        )
    )
    a, _ = train_step(model, make_batch())
    b, _ = train_step(plain, make_batch())
    assert list(a) == list(b)
    for key in a:
        torch.testing.assert_close(a[key], b[key])
    torch.testing.assert_close(model.fg_ratio, torch.tensor(3e-3))


def test_ignored_anchors_may_count_as_background():
    sums = []
    for negative in (False, True):
        words = ["MODEL.SAMPLING_FREE.IGNORE_AS_NEGATIVE", negative]
        model = build(cfg_of("retinanet", *words))
        sums.append(measure_priors(model, [make_batch((3, 2))], show_progress=False)[""])
    assert sums[0].foreground == sums[1].foreground
    assert sums[0].samples < sums[1].samples and sums[1].samples % 2 == 0


def test_rpn_learns_from_every_anchor_that_is_not_ignored():
    model = build(cfg_of("faster_rcnn"))
    rpn = model.proposal_generator
    batch = make_batch()
    images = model.preprocess_image(batch)
    features = model.backbone(images.tensor)
    anchors = rpn.anchor_generator([features[f] for f in rpn.in_features])
    gt = [x["instances"] for x in batch]
    labels, _ = rpn.label_and_sample_anchors(anchors, gt)
    counts = [[(x == v).sum().item() for v in (0, 1)] for x in labels]
    assert all(sum(c) > rpn.batch_size_per_image for c in counts)
    with EventStorage() as storage:
        model.train()
        model(batch)
        latest = storage.latest()
    assert latest["rpn/num_neg_anchors"][0] == sum(c[0] for c in counts) / 2
    assert latest["rpn/num_pos_anchors"][0] == sum(c[1] for c in counts) / 2


def proposals_and_targets(masks):
    torch.manual_seed(1)
    batch = make_batch((3, 0), masks=True)
    targets = [x["instances"] for x in batch]
    if masks == "polygon":
        polygons = []
        for b in targets[0].gt_boxes.tensor.tolist():
            polygons.append([[b[0], b[1], b[2], b[1], b[2], b[3], b[0], b[3]]])
        targets[0].gt_masks = PolygonMasks(polygons)
    proposals = []
    for target in targets:
        xy = torch.rand(40, 2) * 50
        boxes = torch.cat([xy, xy + 8 + torch.rand(40, 2) * 40], 1)
        boxes[:3] = target.gt_boxes.tensor[:1] + 1 if len(target) else boxes[:3]
        proposals.append(
            Instances(target.image_size, proposal_boxes=Boxes(boxes),
                      objectness_logits=torch.zeros(40))
        )  # fmt: skip
    return proposals, targets


@pytest.mark.parametrize("masks", ["bitmask", "polygon"])
def test_roi_heads_take_every_proposal_and_share_the_masks(storage, masks):
    heads = build(cfg_of("mask_rcnn")).roi_heads
    proposals, targets = proposals_and_targets(masks)
    sampled = heads.label_and_sample_proposals(proposals, targets)
    assert [len(x) for x in sampled] == [43, 40]  # with the objects themselves
    foreground = sampled[0][sampled[0].gt_classes < 3]
    assert len(foreground) >= 6 and not sampled[1].has("gt_masks")
    rows = foreground.gt_masks
    assert isinstance(rows, MaskRows) and rows.masks is targets[0].gt_masks
    boxes = foreground.proposal_boxes.tensor
    expected = targets[0].gt_masks[rows.rows].crop_and_resize(boxes, 7)
    assert torch.equal(rows.crop_and_resize(boxes, 7), expected)
    assert expected.any() and not expected.all()
    # What a mask head may want besides works on gathered masks.
    assert isinstance(rows.gather(), (BitMasks, PolygonMasks))
    assert len(rows[0]) == 1 and rows.get_bounding_boxes().area().min() > 0
    # Nothing of the caller's targets has changed.
    assert not isinstance(targets[0].gt_masks, MaskRows)


def test_mask_loss_is_that_of_gathered_masks():
    """Upstream's heads, given so large a sample that they take all, train the same."""
    on = build(cfg_of("mask_rcnn", "MODEL.SAMPLING_FREE.ON_RPN", False))
    words = ["MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 10000,
             "MODEL.ROI_HEADS.POSITIVE_FRACTION", 1.0]  # fmt: skip
    off = build(small_cfg("configs/COCO/mask_rcnn_R_50_FPN_1x.yaml", words))
    batch = make_batch((3, 2), masks=True)
    a, _ = train_step(on, batch)
    b, _ = train_step(off, batch)
    torch.testing.assert_close(a["loss_mask"], b["loss_mask"])


def test_foreground_of_the_mask_head_can_be_limited(monkeypatch):
    model = build(cfg_of("mask_rcnn", "MODEL.SAMPLING_FREE.MASK_MAX_FOREGROUND", 2))
    seen = []
    head = model.roi_heads.mask_head
    monkeypatch.setattr(
        type(head), "forward",
        lambda self, x, instances: seen.append([len(i) for i in instances]) or {},
    )  # fmt: skip
    train_step(model, make_batch((3, 1), masks=True))
    assert seen == [[2, 2]] or (seen[0][0] == 2 and seen[0][1] <= 2)


# ------------------------------------------------------------ bias and prior


@pytest.mark.parametrize("name", [*DENSE, "faster_rcnn"])
def test_off_leaves_no_trace_in_the_state_dict(name):
    off = build(small_cfg(f"configs/COCO/{name}_R_50_FPN_1x.yaml"))
    on = build(cfg_of(name))
    extra = {k.rsplit(".", 1)[-1] for k in set(on.state_dict()) - set(off.state_dict())}
    assert extra == {"prior", "fg_ratio", "class_counts"}
    assert set(off.state_dict()) < set(on.state_dict())


@pytest.mark.parametrize("name", [*DENSE, "faster_rcnn"])
def test_prior_counts_what_training_counts(name):
    """Fabricated feature maps give the very samples that a training step sees."""
    model = build(cfg_of(name))
    batches = [make_batch((3, 2), seed=s) for s in range(3)]
    measured = measure_priors(model, batches, show_progress=False)
    (part,) = find_optimal_bias(model).values()
    foreground = samples = 0
    for batch in batches:
        images = model.preprocess_image(batch)
        features = model.backbone(images.tensor)
        labels = part.label_samples(
            [features[f] for f in part.sample_features], [x["instances"] for x in batch]
        )
        foreground += ((labels >= 0) & (labels < len(part.class_counts))).sum().item()
        samples += (labels >= 0).sum().item()
    (result,) = measured.values()
    assert (result.foreground, result.samples, result.batches) == (foreground, samples, 3)
    assert sum(result.class_objects) == 15
    part.take_measurement(result)
    classes = len(part.class_counts)
    assert part.prior.item() == pytest.approx(foreground / samples / classes)
    assert part.fg_ratio.item() == pytest.approx(foreground / samples)
    bias = part.classifier.bias
    torch.testing.assert_close(bias, torch.full_like(bias, prior_to_bias(result.prior())))


def test_measuring_stops_at_the_tolerance_and_changes_nothing():
    model = build(cfg_of("retinanet"))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    batches = iter([make_batch((3, 2), seed=s % 2) for s in range(100)])
    result = measure_priors(model, batches, tolerance=0.2, show_progress=False)[""]
    assert result.batches % 10 == 0 and 10 <= result.batches < 100
    assert result.relative_error < 0.2
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_error_of_a_ratio_of_sums():
    sums = PriorSums(1)
    counts = [(2, 100), (4, 120), (3, 90), (9, 300)]
    for fg, n in counts:
        sums.add(torch.tensor([0] * fg + [1] * (n - fg) + [-1] * 5))
    result = sums.result()
    ratio = 18 / 610
    variance = sum((f - ratio * n) ** 2 for f, n in counts) * 4 / 3
    assert result.relative_error == pytest.approx(math.sqrt(variance) / 18)
    assert (result.foreground, result.samples) == (18, 610)


def test_prior_of_each_class():
    model = build(cfg_of("retinanet", "MODEL.SAMPLING_FREE.PRIOR_PER_CLASS", True))
    model.take_measurement(PriorMeasurement(12.0, 1000.0, [10.0, 2.0, 0.0], [3, 1, 0], 5, 0.1))
    expected = torch.tensor([1e-2, 2e-3, 5e-4])
    torch.testing.assert_close(model.prior, expected)
    scores = model.head.cls_score.bias.sigmoid().view(-1, 3)  # the classes of an anchor together
    torch.testing.assert_close(scores, expected.expand_as(scores))


def test_bias_setter_works_on_any_layer():
    linear = torch.nn.Linear(4, 6)
    parameter = linear.bias
    set_prior_bias(linear, 0.02)
    assert linear.bias is parameter
    torch.testing.assert_close(linear.bias.sigmoid(), torch.full((6,), 0.02))
    with pytest.raises(ValueError, match="strictly between"):
        set_prior_bias(linear, 0.0)
    with pytest.raises(ValueError, match="no bias"):
        set_prior_bias(torch.nn.Linear(4, 6, bias=False), 0.1)


@pytest.mark.parametrize("cls_loss", ["softmax", "bce", "eqlv2"])
def test_roi_bias_is_an_option(cls_loss):
    words = ["MODEL.ROI_BOX_HEAD.CLS_LOSS", cls_loss, "MODEL.EQLV2.OBJECTNESS", True,
             "MODEL.SAMPLING_FREE.ROI_BIAS_INIT"]  # fmt: skip
    plain = build(cfg_of("faster_rcnn", *words, False)).roi_heads.box_predictor
    assert not plain.cls_score.bias.any()
    bias = build(cfg_of("faster_rcnn", *words, True)).roi_heads.box_predictor.cls_score.bias
    if cls_loss == "softmax":
        torch.testing.assert_close(bias.softmax(0)[:3].sum(), torch.tensor(0.1))
    else:
        torch.testing.assert_close(bias.sigmoid()[:3].sum(), torch.tensor(0.1))
    if cls_loss == "eqlv2":
        torch.testing.assert_close(bias[-1].sigmoid(), torch.tensor(0.9))


# ----------------------------------------------------------------- thresholds


@pytest.mark.parametrize("name", DENSE)
def test_threshold_at_inference(name):
    modes = {}
    power = 1.0 if name == "retinanet" else 0.5
    for mode in ("fixed", "fg_ratio", "class_adaptive"):
        model = build(cfg_of(name, "MODEL.SAMPLING_FREE.SCORE_THRESH", mode))
        unmeasured = torch.as_tensor(model.score_thresholds(0.05))
        torch.testing.assert_close(unmeasured, torch.full_like(unmeasured, 0.05))
        model.take_measurement(
            PriorMeasurement(40.0, 1000.0, [20.0, 16.0, 4.0], [30.0, 8.0, 2.0], 5, 0.1)
        )
        modes[mode] = torch.as_tensor(model.score_thresholds(0.05))
        assert modes[mode].requires_grad is False
        scores = torch.tensor([[0.9, 0.9, 0.9], [0.028, 0.03, 0.03]]) ** power
        anchors = Boxes(torch.tensor([[0.0, 0, 10, 10], [20, 20, 40, 40]]))
        found = model._decode_per_level_predictions(
            anchors, scores, torch.zeros(2, 4), 0.05**power, 10, (50, 50)
        )
        expected = {"fixed": 3, "fg_ratio": 3, "class_adaptive": 5}[mode]
        assert len(found) == expected and (found.pred_classes == 0).sum() == 1
    torch.testing.assert_close(modes["fg_ratio"], torch.tensor(0.04**power))
    theta = torch.tensor([0.03, 0.008, 0.002]) ** power
    torch.testing.assert_close(modes["class_adaptive"], theta)


def test_roi_threshold():
    key = "MODEL.SAMPLING_FREE.SCORE_THRESH"
    for mode, expected in (("fg_ratio", 1e-3), ("fixed", 0.05)):
        heads = build(cfg_of("faster_rcnn", key, mode)).roi_heads
        assert heads.box_predictor.test_score_thresh == expected


def test_keys_are_off_by_default():
    assert not get_cfg().MODEL.SAMPLING_FREE.ENABLED
