"""Training Detectron2's own models, none of this package's, with adaptive loss weights."""

import pytest
import torch
from detectron2.config import get_cfg as upstream_cfg
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from d2ext.engine import HookBase, Trainer
from d2ext.engine.hooks import LossWeights
from d2ext.ops.loss_weights import AdaptiveLossWeight

SIZE = 64


def upstream_model(architecture):
    """A small Faster R-CNN or RetinaNet with a thin ResNet-50 and FPN, by Detectron2 alone."""
    cfg = upstream_cfg()
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.MODEL.RESNETS.NORM, cfg.MODEL.BACKBONE.FREEZE_AT = "BN", 0  # without pretrained weights
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 8
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = cfg.MODEL.FPN.OUT_CHANNELS = 16
    if architecture == "RetinaNet":
        cfg.MODEL.BACKBONE.NAME = "build_retinanet_resnet_fpn_backbone"
        features = ["res3", "res4", "res5"]
        cfg.MODEL.RETINANET.NUM_CLASSES, cfg.MODEL.RETINANET.NUM_CONVS = 3, 1
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    else:
        cfg.MODEL.BACKBONE.NAME = "build_resnet_fpn_backbone"
        features = ["res2", "res3", "res4", "res5"]
        cfg.MODEL.RPN.IN_FEATURES = ["p2", "p3", "p4", "p5", "p6"]
        cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 20
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
        cfg.MODEL.ROI_HEADS.NAME = "StandardROIHeads"
        cfg.MODEL.ROI_HEADS.IN_FEATURES = ["p2", "p3", "p4", "p5"]
        cfg.MODEL.ROI_HEADS.NUM_CLASSES = 3
        cfg.MODEL.ROI_BOX_HEAD.NAME, cfg.MODEL.ROI_BOX_HEAD.NUM_FC = "FastRCNNConvFCHead", 1
        cfg.MODEL.ROI_BOX_HEAD.FC_DIM, cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 32, 3
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = features
    torch.manual_seed(0)
    return build_model(cfg)


class Batches:
    """Batch t of an endless sequence, with the position as its state."""

    def __init__(self):
        self.position = 0

    def __iter__(self):
        return self

    def __next__(self):
        generator = torch.Generator().manual_seed(self.position)
        self.position += 1
        image = torch.rand(3, SIZE, SIZE, generator=generator) * 255
        corner = torch.rand(2, 2, generator=generator) * 24
        boxes = Boxes(torch.cat([corner, corner + 16 + 16 * corner.flip(0) / 24], 1))
        target = Instances((SIZE, SIZE), gt_boxes=boxes, gt_classes=torch.tensor([0, 2]))
        return [{"image": image, "height": SIZE, "width": SIZE, "instances": target}]

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class WeightLog(HookBase):
    """The weights each forward pass used."""

    def __init__(self, weigher):
        self.weigher, self.used = weigher, []

    def on_losses(self, loss_dict):
        self.used.append(dict(self.weigher.weights))


def trainer(architecture, output_dir="", interval=3, accumulate=1, groups=("all",)):
    model = upstream_model(architecture)
    weigher = LossWeights(
        make_weighting=lambda: AdaptiveLossWeight(1, interval, "raw", min_weight=0.1),
        groups=groups,
    )
    made = Trainer(
        model=model,
        data_loader=Batches(),
        optimizer=torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9),
        output_dir=str(output_dir),
        accumulate=accumulate,
    )
    made.weigher, made.log = weigher, WeightLog(weigher)
    made.register_hooks([weigher, made.log])
    return made


@pytest.mark.parametrize(
    "architecture, groups", [("GeneralizedRCNN", ["rpn", "roi"]), ("RetinaNet", ["dense"])]
)
def test_upstream_models_train_with_adaptive_weights(architecture, groups):
    run = trainer(architecture)
    assert not type(run.raw_model).__module__.startswith("d2ext")
    run.train(0, 8)
    assert [group.name for group in run.weigher.groups] == groups
    machines = list(run.weigher.groups.values())
    assert all(machine.num_windows == 2 for machine in machines)
    assert any(machine.num_updates for machine in machines)
    latest = run.storage.latest()
    assert latest[f"alwa/{groups[0]}/w_cls"][1] == 5  # written in the step that closed the window


def test_gradients_of_a_model_are_those_of_the_weighted_sum():
    run = trainer("RetinaNet", interval=2)
    run.train(0, 2)
    weight = run.weigher.weights["loss_cls"]
    assert weight < 1
    batch, model = next(Batches()), run.raw_model
    normalizer, parameters = model.loss_normalizer, list(run.raw_model.parameters())
    with EventStorage():
        weighted = run.weigher.on_losses(model(batch))
        model.loss_normalizer = normalizer  # each pass in training mode moves it
        losses = model(batch)
    grads = torch.autograd.grad(sum(weighted.values()), parameters)
    total = weight * losses["loss_cls"] + losses["loss_box_reg"]
    expected = torch.autograd.grad(total, parameters)
    assert all(torch.equal(a, b) for a, b in zip(grads, expected))


def test_resume_inside_a_window_is_exact(tmp_path):
    whole = trainer("RetinaNet", interval=4)
    whole.train(0, 11)
    first = trainer("RetinaNet", tmp_path, interval=4)
    first.train(0, 6)  # two steps into the second window
    first.save_checkpoint("model_0000005")
    second = trainer("RetinaNet", tmp_path, interval=4)
    second.resume_or_load()
    second.train(max_iter=11)
    assert first.log.used + second.log.used == whole.log.used
    assert second.weigher.state_dict() == whole.weigher.state_dict()
    assert whole.weigher.weights["loss_cls"] < 1
    for a, b in zip(whole.raw_model.parameters(), second.raw_model.parameters()):
        assert torch.equal(a, b)


def test_each_micro_step_of_an_accumulated_step_counts():
    run = trainer("RetinaNet", accumulate=2, interval=4)
    run.train(0, 3)
    state = run.weigher.state_dict()["groups"]["dense"]
    assert (state["num_observed"], state["num_windows"], len(run.log.used)) == (6, 1, 6)


def test_passes_outside_of_training_steps_are_not_counted():
    run = trainer("RetinaNet")
    run.train(0, 2)
    before = run.weigher.state_dict()
    with EventStorage():
        run.raw_model(next(Batches()))  # what PreciseBN and the validation loss do
    run.raw_model.eval()
    with torch.no_grad():
        run.raw_model(next(Batches()))
    assert run.weigher.state_dict() == before
