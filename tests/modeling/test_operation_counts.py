"""What a step's labels and losses cost, in counts that no load of the machine changes.

Labelling, losses and their backward pass, on predictions that are there already.
"""

import pytest
import torch
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from model_kit import build, small_cfg

from d2ext.modeling.meta_arch.decoding import best_of_level
from d2ext.ops import host
from d2ext.ops.sigmoid_losses import sigmoid_focal_loss
from d2ext.testing import count_ops, peak_bytes

SIZE = 64
FEW, MANY = 3, 200

RETINANET, FCOS, ATSS = (f"configs/Base-{name}.yaml" for name in ("RetinaNet", "FCOS", "ATSS"))
DW = "configs/DualWeighting/dw_R_50_FPN_1x.yaml"
SAMPLING_FREE = ["MODEL.SAMPLING_FREE.ENABLED", True]
HARMONIC = ["MODEL.HARMONIC.ENABLED", True]


def cls_loss(name):
    return ["MODEL.DENSE.CLS_LOSS", name]


DETECTORS = {
    "RetinaNet": (RETINANET, []),
    "RetinaNet, EFL": (RETINANET, cls_loss("efl")),
    "RetinaNet, IoU loss": (RETINANET, ["MODEL.DENSE.BOX_LOSS", "giou"]),
    "RetinaNet, Sampling-Free": (RETINANET, SAMPLING_FREE),
    "RetinaNet, Harmonic": (RETINANET, HARMONIC),
    "FCOS": (FCOS, []),
    "FCOS, BCE": (FCOS, cls_loss("bce")),
    "FCOS, QFL": (FCOS, cls_loss("qfl")),
    "FCOS, EFL": (FCOS, cls_loss("efl")),
    "FCOS, EQFL": (FCOS, cls_loss("eqfl")),
    "FCOS, GHM-C": (FCOS, cls_loss("ghmc")),
    "FCOS, Sampling-Free": (FCOS, SAMPLING_FREE),
    "FCOS, Harmonic": (FCOS, HARMONIC),
    "FCOS, Harmonic and EFL": (FCOS, [*HARMONIC, *cls_loss("efl")]),
    "ATSS": (ATSS, []),
    "ATSS, EFL": (ATSS, cls_loss("efl")),
    "ATSS, Harmonic": (ATSS, HARMONIC),
    "DualWeightingFCOS": (DW, []),
}


def make_targets(num_images, num_objects):
    targets = []
    for _ in range(num_images):
        corner = torch.rand(num_objects, 2) * SIZE / 2
        size = 8 + torch.rand(num_objects, 2) * (SIZE / 2 - 8)
        boxes = Boxes(torch.cat([corner, corner + size], dim=1))
        classes = torch.randint(0, 3, (num_objects,))
        targets.append(Instances((SIZE, SIZE), gt_boxes=boxes, gt_classes=classes))
    return targets


def count_step(model, num_images, num_objects):
    """Operations of labels, losses and backward of one step, given the predictions."""
    model.train()
    images = ImageList(torch.zeros(num_images, 3, SIZE, SIZE), [(SIZE, SIZE)] * num_images)
    with torch.no_grad():
        features = model.backbone(torch.randn(num_images, 3, SIZE, SIZE))
        features = [features[name] for name in model.head_in_features]
        predictions = [[x.requires_grad_() for x in levels] for levels in model.head(features)]
    targets = make_targets(num_images, num_objects)
    # Not step 19, 39, ..., in which some figures are read for the log.
    with EventStorage(1), count_ops() as ops:
        losses = model.forward_training(images, features, predictions, targets)
        sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    return ops


@pytest.mark.parametrize("name", DETECTORS)
def test_a_step_costs_the_same_for_any_number_of_images_and_objects(name, monkeypatch):
    # Count what a GPU would be waited for.
    monkeypatch.setattr(host, "asking_is_free", lambda tensor: False)
    path, overrides = DETECTORS[name]
    model = build(small_cfg(path, overrides))
    count_step(model, 2, FEW)  # a process's first step makes what is kept
    steps = [count_step(model, *shape) for shape in ((2, FEW), (8, FEW), (2, MANY))]
    totals = [ops.total for ops in steps]
    assert totals[0] == totals[1] == totals[2], totals
    for ops in steps:
        assert ops.num_syncs <= 1, ops.syncs


