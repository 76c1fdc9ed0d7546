"""The equalized focal loss inside detectors: where it fits, what it counts, what is refused."""

import copy
from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage
from model_kit import build, make_batch, relative_error, small_cfg, train_step
from process_kit import run_ranks

from d2ext.modeling.losses import (
    EQLv2Loss,
    EqualizedFocalLoss,
    GradientBalancedLoss,
    build_cls_loss,
)

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
DENSE = (
    "Base-RetinaNet.yaml",
    "Base-FCOS.yaml",
    "EqualizedFocalLoss/improved_baseline_R_50_FPN_24e_focal.yaml",
)
STATE = ("pos_grad", "neg_grad", "pos_neg")


def dense_cfg(name, loss, *words):
    return small_cfg(CONFIGS / name, ["MODEL.DENSE.CLS_LOSS", loss, *words])


def roi_cfg(loss, *words):
    return small_cfg(
        CONFIGS / "Base-RCNN-FPN.yaml",
        ["MODEL.MASK_ON", False, "MODEL.ROI_BOX_HEAD.CLS_LOSS", loss, *words],
    )


def the_loss(model):
    (loss,) = [m for m in model.modules() if isinstance(m, GradientBalancedLoss)]
    return loss


def state_of(loss):
    return torch.stack([getattr(loss, name).clone() for name in STATE])


def with_many_negatives(model):
    """Scores far above the prior: with few classes all would be in balance at it."""
    with torch.no_grad():
        model.head.cls_score.bias.fill_(-1.0)
    return model


def forward(model, batch, seed=0):
    torch.manual_seed(seed)
    with EventStorage():
        return model(batch)


@pytest.mark.parametrize("loss", ["efl", "eqfl"])
@pytest.mark.parametrize("name", DENSE)
def test_dense_detectors_collect_what_reaches_their_class_logits(name, loss):
    """The statistics are the column sums of the gradient at the output of the class branch."""
    model = with_many_negatives(build(dense_cfg(name, loss))).train()
    module = the_loss(model)
    assert isinstance(module, EqualizedFocalLoss) and module.needs_quality == (loss == "eqfl")
    seen = {}

    def watch(loss_module, args, output):
        seen["logits"], seen["labels"] = args[0], args[1]
        args[0].retain_grad()

    module.register_forward_hook(watch)
    losses = forward(model, make_batch())
    (losses.get("loss_cls") if "loss_cls" in losses else losses["loss_fcos_cls"]).backward()
    grad, labels = seen["logits"].grad.abs(), seen["labels"]
    positive = torch.zeros_like(grad, dtype=torch.bool)
    rows = ((labels >= 0) & (labels < 3)).nonzero().squeeze(1)
    positive[rows, labels[rows]] = True
    assert len(rows) > 0
    assert relative_error(module.pos_grad, (grad * positive).sum(0)) < 1e-5
    assert relative_error(module.neg_grad, (grad * ~positive).sum(0)) < 1e-5


@pytest.mark.parametrize("name", DENSE)
def test_first_step_is_the_focal_loss_and_a_scale_of_0_stays_it(name):
    batch = make_batch()
    focal, focal_grads = train_step(with_many_negatives(build(dense_cfg(name, "focal"))), batch)
    model = with_many_negatives(build(dense_cfg(name, "efl")))
    first, grads = train_step(model, batch)
    again, _ = train_step(model, batch)
    for key, value in focal.items():
        torch.testing.assert_close(first[key], value)
    # Against the largest of all: the coarsest levels hardly have a gradient at this image size.
    top = max(float(value.abs().max()) for value in focal_grads.values())
    for key, value in focal_grads.items():
        assert float((grads[key] - value).abs().max()) < 1e-6 * top, key
    cls = next(key for key in focal if key.endswith("cls"))
    assert relative_error(again[cls], first[cls]) > 0.01
    flat = with_many_negatives(build(dense_cfg(name, "efl", "MODEL.EFL.SCALE", 0.0)))
    train_step(flat, batch)
    # RetinaNet and FCOS divide by a running mean, which has moved on; so has their first model.
    want = with_many_negatives(build(dense_cfg(name, "focal")))
    train_step(want, batch)
    torch.testing.assert_close(train_step(flat, batch)[0][cls], train_step(want, batch)[0][cls])


