"""DW's weights and losses against the authors' numbers, and what must hold beside them."""

import pytest
import torch
from golden_kit import golden
from torch.autograd import gradcheck

from d2ext.ops import host
from d2ext.ops.dual_weighting import dual_weighting_losses, dual_weights

LOSSES = ("loss_cls_pos", "loss_loc", "loss_cls_neg")
CASES = (
    "a_single",
    "b_overlap",
    "b2_overlap_same_class",
    "c_one_empty",
    "c2_all_empty",
    "d_tiny",
    "e_80cls",
    "f_saturated",
    "s_hard_prior",
    "w_quality",
)
# The authors form 1 - p by subtraction and lose digits when p is near 1.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 2e-5}


class Case:
    """A stored case with its inputs in one type."""

    def __init__(self, name, dtype=torch.float64):
        self.data = dict(golden("dw", name))
        data, self.dtype = self.data, dtype
        self.tolerance = 1e-5 if name == "f_saturated" else TOLERANCE[dtype]
        self.points = self.tensor("points")
        self.strides = self.tensor("strides")[torch.tensor(data["point_level"]).long()]
        self.cls_logits, self.obj_logits, self.ltrb = (
            self.tensor(k).requires_grad_() for k in ("cls_logits", "obj_logits", "bbox_ltrb")
        )
        image = torch.tensor(data["gt_image"]).long()
        boxes = self.tensor("gt_boxes").reshape(-1, 4)
        classes = torch.tensor(data["gt_labels"]).long()
        images = range(len(self.cls_logits))
        self.gt_boxes = [boxes[image == i] for i in images]
        self.gt_classes = [classes[image == i] for i in images]
        self.options = {"soft_prior": bool(data["soft_prior"])}

    def tensor(self, key):
        return torch.tensor(self.data[key]).to(self.dtype)

    def args(self, images=slice(None)):
        boxes = torch.cat((self.points - self.ltrb[..., :2], self.points + self.ltrb[..., 2:]), -1)
        return (
            self.points,
            self.strides,
            self.cls_logits[images],
            self.obj_logits[images],
            boxes[images],
            self.gt_boxes[images],
            self.gt_classes[images],
        )

    def losses(self, **options):
        return dual_weighting_losses(*self.args(), **{**self.options, **options})

    def weights(self, **options):
        return dual_weights(*self.args(), **{**self.options, **options})

    def normalised(self, **options):
        return normalise(self.losses(**options))


def normalise(out):
    num_gt, neg_norm = out["num_gt"].clamp(min=1), out["neg_norm"].clamp(min=1)
    return {
        "loss_cls_pos": out["loss_cls_pos"] / num_gt,
        "loss_loc": out["loss_loc"] / num_gt,
        "loss_cls_neg": out["loss_cls_neg"] / neg_norm,
    }


def assert_near(actual, expected, tolerance, what):
    actual, expected = torch.as_tensor(actual).double(), torch.as_tensor(expected).double()
    assert actual.shape == expected.shape, what
    assert torch.isfinite(actual).all(), what
    if expected.numel():
        top = expected.abs().max()
        difference = (actual - expected).abs().max() / (top if top > 0 else 1)
        assert difference <= tolerance, f"{what}: {difference:.1e}"


@pytest.mark.parametrize("dtype", TOLERANCE, ids=("f64", "f32"))
@pytest.mark.parametrize("name", CASES)
class TestAuthorsNumbers:
    def test_pairs(self, name, dtype):
        case = Case(name, dtype)
        weights = case.weights()
        assert weights.point.tolist() == case.data["pair_point"].tolist()
        assert weights.gt.tolist() == case.data["pair_gt"].tolist()
        assert weights.image.tolist() == case.data["gt_image"][case.data["pair_gt"]].tolist()
        for key in ("iou", "score", "prior", "pos_weight", "neg_metric"):
            assert_near(getattr(weights, key), case.data[f"pair_{key}"], case.tolerance * 5, key)
        assert_near(1 - weights.giou, case.data["pair_giou_loss"], case.tolerance * 5, "giou")

    def test_losses_and_gradients(self, name, dtype):
        case = Case(name, dtype)
        losses = case.normalised()
        if name == "f_saturated" and dtype is torch.float32:
            # There the authors' losses are clamped; ours only have to stay finite and usable.
            grads = torch.autograd.grad(sum(losses.values()), [case.cls_logits, case.obj_logits])
            assert all(torch.isfinite(g).all() for g in grads)
            assert_near(losses["loss_cls_pos"], case.data["loss_cls_pos"], 2e-5, "loss_cls_pos")
            return
        for key in LOSSES:
            assert_near(losses[key], case.data[key], case.tolerance, key)
            if dtype is torch.float32:
                assert_near(losses[key], case.data[f"{key}_f32"], case.tolerance, key)
        sum(losses.values()).backward()
        step = int(case.data["cls_grad_step"])
        for key, grad in (
            ("grad_cls_logits", case.cls_logits.grad.reshape(-1)[::step]),
            ("grad_obj_logits", case.obj_logits.grad),
            ("grad_bbox_ltrb", case.ltrb.grad),
        ):
            assert_near(grad, case.data[key], case.tolerance * 5, key)