@pytest.mark.parametrize("overrides", [[], SAMPLING_FREE], ids=["sampled", "Sampling-Free"])
def test_the_rpn_waits_once_and_only_its_permutations_grow(overrides, monkeypatch):
    monkeypatch.setattr(host, "asking_is_free", lambda tensor: False)
    overrides = ["MODEL.PROPOSAL_GENERATOR.NAME", "ExtRPN", *overrides]
    rpn = build(small_cfg("configs/Base-RCNN-FPN.yaml", overrides)).proposal_generator
    rpn.assigner.block_pairs = 1 << 40  # objects x anchors in one block, however large
    totals = []
    for num_images, num_objects in ((2, FEW), (8, FEW), (2, MANY)):
        features = [torch.zeros(num_images, 1, SIZE // s, SIZE // s) for s in (4, 8, 16, 32, 64)]
        anchors = rpn.anchor_generator(features)
        shapes = [(num_images, len(x)) for x in anchors]
        logits = [torch.randn(shape).requires_grad_() for shape in shapes]
        deltas = [torch.randn(*shape, 4).requires_grad_() for shape in shapes]
        targets = make_targets(num_images, num_objects)
        with EventStorage(1), count_ops() as ops:
            labels, boxes = rpn.label_and_sample_anchors(anchors, targets)
            losses = rpn.losses(anchors, logits, labels, deltas, boxes)
            sum(losses.values()).backward()
        assert ops.num_syncs == 1, ops.syncs
        permutations = ops.by_name["randperm"]
        assert permutations == (0 if overrides[2:] else 2 * num_images)
        totals.append(ops.total - 2 * permutations)  # and the sum that makes an index of each
    assert totals[0] == totals[1] == totals[2], totals


def test_upstream_would_not_pass():
    """The count sees what it is for: upstream's losses cost more for more images."""
    from detectron2.modeling.meta_arch.retinanet import RetinaNet

    model = build(small_cfg(RETINANET, ["MODEL.META_ARCHITECTURE", "RetinaNet"]))
    assert type(model) is RetinaNet
    few, many = (count_step(model, n, FEW) for n in (2, 8))
    assert many.total > few.total + 100 and many.num_syncs > few.num_syncs > 1


@pytest.mark.parametrize("limit", [100, 1000])
def test_the_best_of_1203_classes_need_memory_for_themselves_only(limit, monkeypatch):
    scores = torch.rand(3000, 1203)
    sizes = []
    topk = torch.Tensor.topk
    monkeypatch.setattr(
        torch.Tensor, "topk", lambda x, *a, **k: (sizes.append(x.numel()), topk(x, *a, **k))[1]
    )
    peak = peak_bytes(lambda: best_of_level(scores, 0.0, limit))
    # The rows' maxima, and the rows of the best: not one index for each of the scores.
    assert peak < 4 * (2 * limit * 1203 + 20 * len(scores))
    assert peak < 8 * scores.numel() / 2
    assert max(sizes) <= max(limit * 1203, len(scores))


def test_the_best_of_a_level_are_the_best_of_all_scores():
    for rows, classes, limit in ((50, 7, 10), (50, 7, 400), (6, 9, 20), (50, 1, 10), (0, 4, 5)):
        scores = torch.rand(rows, classes)
        prior, cls, best = best_of_level(scores, 0.3, limit)
        want, index = scores.flatten().topk(min(limit, scores.numel()))
        keep = want > 0.3
        assert torch.equal(best, want[keep])
        assert torch.equal(prior * classes + cls, index[keep])


def test_a_class_below_its_threshold_takes_no_place_of_another():
    for rows, limit in ((50, 10), (6, 9), (0, 4)):
        scores, thresholds = torch.rand(rows, 5), torch.tensor([0.99, 0.9, 0.5, 0.1, 0.01])
        prior, cls, best = best_of_level(scores, thresholds, limit)
        above = scores[scores > thresholds]
        assert torch.equal(best, above.sort(descending=True).values[:limit])
        assert torch.equal(best, scores[prior, cls]) and (best > thresholds[cls]).all()


def test_the_focal_loss_needs_half_the_memory_of_fvcores():
    from fvcore.nn import sigmoid_focal_loss_jit

    rows, classes = 11000, 80
    logits = torch.randn(rows, classes).requires_grad_()
    labels = torch.randint(0, classes + 1, (rows,))
    target = torch.zeros(rows, classes)  # what it costs to make is left out
    focal = {"alpha": 0.25, "gamma": 2.0}

    def ours():
        logits.grad = None
        sigmoid_focal_loss(logits, labels, **focal).backward()

    def fvcores():
        logits.grad = None
        sigmoid_focal_loss_jit(logits, target, reduction="sum", **focal).backward()

    for _ in range(3):  # TorchScript optimises in its second call
        ours(), fvcores()
    logits.grad = None
    peaks = [peak_bytes(ours), peak_bytes(fvcores)]
    assert peaks[0] < peaks[1] / 2, peaks