def test_statistics_are_in_the_state_dict_and_continue():
    cfg = dense_cfg(DENSE[2], "efl")
    model, batch = build(cfg), make_batch()
    train_step(model, batch)
    saved = copy.deepcopy(model.state_dict())
    assert {f"criterion.cls_loss.{name}" for name in STATE} <= set(saved)
    want, _ = train_step(model, batch)
    other = build(cfg, seed=1)
    other.load_state_dict(saved)
    got, _ = train_step(other, batch)
    assert all(torch.equal(got[key], want[key]) for key in want)
    assert torch.equal(state_of(the_loss(other)), state_of(the_loss(model)))


def test_passes_that_do_not_train_leave_no_trace():
    model, batch = build(dense_cfg(DENSE[2], "efl")).train(), make_batch()
    before = state_of(the_loss(model))
    with torch.no_grad():
        forward(model, batch)
    assert torch.equal(state_of(the_loss(model)), before)
    model.eval()(batch)
    assert torch.equal(state_of(the_loss(model)), before)
    forward(model.train(), batch)
    assert not torch.equal(state_of(the_loss(model)), before)


def test_autocast_counts_once_in_float32():
    batch = make_batch()
    plain, mixed = (build(dense_cfg(DENSE[2], "efl")).train() for _ in range(2))
    forward(plain, batch)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = forward(mixed, batch)
    assert losses["loss_cls"].dtype == torch.float32
    want, got = state_of(the_loss(plain)), state_of(the_loss(mixed))
    assert got.dtype == torch.float32
    # Twice as much would be an error of 1.
    assert relative_error(got[:2], want[:2]) < 0.1


def test_an_image_without_objects_and_a_batch_of_them():
    model = build(dense_cfg(DENSE[2], "eqfl"))
    losses, grads = train_step(model, make_batch((0, 0)))
    assert all(torch.isfinite(v) for v in losses.values())
    assert all(torch.isfinite(g).all() for g in grads.values())
    assert bool((the_loss(model).pos_grad == 0).all())


@pytest.mark.parametrize("loss", ["efl", "eqlv2"])
def test_roi_heads_collect_over_proposals(loss):
    model = build(roi_cfg(loss, "MODEL.ROI_BOX_HEAD.PRIOR_PROB", 0.01))
    train_step(model, make_batch())
    module = the_loss(model)
    assert bool((module.neg_grad > 0).all()) and bool((module.pos_grad > 0).any())


def test_eqlv2_with_its_objectness_column():
    model = build(
        roi_cfg("eqlv2", "MODEL.EQLV2.OBJECTNESS", True, "MODEL.ROI_BOX_HEAD.PRIOR_PROB", 0.01)
    )
    predictor = model.roi_heads.box_predictor
    assert isinstance(the_loss(model), EQLv2Loss) and the_loss(model).objectness
    assert predictor.cls_score.bias.tolist()[-1] == 0.0 > predictor.cls_score.bias.tolist()[0]
    _, grads = train_step(model, make_batch())
    # The background learns, which the last column does not do without it.
    assert bool(grads["roi_heads.box_predictor.cls_score.weight"][-1].any())
    logits = torch.randn(5, 4)
    (probs,) = predictor.predict_probs((logits, None), [range(5)])
    p = logits.sigmoid()
    torch.testing.assert_close(probs[:, :3], p[:, :3] * (1 - p[:, 3:]))
    assert model.eval()(make_batch())[0]["instances"].scores.dim() == 1


