"""MODEL.DENSE.ASSIGNER: every assigner on every dense detector, and what it may see and say."""

import pytest
import torch
from model_kit import build, make_batch, small_cfg, train_step

from d2ext.modeling.assigners import ASSIGNER_REGISTRY, Assigner, Assignment, Priors
from d2ext.modeling.losses.normalizers import PositiveNormalizer
from d2ext.modeling.sampling_free import measure_priors

ONE_ANCHOR = [
    "MODEL.ANCHOR_GENERATOR.SIZES", [[8 * 2**i] for i in range(3, 8)],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]],
]  # fmt: skip
PATHS = {name: f"configs/Base-{name}.yaml" for name in ("RetinaNet", "FCOS", "ATSS")}
OWN = {"RetinaNet": "iou", "FCOS": "center", "ATSS": "atss"}
LOC = {"RetinaNet": "loss_box_reg", "FCOS": "loss_fcos_loc", "ATSS": "loss_box_reg"}
CLS = {"RetinaNet": "loss_cls", "FCOS": "loss_fcos_cls", "ATSS": "loss_cls"}


@pytest.fixture
def inside():
    """Registers an assigner that sees predictions, for as long as a test runs."""

    @ASSIGNER_REGISTRY.register("inside_by_score")
    class InsideByScore(Assigner):
        """Priors inside an object; target and weight are half the score of the first class."""

        needs_predictions = True
        seen = []

        def __call__(self, priors, targets, num_classes, predictions):
            self.seen.append((priors, predictions))
            shape = predictions.logits.shape[:2]
            labels = torch.full(shape, num_classes)
            matched = torch.zeros(shape, dtype=torch.int64)
            for g, (box, image) in enumerate(zip(targets.boxes, targets.image)):
                near = ((priors.centers > box[:2]) & (priors.centers < box[2:])).all(dim=1)
                labels[image, near], matched[image, near] = targets.classes[g], g
            target = predictions.logits[..., 0].sigmoid() / 2
            target = target.masked_fill(labels == num_classes, 0.0)
            return Assignment(labels, matched, target=target, weights=target)

    yield InsideByScore
    del ASSIGNER_REGISTRY._entries["inside_by_score"]


def model_of(name, assigner, *overrides):
    words = [*(ONE_ANCHOR if name == "RetinaNet" else []), *overrides]
    return build(small_cfg(PATHS[name], [*words, "MODEL.DENSE.ASSIGNER", assigner]))


@pytest.mark.parametrize("assigner", ["iou", "center", "atss", "inside_by_score"])
@pytest.mark.parametrize("name", PATHS)
def test_every_assigner_trains_every_detector(name, assigner, inside):
    model = model_of(name, assigner)
    losses, grads = train_step(model, make_batch())
    assert all(loss.isfinite() for loss in losses.values())
    assert losses[LOC[name]] > 0 and grads["head.bbox_pred.weight"].abs().sum() > 0
    losses, _ = train_step(model, make_batch((0, 0)))
    assert all(loss.isfinite() for loss in losses.values()) and losses[LOC[name]] == 0


@pytest.mark.parametrize("name", PATHS)
def test_auto_is_the_detectors_own(name):
    batch = make_batch()
    losses, grads = train_step(model_of(name, "auto"), batch)
    same, same_grads = train_step(model_of(name, OWN[name]), batch)
    assert losses == same
    assert all(torch.equal(grads[key], same_grads[key]) for key in grads)


def test_places_are_not_assigned_where_they_have_several_anchors():
    for name, words in (("RetinaNet", []), ("ATSS", ["MODEL.ATSS.ANCHOR_SCALES", [6.0, 8.0]])):
        words = [*words, "MODEL.DENSE.ASSIGNER", "center"]
        with pytest.raises(ValueError, match="'center', which knows places only"):
            build(small_cfg(PATHS[name], words))


def test_no_part_reads_the_key_elsewhere():
    words = ["MODEL.DENSE.ASSIGNER", "atss"]
    with pytest.raises(ValueError, match="has losses of its own, which MODEL.DENSE.ASSIGNER"):
        build(small_cfg("configs/DualWeighting/dw_R_50_FPN_1x.yaml", words))
    with pytest.raises(ValueError, match="ASSIGNER must be one of .*not 'uio'|ASSIGNER .*'uio'"):
        model_of("FCOS", "uio")


