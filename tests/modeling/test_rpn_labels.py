"""The RPN's labels and random samples are Detectron2's, bit for bit, without its loop."""

import pytest
import torch
from detectron2.modeling.matcher import Matcher
from detectron2.modeling.proposal_generator.rpn import RPN
from detectron2.structures import Boxes, Instances
from model_kit import build, make_batch, small_cfg, train_step

from d2ext.modeling.proposal_generator.sampling import index_of_true, subsample_rows
from d2ext.testing import count_ops

FEATURES = ("p2", "p3", "p4", "p5", "p6")


def make_rpn(*overrides):
    path = "configs/Base-RCNN-FPN.yaml"
    return build(small_cfg(path, ["MODEL.PROPOSAL_GENERATOR.NAME", "ExtRPN", *overrides]))


def make_anchors(rpn, size=128):
    return rpn.anchor_generator(
        [torch.zeros(1, 1, size // s, size // s) for s in (4, 8, 16, 32, 64)]
    )


def make_targets(boxes, sizes=None):
    targets = []
    for i, rows in enumerate(boxes):
        instances = Instances(sizes[i] if sizes else (128, 128))
        instances.gt_boxes = Boxes(torch.as_tensor(rows, dtype=torch.float32).reshape(-1, 4))
        targets.append(instances)
    return targets


def random_boxes(*counts):
    return [torch.rand(n, 2).mul(90).repeat(1, 2) + torch.rand(n, 4).mul(40).sort().values
            for n in counts]  # fmt: skip


CROWD = {
    "random": lambda: random_boxes(5, 1, 9),
    "crowded": lambda: random_boxes(150, 3),
    "one image without objects": lambda: random_boxes(4, 0, 2),
    "no objects at all": lambda: random_boxes(0, 0),
    # Two equal objects, and an object between anchors that all touch it alike.
    "ties": lambda: [[[16, 16, 48, 48], [16, 16, 48, 48]], [[0, 0, 128, 128], [62, 62, 66, 66]]],
    "an object that no anchor touches": lambda: [[[900, 900, 950, 950], [8, 8, 40, 40]]],
    "an object without area": lambda: [[[20, 20, 20, 60]], [[30, 30, 70, 80]]],
}


def compare(rpn, targets):
    anchors = make_anchors(rpn)
    torch.manual_seed(3)
    want_labels, want_boxes = RPN.label_and_sample_anchors(rpn, anchors, targets)
    want_random = torch.rand(4)
    torch.manual_seed(3)
    labels, boxes = rpn.label_and_sample_anchors(anchors, targets)
    assert torch.equal(torch.rand(4), want_random)  # as many random numbers were drawn
    assert len(labels) == len(want_labels) and len(boxes) == len(want_boxes)
    for got, want in zip((*labels, *boxes), (*want_labels, *want_boxes)):
        assert got.dtype == want.dtype
        assert torch.equal(got, want)
    return labels


@pytest.fixture(scope="module")
def rpn():
    return make_rpn().proposal_generator


@pytest.mark.parametrize("name", CROWD)
def test_labels_and_samples_equal_upstream(rpn, name):
    labels = compare(rpn, make_targets(CROWD[name]()))
    flat = torch.stack(list(labels)).flatten()
    assert torch.equal(labels.positives, (flat == 1).nonzero().squeeze(1))
    assert labels.num_negatives == int((flat == 0).sum())


@pytest.mark.parametrize("threshold", [0, 16])
def test_anchors_beyond_the_border_are_left_out(rpn, monkeypatch, threshold):
    monkeypatch.setattr(rpn, "anchor_boundary_thresh", threshold)
    labels = compare(rpn, make_targets(random_boxes(6, 0, 3), [(100, 90), (128, 40), (64, 128)]))
    outside = Boxes.cat(make_anchors(rpn)).inside_box((100, 90), threshold).logical_not()
    assert outside.any() and (labels[0][outside] == -1).all()


@pytest.mark.parametrize(
    "thresholds,labels,low_quality",
    [
        ([0.5], [0, 1], False),
        ([0.3, 0.7], [-1, 0, 1], True),
        ([0.2, 0.4, 0.6], [0, -1, 0, 1], True),
    ],
)
def test_any_thresholds_equal_upstream(thresholds, labels, low_quality):
    matcher = Matcher(thresholds, labels, allow_low_quality_matches=low_quality)
    rpn = make_rpn("MODEL.RPN.IOU_THRESHOLDS", thresholds, "MODEL.RPN.IOU_LABELS", labels)
    rpn = rpn.proposal_generator
    rpn.anchor_matcher = matcher
    rpn.assigner.allow_low_quality = low_quality
    compare(rpn, make_targets(random_boxes(7, 0, 40)))


@pytest.mark.parametrize("num_samples,fraction", [(8, 0.5), (8, 0.0), (5000, 0.9)])
def test_few_and_too_many_samples(rpn, monkeypatch, num_samples, fraction):
    monkeypatch.setattr(rpn, "batch_size_per_image", num_samples)
    monkeypatch.setattr(rpn, "positive_fraction", fraction)
    compare(rpn, make_targets(random_boxes(20, 2)))


def test_a_matcher_or_sampling_of_ones_own_is_called(rpn, monkeypatch):
    class Everything(Matcher):
        def __call__(self, quality):
            matches, labels = super().__call__(quality)
            return matches, torch.ones_like(labels)

    class OwnSampling(type(rpn)):
        def _subsample_labels(self, label):
            return label.fill_(1)

    own = make_rpn().proposal_generator
    own.__class__ = OwnSampling
    labels, _ = own.label_and_sample_anchors(make_anchors(own), make_targets(random_boxes(2, 3)))
    assert all((x == 1).all() for x in labels)

    args = {"anchor_matcher": Everything([0.3], [0, 1]), "min_box_size": 0.0}
    for name in ("in_features", "anchor_generator", "box2box_transform", "criterion"):
        args[name] = getattr(rpn, name)
    args.update(head=rpn.rpn_head, batch_size_per_image=4, positive_fraction=0.5)
    args.update(pre_nms_topk=(9, 9), post_nms_topk=(9, 9), nms_thresh=0.7)
    own = type(rpn)(**args)
    labels, _ = own.label_and_sample_anchors(make_anchors(own), make_targets(random_boxes(2, 3)))
    assert [int((x == 1).sum()) for x in labels] == [2, 2] and not any(
        (x == 0).any() for x in labels
    )


def test_only_permutations_are_left_of_the_loop_over_images(rpn, monkeypatch):
    # Large matrices are taken in blocks, which bounds the memory; here it is one.
    monkeypatch.setattr(rpn.assigner, "block_pairs", 1 << 40)
    anchors = make_anchors(rpn)
    counts = []
    for sizes in ((3, 3), (3,) * 8, (200,) * 8):
        targets = make_targets(random_boxes(*sizes))
        with count_ops() as ops:
            rpn.label_and_sample_anchors(anchors, targets)
        assert ops.num_syncs == 1
        permutations = ops.by_name.pop("randperm")
        assert permutations == 2 * len(sizes)
        counts.append(ops.total - permutations)  # less the sum that makes an index of each
    assert counts[0] == counts[1] == counts[2]


def test_running_counts_find_what_nonzero_finds():
    mask = torch.rand(500) < 0.3
    index = mask.nonzero().squeeze(1)
    assert torch.equal(index_of_true(mask, len(index)), index)
    assert len(index_of_true(torch.zeros(5, dtype=torch.bool), 0)) == 0
    labels = subsample_rows(torch.full((2, 6), -1, dtype=torch.int8), 4, 0.5)
    assert len(labels.positives) == 0 and labels.num_negatives == 0
    assert (torch.stack(list(labels)) == -1).all()


def test_losses_do_not_depend_on_what_the_labels_carry():
    model = make_rpn()
    batch = make_batch((3, 0, 2))
    losses, grads = train_step(model, batch)
    rpn = model.proposal_generator
    sampled = rpn.label_and_sample_anchors

    def plain(*args):
        labels, boxes = sampled(*args)
        return list(labels), boxes

    rpn.label_and_sample_anchors = plain
    again, grads_again = train_step(model, batch)
    assert all(torch.equal(losses[k], again[k]) for k in losses)
    assert all(torch.equal(grads[k], grads_again[k]) for k in grads)
