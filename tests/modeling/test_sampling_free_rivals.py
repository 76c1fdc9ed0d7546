"""Hard and soft sampling, what Sampling-Free is compared with: OHEM and GHM-C."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, pairwise_iou
from detectron2.utils.events import EventStorage
from model_kit import build, make_batch, small_cfg, train_step
from torch.nn import functional as F

from d2ext.modeling.losses import (
    BCELoss,
    Criterion,
    GHMCLoss,
    GHMRLoss,
    Levels,
    Positives,
    SmoothL1Loss,
)
from d2ext.modeling.roi_heads import ExtFastRCNNOutputLayers
from d2ext.modeling.roi_heads.ohem import hard_proposals, hardest_of_rows


def greedy(loss, boxes, count, thresh):
    """Largest loss first; whoever overlaps a chosen one too much is out."""
    iou = pairwise_iou(Boxes(boxes), Boxes(boxes))
    chosen = []
    for i in loss.argsort(descending=True).tolist():
        if len(chosen) < count and all(iou[i, j] <= thresh for j in chosen):
            chosen.append(i)
    return chosen


@pytest.mark.parametrize("thresh", [0.3, 0.7, 1.0])
def test_hard_proposals_are_the_greedy_choice_of_each_image(thresh):
    counts = [30, 0, 20]
    loss = torch.rand(50)
    xy = torch.rand(50, 2) * 20
    boxes = torch.cat([xy, xy + 10 + torch.rand(50, 2) * 10], 1)
    rows = hard_proposals(loss, boxes, counts, 8, thresh)
    expected = sorted(
        greedy(loss[:30], boxes[:30], 8, thresh)
        + [30 + i for i in greedy(loss[30:], boxes[30:], 8, thresh)]
    )
    assert rows.tolist() == expected


def test_hardest_of_rows():
    loss = torch.tensor([[3.0, 9.0, 1.0, 2.0], [5.0, 1.0, 2.0, 8.0]])
    labels = torch.tensor([[0, -1, 1, 1], [1, 1, 0, 0]])
    assert hardest_of_rows(loss, labels, 2).tolist() == [[0, -1, -1, 1], [1, -1, -1, 0]]


@pytest.mark.parametrize("name", ["faster_rcnn", "cascade_mask_rcnn"])
def test_roi_head_learns_from_the_hardest_proposals(name):
    words = ["MODEL.OHEM.ON_ROI", True, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 6,
             "MODEL.OHEM.NMS_THRESH", 1.0]  # fmt: skip
    model = build(small_cfg(f"configs/COCO/{name}_R_50_FPN_1x.yaml", words))
    heads = model.roi_heads
    predictor = heads.box_predictor[0] if "cascade" in name else heads.box_predictor
    seen = {}
    original = type(predictor).losses

    def spy(self, predictions, proposals):
        result = original(self, predictions, proposals)
        if self is predictor:
            seen.update(predictions=predictions, proposals=proposals, losses=result)
        return result

    type(predictor).losses = spy
    try:
        losses, grads = train_step(model, make_batch((3, 2), masks="mask" in name))
    finally:
        type(predictor).losses = original
    assert all(torch.isfinite(v) for v in losses.values())
    proposals, (logits, deltas) = seen["proposals"], seen["predictions"]
    labels = torch.cat([p.gt_classes for p in proposals])
    cls = F.cross_entropy(logits, labels, reduction="none")
    box = torch.zeros_like(cls)
    fg = labels < 3
    priors = torch.cat([p.proposal_boxes.tensor for p in proposals])
    target = predictor.box2box_transform.get_deltas(
        priors[fg], torch.cat([p.gt_boxes.tensor for p in proposals])[fg]
    )
    own = deltas.view(len(deltas), -1, 4)
    own = own[fg, labels[fg]] if own.shape[1] > 1 else own[fg, 0]
    box[fg] = (own - target).abs().sum(1)
    rows, start = [], 0
    for p in proposals:
        part = (cls + box)[start : start + len(p)]
        rows += (start + part.topk(6).indices).tolist()
        start += len(p)
    assert len(labels) > 12 and len(rows) == 12
    torch.testing.assert_close(seen["losses"]["loss_cls"], cls[rows].sum() / 12)
    torch.testing.assert_close(seen["losses"]["loss_box_reg"], box[rows].sum() / 12)


def test_rpn_learns_from_the_hardest_anchors():
    words = ["MODEL.OHEM.ON_RPN", True, "MODEL.RPN.BATCH_SIZE_PER_IMAGE", 16]
    model = build(small_cfg("configs/COCO/faster_rcnn_R_50_FPN_1x.yaml", words))
    rpn, batch = model.proposal_generator, make_batch()
    images = model.preprocess_image(batch)
    features = [model.backbone(images.tensor)[f] for f in rpn.in_features]
    anchors = rpn.anchor_generator(features)
    gt = [x["instances"] for x in batch]
    labels, boxes = rpn.label_and_sample_anchors(anchors, gt)
    num = len(labels[0])
    logits, deltas = torch.randn(2, num) * 3, torch.randn(2, num, 4) * 0.1
    sizes = [len(a) for a in anchors]
    with EventStorage() as storage:
        losses = rpn.losses(
            anchors, list(logits.split(sizes, 1)), labels, list(deltas.split(sizes, 1)), boxes
        )
        latest = storage.latest()
    flat = torch.cat([a.tensor for a in anchors])
    cls_sum = box_sum = 0.0
    for i in range(2):
        cls = F.binary_cross_entropy_with_logits(
            logits[i], labels[i].clamp(min=0).float(), reduction="none"
        )
        fg = labels[i] == 1
        box = torch.zeros(num)
        target = rpn.box2box_transform.get_deltas(flat[fg], boxes[i][fg])
        box[fg] = (deltas[i][fg] - target).abs().sum(1)
        rows = (cls + box).masked_fill(labels[i] < 0, -1).topk(16).indices
        cls_sum, box_sum = cls_sum + cls[rows].sum(), box_sum + box[rows].sum()
    torch.testing.assert_close(losses["loss_rpn_cls"], cls_sum / 32)
    torch.testing.assert_close(losses["loss_rpn_loc"], box_sum / 32)
    assert latest["rpn/num_pos_anchors"][0] + latest["rpn/num_neg_anchors"][0] == 16


def test_ohem_takes_no_federated_loss():
    criterion = Criterion(cls_loss=BCELoss(), box_loss=SmoothL1Loss())
    with pytest.raises(ValueError, match="USE_FED_LOSS"):
        ExtFastRCNNOutputLayers(
            ShapeSpec(channels=4),
            criterion=criterion,
            num_hard=8,
            box2box_transform=Box2BoxTransform((1.0, 1.0, 1.0, 1.0)),
            num_classes=3,
            use_fed_loss=True,
            get_fed_loss_cls_weights=lambda: torch.ones(3),
            fed_loss_num_classes=2,
        )


def ghm_by_the_formula(logits, labels, bins, occupied_only):
    """1/N sum N / GD(g) BCE, with GD(g) = R(region of g) * bins."""
    total, classes = 0.0, logits.shape[1]
    rows = [i for i, label in enumerate(labels.tolist()) if label >= 0]
    terms = []
    for i in rows:
        for c in range(classes):
            target = float(labels[i] == c)
            g = abs(torch.sigmoid(logits[i, c]).item() - target)
            bce = F.binary_cross_entropy_with_logits(logits[i, c], torch.tensor(target).double())
            terms.append((min(int(g * bins), bins - 1), bce))
    regions = [r for r, _ in terms]
    divisor = len(set(regions)) if occupied_only else bins
    for region, bce in terms:
        density = regions.count(region) * divisor
        total = total + len(terms) / density * bce
    return total / len(terms)


@pytest.mark.parametrize("divide_by", ["occupied", "all"])
def test_ghmc_is_its_formula(divide_by):
    logits = (torch.randn(20, 4, dtype=torch.float64) * 2).requires_grad_()
    labels = torch.randint(-1, 5, (20,))
    labels[:2] = torch.tensor([-1, 4])
    loss = GHMCLoss(bins=10, momentum=0.0, divide_by=divide_by)(logits, labels, 123.0)
    expected = ghm_by_the_formula(logits, labels, 10, divide_by == "occupied")
    torch.testing.assert_close(loss, expected)
    a, b = (torch.autograd.grad(x, logits, retain_graph=True)[0] for x in (loss, expected))
    torch.testing.assert_close(a, b)
    assert not a[labels < 0].any()


def test_ghmc_counts_move_in_training_only_and_are_saved():
    ghm = GHMCLoss(bins=2, momentum=0.75)
    logits = torch.tensor([[-3.0, -3.0], [3.0, -3.0]])  # g small everywhere but in one place
    labels = torch.tensor([2, 2])
    ghm(logits, labels)
    assert ghm.count.tolist() == [3.0, 1.0]
    ghm(-logits, labels)
    assert ghm.count.tolist() == [0.75 * 3 + 0.25, 0.75 + 0.25 * 3]
    before = ghm.count.clone()
    with torch.no_grad():
        ghm(logits, labels)
    ghm.eval()(logits, labels)
    assert torch.equal(ghm.count, before)
    again = GHMCLoss(bins=2, momentum=0.75)
    again.load_state_dict(ghm.state_dict())
    assert torch.equal(again.count, before)
    # A region that is empty now keeps its count.
    again.train()(logits[:1], labels[:1])
    assert again.count[1] == before[1]


def ghm_of_a_level(size, values, count, momentum):
    """The sum of ``values`` by the sizes of their gradients, as mmdetection weighs them.

    Args:
        size, values: of every term, gradients from 0 to 1.
        count: the running means of the regions' counts, which are moved.
    """
    bins, loss, occupied = len(count), 0.0, 0
    region = (size * bins).long().clamp(max=bins - 1)
    for k in range(bins):
        chosen = region == k
        if chosen.any():
            count[k] = momentum * count[k] + (1 - momentum) * int(chosen.sum())
            loss = loss + values[chosen].sum() / float(count[k])
            occupied += 1
    return loss / max(occupied, 1)


def test_ghm_goes_level_by_level_as_in_mmdetection():
    """Three steps of the whole detector; both losses and their gradients."""
    model = build(small_cfg("configs/SamplingFree/retinanet_R_50_FPN_1x_ghm_authors.yaml"))
    with torch.no_grad():
        model.head.cls_score.bias.fill_(-1.0)
        model.head.cls_score.weight.mul_(30)
        model.head.bbox_pred.weight.mul_(10)
    counts = torch.zeros(30, dtype=torch.float64), torch.zeros(10, dtype=torch.float64)
    most = 0
    for seed in range(3):
        batch = make_batch((4, 2), size=128, seed=seed)
        losses, grads = train_step(model, batch)
        images = model.preprocess_image(batch)
        features = [model.backbone(images.tensor)[n] for n in model.head_in_features]
        logits, deltas = model.transpose(model.head(features))
        anchors = model.anchor_generator(features)
        labels, boxes = model.label_anchors(anchors, [x["instances"] for x in batch])
        cls = box = start = levels = 0
        for prior, z, d in zip(anchors, logits, deltas):
            end = start + len(prior)
            label, target = labels[:, start:end], boxes[:, start:end]
            valid, fg = label >= 0, (label >= 0) & (label < 3)
            one_hot = F.one_hot(label.clamp(min=0), 4)[..., :3].float()[valid]
            bce = F.binary_cross_entropy_with_logits(z[valid], one_hot, reduction="none")
            size = (z[valid].sigmoid().detach() - one_hot).abs()
            cls = cls + ghm_of_a_level(size, bce, counts[0], 0.75)
            prior = prior.tensor.expand(len(label), -1, -1)[fg]
            error = d[fg] - model.box2box_transform.get_deltas(prior, target[fg])
            root = (error**2 + 0.02**2).sqrt()
            size = (error.abs() / root).detach()
            box = box + 10 * ghm_of_a_level(size, root - 0.02, counts[1], 0.7)
            start, levels = end, levels + int(fg.any())
        most = max(most, levels)
        torch.testing.assert_close(losses["loss_cls"], cls.detach().float())
        torch.testing.assert_close(2.5 * losses["loss_box_reg"], box.detach().float())
        for loss, layer in ((cls, "cls_score"), (box, "bbox_pred")):
            weight = getattr(model.head, layer).weight
            (want,) = torch.autograd.grad(loss, weight, retain_graph=True)
            found = grads[f"head.{layer}.weight"] * (2.5 if layer == "bbox_pred" else 1.0)
            torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-6)
    assert most > 1
    parts = model.criterion.cls_loss, model.criterion.box_loss
    for part, count in zip(parts, counts):
        torch.testing.assert_close(part.count, count)


@pytest.mark.parametrize("name", ["ghmc", "ghm_r"])
def test_ghm_of_one_level_is_that_of_all(name):
    """A head without levels counts everything together."""
    levels = Levels(torch.zeros(40, dtype=torch.int64), 1)
    labels = torch.randint(-1, 4, (40,))
    for given in (None, levels):
        torch.manual_seed(0)
        one, all_ = (make(per_level=p) for p in (True, False) for make in [GHM[name]])
        for _ in range(2):
            inputs = torch.randn(40, 3 if name == "ghmc" else 4)
            if name == "ghmc":
                losses = one(inputs, labels, levels=given), all_(inputs, labels)
            else:
                index, transform = torch.arange(40), Box2BoxTransform((1.0, 1.0, 1.0, 1.0))
                prior = torch.tensor([0.0, 0, 10, 10]).expand(40, 4)
                positives = Positives(index, inputs, prior, prior, transform, levels=given)
                losses = one(positives), all_(positives)
            torch.testing.assert_close(*losses)


GHM = {
    "ghmc": lambda **kwargs: GHMCLoss(bins=5, momentum=0.0, **kwargs),
    "ghm_r": lambda **kwargs: GHMRLoss(momentum=0.5, **kwargs),
}


def test_ghmc_trains_a_detector_and_refuses_nonsense():
    path = "configs/SamplingFree/retinanet_R_50_FPN_1x_ghmc.yaml"
    losses, grads = train_step(build(small_cfg(path)), make_batch((3, 0)))
    assert losses["loss_cls"] > 0 and grads["head.cls_score.bias"].any()
    losses, _ = train_step(build(small_cfg(path)), make_batch((0, 0)))
    assert torch.isfinite(losses["loss_cls"])
    with pytest.raises(ValueError, match="bins must be 1"):
        GHMCLoss(bins=0)
    with pytest.raises(ValueError, match="divide_by"):
        GHMCLoss(divide_by="some")
    with pytest.raises(ValueError, match="per-sample|single samples"):
        build(small_cfg(path, ["MODEL.HARMONIC.ENABLED", True]))