@pytest.mark.parametrize("name", CASES)
def test_negative_weight_of_every_cell(name):
    """What the losses apply to each (point, class) cell, read from the loss itself."""
    case = Case(name)
    out = case.losses()
    assert_near(out["neg_norm"], case.data["img_neg_avg"].sum(), case.tolerance, "neg_norm")
    if name == "f_saturated":
        return
    # With w_pos switched off, the gradient of a cell is P_neg times what it is without objects.
    (grad,) = torch.autograd.grad(out["loss_cls_neg"], case.cls_logits)
    args = list(case.args())
    args[5] = [boxes[:0] for boxes in case.gt_boxes]
    args[6] = [classes[:0] for classes in case.gt_classes]
    plain = dual_weighting_losses(*args, **case.options)["loss_cls_neg"]
    (grad_plain,) = torch.autograd.grad(plain, case.cls_logits)
    expected = torch.ones_like(grad).reshape(-1)
    expected[torch.tensor(case.data["neg_cell"]).long()] = case.tensor("neg_value")
    assert_near(grad / grad_plain, expected.view_as(grad), 1e-9, "P_neg")


def test_sums_of_single_images():
    case = Case("b_overlap")
    for i in range(2):
        out = dual_weighting_losses(*case.args(slice(i, i + 1)))
        for key in LOSSES:
            assert_near(out[key].detach(), case.data[f"img_{key}"][i], 1e-9, key)
        assert_near(out["neg_norm"], case.data["img_neg_avg"][i], 1e-9, "neg_norm")
        assert int(out["num_gt"]) == int(case.data["num_gt"][i])


def test_losses_have_separate_gradients():
    case = Case("b_overlap")
    out = case.losses()
    leaves = [case.cls_logits, case.obj_logits, case.ltrb]
    kwargs = {"allow_unused": True, "retain_graph": True}
    assert torch.autograd.grad(out["loss_loc"], leaves, **kwargs)[:2] == (None, None)
    for key in ("loss_cls_pos", "loss_cls_neg"):
        assert torch.autograd.grad(out[key], leaves, **kwargs)[2] is None
    assert not out["neg_norm"].requires_grad


def test_order_of_objects_is_of_no_matter_without_conflicts():
    case = Case("b_overlap")
    before = case.losses()
    order = [torch.arange(len(c) - 1, -1, -1) for c in case.gt_classes]
    case.gt_boxes = [b[o] for b, o in zip(case.gt_boxes, order)]
    case.gt_classes = [c[o] for c, o in zip(case.gt_classes, order)]
    after = case.losses()
    for key in (*LOSSES, "neg_norm"):
        assert_near(after[key].detach(), before[key].detach(), 1e-12, key)


def test_last_object_of_a_class_decides():
    case = Case("b2_overlap_same_class")
    before = case.losses()["neg_norm"]
    case.gt_boxes = [b.flip(0) for b in case.gt_boxes]
    case.gt_classes = [c.flip(0) for c in case.gt_classes]
    after = case.losses()["neg_norm"]
    assert abs(float(before - after)) > 1e-3  # another object is the last one now
    # The smallest weight does not depend on the order, and relaxes at least as much.
    lowest = case.losses(neg_conflict="min")["neg_norm"]
    case.gt_boxes = [b.flip(0) for b in case.gt_boxes]
    case.gt_classes = [c.flip(0) for c in case.gt_classes]
    assert_near(case.losses(neg_conflict="min")["neg_norm"], lowest, 1e-12, "neg_norm")
    assert lowest >= max(before, after)


def test_object_without_points_only_counts():
    case = Case("a_single")
    before = case.losses()
    case.gt_boxes[0] = torch.cat((case.gt_boxes[0], torch.tensor([[4.0, 4.0, 4.5, 4.5]]).double()))
    case.gt_classes[0] = torch.cat((case.gt_classes[0], torch.tensor([0])))
    after = case.losses()
    assert int(after["num_gt"]) == int(before["num_gt"]) + 1
    for key in (*LOSSES, "neg_norm"):
        assert torch.equal(after[key], before[key])


