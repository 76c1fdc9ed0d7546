"""Assigners that see predictions, and what box losses are told, in whole detectors."""

import pytest
import torch
from detectron2.utils.events import EventStorage
from model_kit import build, make_batch, small_cfg

from d2ext.losses import MPDIoULoss
from d2ext.modeling.assigners import ASSIGNER_REGISTRY, Predictions, Priors, pack_targets
from d2ext.ops import host
from d2ext.testing import count_ops

FCOS, ATSS = "configs/Demo/fcos_shapes.yaml", "configs/Demo/atss_shapes.yaml"
NAMES = ("tal_tood", "tal_yolo", "simota", "dsl")


def assign(name, counts=(3, 0), objectness=None, **options):
    """An assignment on two levels, and the objects."""
    g = torch.Generator().manual_seed(0)
    cells = [(x, y, s) for s in (8, 16) for y in range(0, 96, s) for x in range(0, 96, s)]
    boxes = torch.tensor([[x, y, x + s, y + s] for x, y, s in cells], dtype=torch.float32)
    priors = Priors(boxes, (144, 36), (8, 16))
    targets = pack_targets([x["instances"] for x in make_batch(counts)])
    grow = torch.rand(2, len(boxes), 4, generator=g) * 30 * torch.tensor([-1, -1, 1, 1])
    logits = torch.randn(2, len(boxes), 3, generator=g)
    assigner = ASSIGNER_REGISTRY.get(name)(**options)
    return assigner(priors, targets, 3, Predictions(logits, boxes + grow, objectness)), targets


@pytest.mark.parametrize("name", NAMES)
def test_targets_are_soft_and_weigh_boxes_where_the_paper_says_so(name):
    assignment, targets = assign(name)
    positive = assignment.labels < 3
    assert positive[0].any() and not positive[1].any()
    assert torch.equal(assignment.labels[positive], targets.classes[assignment.matched[positive]])
    assert (assignment.target > 0).equal(positive)
    if name.startswith("tal"):
        assert assignment.weights is assignment.target
    else:
        assert assignment.weights is None and torch.equal(assignment.target, assignment.quality)
    empty, _ = assign(name, counts=(0, 0))
    assert (empty.labels == 3).all() and not empty.target.any()


def test_options_reach_the_operation():
    many, _ = assign("tal_yolo", topk=10)
    one, targets = assign("tal_yolo", topk=10, topk2=1)
    assert (one.labels < 3).sum() <= len(targets.boxes) < (many.labels < 3).sum()
    few, _ = assign("tal_tood", topk=1)
    assert (few.labels < 3).sum() <= len(targets.boxes)
    cfg = small_cfg(FCOS, ["MODEL.DENSE.ASSIGNER", "simota", "MODEL.SIMOTA.CENTER_RADIUS", 1.5])
    assert build(cfg).assigner.options["center_radius"] == 1.5


def test_an_objectness_multiplies_the_scores():
    plain, _ = assign("tal_tood")
    certain, _ = assign("tal_tood", objectness=torch.full((2, 180), 50.0))
    # The root of the scores orders as they do, but not their products with overlaps.
    assert not torch.equal(plain.target, certain.target)
    never, _ = assign("tal_tood", objectness=torch.full((2, 180), -200.0))
    assert (never.labels == 3).all()


@pytest.mark.parametrize("name", NAMES)
def test_a_step_has_two_syncs_whatever_the_number_of_objects(name, monkeypatch):
    """One for the candidates of the assigner, one for the positives of the detector."""
    model = build(small_cfg(FCOS, ["MODEL.DENSE.ASSIGNER", name])).train()
    monkeypatch.setattr(host, "asking_is_free", lambda tensor: False)
    for counts in ((2, 1), (9, 7)):
        images = model.preprocess_image(batch := make_batch(counts, size=64))
        features = model.backbone(images.tensor)
        features = [features[f] for f in model.head_in_features]
        objects = [x["instances"] for x in batch]
        with EventStorage(), count_ops() as ops:
            model.forward_training(images, features, model.head(features), objects)
        assert ops.num_syncs == 2, ops.syncs


@pytest.mark.parametrize(
    "config", [FCOS, ATSS, "configs/Demo/faster_rcnn_shapes.yaml"], ids=["fcos", "atss", "rcnn"]
)
def test_mpdiou_is_told_the_size_of_each_positives_image(config, monkeypatch):
    keys = ("MODEL.DENSE.BOX_LOSS", "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE")
    model = build(small_cfg(config, [keys["rcnn" in config], "mpdiou"])).train()
    seen = []
    forward = MPDIoULoss.forward
    monkeypatch.setattr(MPDIoULoss, "forward", lambda self, p: seen.append(p) or forward(self, p))
    with EventStorage():
        model(make_batch((2, 2), size=64))  # 64 x 64 and 64 x 96
    (positives,) = seen
    assert positives.image_sizes.shape == (len(positives), 2)
    assert {tuple(x) for x in positives.image_sizes.tolist()} == {(64, 64), (64, 96)}