def test_refusals():
    fed = ("MODEL.ROI_BOX_HEAD.USE_FED_LOSS", True)
    for loss in ("efl", "eqlv2"):
        with pytest.raises(ValueError, match="statistics of all classes.*CLS_LOSS to bce"):
            build(roi_cfg(loss, *fed, "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE", True))
    with pytest.raises(ValueError, match="hard labels; choose one of"):
        build(roi_cfg("eqfl"))
    with pytest.raises(ValueError, match="RPN has no quality target"):
        build_cls_loss(small_cfg(), "eqfl", place="rpn", num_classes=1)
    with pytest.raises(ValueError, match="MODEL.EQLV2.OBJECTNESS to False"):
        build(dense_cfg(DENSE[0], "eqlv2", "MODEL.EQLV2.OBJECTNESS", True))
    with pytest.raises(ValueError, match="MODEL.EFL.GAMMA_B must be above 0"):
        build(dense_cfg(DENSE[0], "efl", "MODEL.EFL.GAMMA_B", 0.0))
    with pytest.raises(ValueError, match="MODEL.DENSE.CLS_LOSS"):
        name = "DualWeighting/dw_R_50_FPN_1x.yaml"
        build(small_cfg(CONFIGS / name, ["MODEL.DENSE.CLS_LOSS", "efl"]))


def test_improved_baseline_is_what_it_says():
    cfg = small_cfg(CONFIGS / "EqualizedFocalLoss/improved_baseline_R_50_FPN_24e_efl.yaml")
    model = build(cfg)
    assert model.assigner.topk == 18 and model.assigner.clamp_centers
    assert model.assigner.margin == 0.51
    assert model.clip_before_nms and model.cap_by_anchors and not model.drop_empty
    norms = [m for m in model.backbone.bottom_up.res4.modules() if hasattr(m, "running_var")]
    assert norms and all(m.weight.requires_grad for m in norms)
    assert model.normalizer.sync and model.quality == "iou" and model.score_power == 1
    assert model.test_score_thresh == 0 and model.test_topk_candidates == 6000
    head = model.head
    assert not len(head.scales) and head.cls_subnet[0].bias is None
    for conv in [m for m in head.modules() if isinstance(m, torch.nn.Conv2d)]:
        assert 0.008 < float(conv.weight.detach().std()) < 0.012
    assert torch.allclose(head.cls_score.bias.sigmoid(), torch.tensor(0.001))
    assert head.quality.out_channels == 2 and bool((head.quality.bias == 0).all())
    sizes = [cell[:, 2:] - cell[:, :2] for cell in model.anchor_generator.cell_anchors]
    assert [[int(side[0]) for side in level] for level in sizes] == [
        [6 * s, 8 * s] for s in (8, 16, 32, 64, 128)
    ]


def rank_batches():
    """Two steps of an image for each rank; in the second, rank 0 has no object."""
    return make_batch(size=160), make_batch((0, 4), size=160)


def _run_rank(rank, folder):
    model = build(dense_cfg(DENSE[2], "efl"))
    for batch in rank_batches():
        train_step(model, [batch[rank]])
    torch.save(state_of(the_loss(model)), f"{folder}/{rank}.pt")


@pytest.mark.dist
def test_two_ranks_have_the_same_statistics_as_one_with_all_images(tmp_path):
    run_ranks(lambda rank: _run_rank(rank, tmp_path))
    first, second = (torch.load(tmp_path / f"{k}.pt", weights_only=True) for k in range(2))
    assert torch.equal(first, second)
    # The normaliser is the mean over ranks: half of what one rank with both images divides by.
    model = build(dense_cfg(DENSE[2], "efl"))
    for batch in rank_batches():
        train_step(model, batch)
    whole = state_of(the_loss(model))
    for got, want in zip(first, whole * torch.tensor([[2.0], [2.0], [1.0]])):
        assert relative_error(got, want) < 1e-4