def test_levels_in_another_order():
    case = Case("b_overlap")
    before, pairs = case.losses(), case.weights()
    level = torch.tensor(case.data["point_level"]).long()
    order = torch.sort(-level, stable=True).indices
    case.points, case.strides = case.points[order], case.strides[order]
    case.cls_logits, case.obj_logits = case.cls_logits[:, order], case.obj_logits[:, order]
    case.ltrb = case.ltrb[:, order]
    after, moved = case.losses(), case.weights()
    for key in (*LOSSES, "neg_norm"):
        assert_near(after[key].detach(), before[key].detach(), 1e-12, key)
    # The same points have the same weights.
    shape = (len(order), int(pairs.gt.max()) + 1)
    a, b = torch.zeros(shape).double(), torch.zeros(shape).double()
    a[pairs.point, pairs.gt] = pairs.pos_weight
    b[order[moved.point], moved.gt] = moved.pos_weight
    assert_near(b, a, 1e-12, "pos_weight")


def test_facts_of_the_negative_weight():
    points = torch.tensor([[4.0, 4.0], [12.0, 4.0], [20.0, 4.0]])
    strides = torch.full((3,), 8.0)
    gt = torch.tensor([[0.0, 0.0, 24.0, 8.0]])

    def metric(ious):
        # Boxes of the object's height and IoU times its width, inside it.
        boxes = torch.tensor([[0.0, 0.0, 24.0 * u, 8.0] for u in ious])[None]
        zeros = torch.zeros(1, len(ious), 2)
        args = (points[: len(ious)], strides[: len(ious)], zeros, zeros[..., 0], boxes)
        return dual_weights(*args, [gt], [torch.tensor([1])]).neg_metric

    assert metric([0.3, 0.4, 0.45]).tolist() == [1, 1, 1]
    assert metric([0.8]).tolist() == [1]  # a bag of one point
    best = metric([0.1, 0.3, 0.55])
    assert best[:2].tolist() == [1, 1] and best[2] < 1e-6
    assert metric([0.9, 0.92, 0.95])[0] == 1  # the worst of a good bag is a full negative


def test_empty_image_has_negative_loss_only():
    case = Case("c2_all_empty")
    out = case.losses()
    assert all(float(out[k].detach()) == 0 for k in ("loss_cls_pos", "loss_loc"))
    assert float(out["num_gt"]) == 0 and float(out["neg_norm"]) == 0
    leaves = [case.cls_logits, case.obj_logits, case.ltrb]
    grads = torch.autograd.grad(sum(case.normalised().values()), leaves)  # no leaf is unused
    assert float(grads[0].abs().sum()) > 0 and float(grads[2].abs().sum()) == 0


def test_gradients_are_those_of_the_losses():
    torch.manual_seed(0)
    xs = torch.arange(2) * 8 + 4.0
    points = torch.cartesian_prod(xs, xs).flip(1).double()
    strides = torch.full((4,), 8.0).double()
    pair_args = (
        torch.randn(1, 4, 2).double().requires_grad_(),
        torch.randn(1, 4).double().requires_grad_(),
    )
    ltrb = torch.rand(1, 4, 4).double() * 10
    boxes = torch.cat((points - ltrb[..., :2], points + ltrb[..., 2:]), -1)
    gt_boxes = [torch.tensor([[1.0, 2.0, 15.0, 14.0], [3.0, 1.0, 16.0, 15.0]]).double()]
    gt_classes = [torch.tensor([1, 1])]

    def negative(cls_logits, obj_logits, gamma2):
        # The negative weights depend on boxes alone, so they are constant under this check.
        args = (points, strides, cls_logits, obj_logits, boxes, gt_boxes, gt_classes)
        return dual_weighting_losses(*args, gamma2=gamma2)["loss_cls_neg"]

    for gamma2 in (2.0, 1.5):
        assert gradcheck(lambda x, y, g=gamma2: negative(x, y, g), pair_args)