def test_a_point_outside_its_object_has_no_centerness():
    """An IoU assigner gives an object its best square, wherever that one's centre is."""
    batch = make_batch((1, 1))
    batch[0]["instances"].gt_boxes.tensor[:] = torch.tensor([3.0, 3.0, 90.0, 3.5])
    losses, _ = train_step(model_of("FCOS", "iou"), batch)
    assert all(loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("name", PATHS)
def test_an_assigner_sees_detached_predictions_and_strides(name, inside):
    model = model_of(name, "inside_by_score")
    del inside.seen[:]
    train_step(model, make_batch())
    ((priors, predictions),) = inside.seen
    num_priors = len(priors.boxes)
    assert predictions.logits.shape == (2, num_priors, 3)
    assert predictions.boxes.shape == (2, num_priors, 4)
    assert not predictions.logits.requires_grad and not predictions.boxes.requires_grad
    assert predictions.objectness is None
    assert priors.strides.shape == (num_priors,)
    assert priors.strides.unique().tolist() == [8, 16, 32, 64, 128]
    if name == "FCOS":
        assert torch.equal(priors.strides, priors.boxes[:, 2] - priors.boxes[:, 0])
        wide = priors.widened(8)
        assert torch.equal(wide.centers, priors.centers)
        assert torch.equal(wide.boxes[:, 2] - wide.boxes[:, 0], 8 * priors.strides)


@pytest.mark.parametrize("loss", ["focal", "qfl", "eqfl"])
@pytest.mark.parametrize("name", PATHS)
def test_soft_targets_and_weights_reach_the_losses(name, loss, inside):
    """Against the same sums, by hand."""
    words = ["MODEL.DENSE.CLS_LOSS", loss, "MODEL.DENSE.BOX_LOSS", "giou"]
    words += ["MODEL.ATSS.BBOX_REG_LOSS_WEIGHT", 1.0]
    model = model_of(name, "inside_by_score", *words)
    assert isinstance(model.normalizer, PositiveNormalizer) and model.normalizer.sync
    caught = {}
    forward = model.criterion.forward

    def watch(logits, labels, positives, **kwargs):
        caught.update(logits=logits, labels=labels, positives=positives, **kwargs)
        return forward(logits, labels, positives, **kwargs)

    model.criterion.forward = watch
    losses, _ = train_step(model, make_batch())
    positive = caught["labels"] < 3
    target = caught["logits"][:, 0].detach().sigmoid() / 2 * positive
    total = target.sum().clamp(min=1)
    assert target.sum() > 0 and torch.allclose(caught["target"], target)
    assert torch.allclose(torch.as_tensor(caught["cls_normalizer"]), total)
    with torch.no_grad():
        rows = caught["positives"]
        box = (model.criterion.box_loss(rows) * target[positive]).sum() / total
        quality = target if loss != "focal" else None
        cls = model.criterion.cls_loss(caught["logits"], caught["labels"], total, quality)
    assert losses[LOC[name]] == pytest.approx(float(box), rel=1e-5)
    if loss != "eqfl":  # whose state has moved
        assert losses[CLS[name]] == pytest.approx(float(cls), rel=1e-5)


def test_the_prior_cannot_be_counted_by_predictions(inside):
    words = ["MODEL.SAMPLING_FREE.ENABLED", True]
    with pytest.raises(ValueError, match="the prior cannot be counted before training"):
        model_of("FCOS", "inside_by_score", *words)
    words += ["MODEL.SAMPLING_FREE.PRIOR", 0.01]
    model = model_of("FCOS", "inside_by_score", *words)
    losses, _ = train_step(model, make_batch())
    assert torch.isfinite(sum(losses.values()))
    with pytest.raises(ValueError, match="assigns by predictions, and label_anchors was given"):
        measure_priors(model, [make_batch()], show_progress=False)


def test_any_callable_serves_a_detector():
    """A registered class without a base, and one put in place in Python."""

    @ASSIGNER_REGISTRY.register("nobody")
    class Nobody:
        def __call__(self, priors: Priors, targets, num_classes):
            shape = (targets.num_images, len(priors.boxes))
            labels = torch.full(shape, num_classes)
            return Assignment(labels, torch.zeros_like(labels))

    try:
        model = model_of("FCOS", "nobody")
    finally:
        del ASSIGNER_REGISTRY._entries["nobody"]
    losses, _ = train_step(model, make_batch())
    assert losses["loss_fcos_loc"] == 0 and losses["loss_fcos_cls"] > 0