def test_switches_of_the_paper():
    case = Case("w_quality")
    base = case.weights()
    iou_pow = case.weights(t_metric="iou_pow")
    fixed = case.weights(neg_metric="fixed")
    own_sum = case.weights(mu_norm=5.0)
    t = base.score * base.iou**5
    num_gt = int(base.gt.max()) + 1
    weighted = torch.exp(3 * t) * t * base.prior
    norm = torch.zeros(num_gt).double().index_add_(0, base.gt, weighted).clamp(min=1e-12)
    expected = torch.exp(5 * t) * t * base.prior / norm[base.gt]
    assert_near(iou_pow.pos_weight, expected, 1e-12, "iou_pow")
    curve = ((0.95**2 - base.iou**2) / (0.95**2 - 0.5**2)).clamp(0, 1)
    assert_near(fixed.neg_metric, curve, 1e-12, "fixed")
    sums = torch.zeros(num_gt).double().index_add_(0, own_sum.gt, own_sum.pos_weight)
    assert_near(sums, torch.ones(num_gt), 1e-9, "sum of weights")


def test_switches_for_ablations():
    case = Case("w_quality")
    base = case.weights()
    num_gt = int(base.gt.max()) + 1
    sums = torch.zeros(num_gt).double()
    prior_sum = sums.clone().index_add_(0, base.gt, base.prior)
    plain = case.weights(t_metric="none")
    assert_near(plain.pos_weight, base.prior / prior_sum[base.gt], 1e-12, "none")
    assert_near(plain.neg_metric, base.neg_metric, 0, "negatives are not touched")
    coupled = case.weights(neg_metric="complement")
    assert_near(coupled.pos_weight, base.pos_weight, 0, "positives are not touched")
    top = sums.clone().scatter_reduce_(0, base.gt, base.pos_weight, "amax")
    assert_near(coupled.neg_metric, 1 - base.pos_weight / top[base.gt], 1e-12, "complement")
    losses = case.losses(t_metric="none", neg_metric="complement")
    assert all(bool(torch.isfinite(v)) for v in losses.values())


@pytest.mark.parametrize(
    "option, word",
    [
        ({"t_metric": "iou"}, "t_metric"),
        ({"neg_metric": "none"}, "neg_metric"),
        ({"neg_conflict": "first"}, "neg_conflict"),
        ({"prior_sigma": 0.0}, "prior_sigma"),
        ({"neg_iou": 1.0}, "neg_iou"),
        ({"gamma2": 0.5}, "gamma2"),
    ],
)
def test_wrong_constants_are_refused(option, word):
    with pytest.raises(ValueError, match=word):
        Case("a_single").losses(**option)


def test_other_number_of_images_is_refused():
    args = list(Case("a_single").args())
    args[5] = args[5] * 2
    with pytest.raises(ValueError, match="one tensor of boxes and of classes an image"):
        dual_weighting_losses(*args)


@pytest.mark.parametrize("label", [-1, "C", 10**6])
def test_a_label_that_is_no_class_trains_no_other_cell(label, monkeypatch):
    case = Case("b_overlap")
    num_classes = case.cls_logits.shape[2]
    label = num_classes if label == "C" else label
    case.gt_classes[1] = case.gt_classes[1].clone()
    case.gt_classes[1][0] = label
    for function in (case.losses, case.weights):
        with pytest.raises(ValueError, match=f"label {label}, .* {num_classes} classes"):
            function()
    # Where asking would be a wait, the losses say so by their divisor.
    monkeypatch.setattr(host, "asking_is_free", lambda tensor: False)
    assert case.losses()["num_gt"].isnan()
    assert case.normalised()["loss_cls_pos"].isnan()
    case.gt_classes[1][0] = 0
    assert case.losses()["num_gt"] == case.data["num_gt"].sum()


def test_half_precision_is_computed_in_float32():
    case = Case("b_overlap", torch.float32)
    points, strides, x, y, boxes, gt_boxes, gt_classes = case.args()
    x, y = x.detach().bfloat16().requires_grad_(), y.detach().bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        low = dual_weighting_losses(points, strides, x, y, boxes, gt_boxes, gt_classes)
    high = dual_weighting_losses(points, strides, x.float(), y.float(), boxes, gt_boxes, gt_classes)
    for key in LOSSES:
        assert low[key].dtype == torch.float32
        assert torch.equal(low[key], high[key])
    low["loss_cls_neg"].backward()
    assert x.grad.dtype == torch.bfloat16


def test_result_does_not_depend_on_threads():
    case = Case("b2_overlap_same_class", torch.float32)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 4):
            torch.set_num_threads(count)
            out = case.losses()
            results.append([float(out[k].detach()) for k in ("loss_cls_neg", "neg_norm")])
    finally:
        torch.set_num_threads(threads)
    assert results[0] == pytest.approx(results[1], rel=1e-6)
