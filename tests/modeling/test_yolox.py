"""YOLOX as EFL's authors train it, against their own modules, and its parts.

The vectors come from mmdetection's network (its outputs equal United-Perception's to 1e-13) and
from United-Perception's assigner, losses, decoding and selection.
"""

import json

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from golden_kit import golden
from model_kit import make_batch, train_step

from d2ext import get_cfg
from d2ext.convert import convert_checkpoint
from d2ext.modeling.meta_arch.yolox import CornerTransform
from d2ext.modeling.targets import Priors, pack_targets

BRANCHES = ("cls", "reg", "iou")


IP = "configs/YOLOX/yolox_ip_s_300e_focal.yaml"


def yolox_cfg(num_classes=3, width=0.0625, depth=0.33, path=IP):
    cfg = get_cfg()
    cfg.merge_from_file(path)
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.CSPDARKNET.WIDTH, cfg.MODEL.CSPDARKNET.DEPTH = width, depth
    cfg.MODEL.ATSS.NUM_CLASSES = num_classes
    return cfg


def arrays(name):
    found = golden("yolox", name)
    return found, json.loads(str(found["meta"]))


def error(actual, expected):
    expected = torch.as_tensor(expected).double()
    return float((actual.double() - expected).abs().max() / expected.abs().max())


class Net:
    """The network of the vectors, in one of the two forms of the neck."""

    def __init__(self, variant):
        self.data, meta = arrays("net_s")
        self.cfg = yolox_cfg(meta["num_classes"], meta["widen"], meta["deepen"])
        self.cfg.MODEL.CSPDARKNET.NECK_SHORTCUT = variant == "up"
        self.state = {
            k[len("state/") :]: torch.from_numpy(self.data[k])
            for k in self.data
            if k.startswith("state/")
        }
        self.model = self.load(self.state, "yolox")

    def load(self, state, source):
        model = build_model(self.cfg)
        converted, _ = convert_checkpoint(state, source, self.cfg)
        model.load_state_dict(converted, strict=False)
        return model.double()

    def outputs(self, image=None):
        if image is None:
            image = torch.from_numpy(self.data["image"]).double()
        maps = self.model.backbone(image)
        return self.model.head([maps[name] for name in self.model.head_in_features])


@pytest.mark.parametrize("variant", ["up", "yolox"])
@pytest.mark.parametrize("mode", ["eval", "train"])
def test_network(variant, mode):
    net = Net(variant)
    net.model.train(mode == "train")
    with torch.no_grad():
        outputs = net.outputs()
    for branch, maps in zip(BRANCHES, outputs):
        for i in range(3):
            assert error(maps[i], net.data[f"{variant}/{mode}/{branch}{i}"]) < 1e-9


def test_gradients_and_statistics():
    net = Net("up")
    net.model.train()
    outputs = net.outputs()
    maps = [m for branch in outputs for m in branch]
    weights = [torch.from_numpy(net.data[f"loss_weight{i}"]).double() for i in range(9)]
    loss = sum((w * m).mean() for w, m in zip(weights, maps))
    assert float(loss) == pytest.approx(float(net.data["up/train/loss"]), rel=1e-6)
    loss.backward()
    names = {theirs: ours for theirs in net.state for ours in convert_name(theirs, net.cfg)}
    parameters = dict(net.model.named_parameters())
    buffers = dict(net.model.named_buffers())
    checked = 0
    for key in net.data:
        kind, _, name = key.removeprefix("up/train/").partition("/")
        if not key.startswith("up/train/") or not name:
            continue
        if kind == "grad":
            assert error(parameters[names[name]].grad, net.data[key]) < 1e-9
        elif kind == "gradnorm":
            norm, expected = parameters[names[name]].grad.norm(), float(net.data[key])
            assert float(norm) == pytest.approx(expected, rel=1e-8, abs=1e-10)
        else:
            assert error(buffers[names[name]], net.data[key]) < 1e-6
        checked += 1
    assert checked > 200


def convert_name(name, cfg):
    from d2ext.convert.names import rename
    from d2ext.convert.yolox import MMDET_YOLOX

    return list(rename({name: torch.zeros(1)}, MMDET_YOLOX.rules(cfg), ""))


def test_names_of_united_perception():
    """The same weights under the authors' names, the stem's corners in their order."""
    net = Net("up")
    theirs = {}
    for name, value in net.state.items():
        if name == "backbone.stem.conv.conv.weight":
            groups = value.view(len(value), 4, 3, 3, 3)
            value = groups[:, [0, 2, 1, 3]].reshape(value.shape)
        theirs[united_perception_name(name)] = value
    theirs["post_process.cls_loss.pos_neg"] = torch.rand(6)
    net.cfg.MODEL.DENSE.CLS_LOSS = "efl"
    again = net.load({"ema": {"ema_state_dict": theirs}}, "efl")
    for key, value in net.model.state_dict().items():
        if not key.startswith("criterion"):
            assert torch.equal(again.state_dict()[key], value), key
    stored = theirs["post_process.cls_loss.pos_neg"].double()
    assert torch.equal(again.criterion.cls_loss.pos_neg, stored)


def united_perception_name(name):
    import re

    name = name.replace(".bn.", ".bn1.")
    for theirs, mmdet in (
        ("backbone.stem.conv_block.", "backbone.stem.conv."),
        ("neck.lateral_conv0.", "neck.reduce_layers.0."),
        ("neck.reduce_conv1.", "neck.reduce_layers.1."),
        ("neck.bu_conv2.", "neck.downsamples.0."),
        ("neck.bu_conv1.", "neck.downsamples.1."),
        ("neck.C3_p4.", "neck.top_down_blocks.0."),
        ("neck.C3_p3.", "neck.top_down_blocks.1."),
        ("neck.C3_n3.", "neck.bottom_up_blocks.0."),
        ("neck.C3_n4.", "neck.bottom_up_blocks.1."),
        ("roi_head.stems.", "neck.out_convs."),
    ):
        if name.startswith(mmdet):
            name = theirs + name[len(mmdet) :]
    name = re.sub(r"stage4\.1\.conv([12])", r"stage4.1.conv_block\1", name)
    name = re.sub(r"stage(\d)", lambda m: f"dark{int(m[1]) + 1}", name)
    name = re.sub(r"bbox_head\.multi_level_(cls|reg)_convs", r"roi_head.\1_convs", name)
    name = re.sub(r"bbox_head\.multi_level_conv_(cls|reg|obj)", r"roi_head.\1_preds", name)
    for number, part in enumerate(("main_conv", "short_conv", "final_conv"), start=1):
        name = name.replace(part, f"conv{number}")
    return name.replace(".blocks.", ".m.")


@pytest.mark.parametrize(
    "depth, width, num_classes, scales, total",
    [
        (0.33, 0.5, 1203, [3.0, 4.0], 9_870_352),
        (0.67, 0.75, 1203, [3.0, 4.0], 26_676_144),
        (0.33, 0.5, 80, [8.0], 8_968_255),
        (0.67, 0.75, 80, [8.0], 25_326_495),
        (0.33, 0.125, 60, [3.0, 4.0], 576_310),
    ],
)
def test_parameters(depth, width, num_classes, scales, total):
    cfg = yolox_cfg(num_classes, width, depth)
    cfg.MODEL.ATSS.ANCHOR_SCALES = scales
    cfg.MODEL.DEVICE = "meta"
    assert sum(p.numel() for p in build_model(cfg).parameters()) == total


@pytest.mark.parametrize("case", ["none", "one", "few", "crowded", "tiny", "border"])
def test_assignment(case):
    data, meta = arrays("atss")
    cfg = yolox_cfg(meta["num_classes"])
    model = build_model(cfg)
    size = (meta["height"], meta["width"])
    features = [torch.zeros(1, 1, size[0] // s, size[1] // s) for s in meta["strides"]]
    anchors = model.anchor_generator(features)
    assert np.abs(Boxes.cat(anchors).tensor.numpy() - data["anchors"]).max() == 0
    boxes = torch.from_numpy(data[f"{case}/gt_boxes"]).float().reshape(-1, 4)
    classes = torch.from_numpy(data[f"{case}/gt_classes"]).long()
    targets = pack_targets([Instances(size, gt_boxes=Boxes(boxes), gt_classes=classes)])
    found = model.assigner(Priors.from_boxes(anchors), targets, meta["num_classes"])
    assert found.labels[0].tolist() == data[f"{case}/labels_d2"].tolist()
    positive = data[f"{case}/matched"] >= 0
    assert (found.matched[0].numpy()[positive] == data[f"{case}/matched"][positive]).all()


class Losses:
    """Predictions and objects of the vectors, and what our detector makes of them."""

    def __init__(self, name, loss):
        self.data, meta = arrays(name)
        cfg = yolox_cfg(meta["num_classes"])
        cfg.MODEL.DENSE.CLS_LOSS = loss
        self.model = build_model(cfg).double().train()
        self.model.criterion.cls_loss.pos_neg.copy_(torch.from_numpy(self.data["pos_neg"]))
        self.maps = [
            [torch.from_numpy(self.data[f"{b}{i}"]).double().requires_grad_() for i in range(3)]
            for b in BRANCHES
        ]
        size, count = (meta["height"], meta["width"]), meta["batch"]
        self.images = ImageList(torch.zeros(count, 3, *size), [size] * count)
        self.instances = []
        for i in range(count):
            boxes = torch.from_numpy(self.data[f"gt_boxes{i}"]).double().reshape(-1, 4)
            classes = torch.from_numpy(self.data[f"gt_classes{i}"]).long()
            self.instances.append(Instances(size, gt_boxes=Boxes(boxes), gt_classes=classes))


@pytest.mark.parametrize("loss", ["efl", "eqfl"])
@pytest.mark.parametrize("name", ["losses", "losses_empty"])
def test_losses(name, loss):
    case = Losses(name, loss)
    with EventStorage():
        found = case.model.forward_training(case.images, case.maps[0], case.maps, case.instances)
    expected = {
        "loss_cls": case.data[f"{loss}/cls_loss"],
        "loss_box_reg": case.data["giou_part"],
        "loss_l1": case.data["l1_part"],
        "loss_quality": case.data[f"{loss}/iou_loss"],
    }
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert float(found[key].detach()) == pytest.approx(float(value), rel=1e-6, abs=1e-12), key
    sum(found.values()).backward()
    for branch, maps in zip(BRANCHES, case.maps):
        for i in range(3):
            key = f"{loss if branch == 'cls' else 'efl'}/grad_{branch}{i}"
            if key in case.data and np.abs(case.data[key]).max() > 0:
                assert error(maps[i].grad, case.data[key]) < 1e-5, key
            else:
                assert maps[i].grad.abs().max() == 0


@pytest.mark.parametrize("name", ["losses", "losses_empty"])
@torch.no_grad()
def test_detections(name):
    case = Losses(name, "efl")
    model = case.model.float().eval()
    maps = [[m.detach().float() for m in branch] for branch in case.maps]
    for i, found in enumerate(model.forward_inference(case.images, maps[0], maps)):
        assert found.pred_classes.tolist() == case.data[f"dets{i}/classes"].tolist()
        assert np.abs(found.scores.numpy() - case.data[f"dets{i}/scores"]).max() < 1e-6
        boxes = found.pred_boxes.tensor.numpy()
        assert np.abs(boxes - case.data[f"dets{i}/boxes"]).max() < 1e-3


@pytest.mark.parametrize("loss", ["focal", "qfl", "efl", "eqfl"])
def test_a_step_of_training(loss):
    cfg = yolox_cfg()
    cfg.MODEL.DENSE.CLS_LOSS = loss
    torch.manual_seed(0)
    model = build_model(cfg)
    losses, grads = train_step(model, make_batch(size=96))
    assert all(value.isfinite() for value in losses.values())
    assert all(g.isfinite().all() for g in grads.values()) and len(grads) > 100


def test_frozen_stages_and_their_normalisations():
    cfg = yolox_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    bottom_up = build_model(cfg).train().backbone.bottom_up
    fixed = [*bottom_up.stem.parameters(), *bottom_up.stage1.parameters()]
    assert fixed and not any(p.requires_grad for p in fixed)
    assert all(p.requires_grad for p in bottom_up.stage2.parameters())
    before = {k: v.clone() for k, v in bottom_up.stem.state_dict().items()}
    bottom_up(torch.rand(2, 3, 64, 64) * 255)
    assert all(torch.equal(v, before[k]) for k, v in bottom_up.stem.state_dict().items())


def plain_cfg(num_classes=5, **keys):
    """YOLOX itself: points, SimOTA, objectness."""
    cfg = yolox_cfg(path="configs/YOLOX/yolox_s_300e.yaml")
    cfg.MODEL.YOLOX.NUM_CLASSES = num_classes
    cfg.MODEL.YOLOX.L1_FROM_ITER = 0
    for key, value in keys.items():
        cfg.MODEL.YOLOX[key] = value
    return cfg


@pytest.mark.parametrize("mode", ["eval", "train"])
def test_plain_yolox_loads_mmdetections_weights(mode):
    """The vectors' network with the first of its two anchors: the maps are its channels."""
    net = Net("yolox")
    classes = net.cfg.MODEL.ATSS.NUM_CLASSES
    numbers = {"cls": classes, "reg": 4, "iou": 1}
    state = dict(net.state)
    for branch, count in numbers.items():
        for name in state:
            if f"multi_level_conv_{'obj' if branch == 'iou' else branch}." in name:
                state[name] = state[name][:count]
    net.cfg = plain_cfg(classes)
    net.model = net.load(state, "yolox").train(mode == "train")
    with torch.no_grad():
        outputs = net.outputs()
    for (branch, count), maps in zip(numbers.items(), outputs):
        for i in range(3):
            expected = net.data[f"yolox/{mode}/{branch}{i}"][:, :count]
            assert error(maps[i], expected) < 1e-9


@pytest.mark.parametrize("case", ["l1", "no_l1"])
def test_plain_losses(case):
    data = golden("yolox", "mmdet_losses")
    model = build_model(plain_cfg(L1_FROM_ITER=0 if case == "l1" else 1)).train()
    maps = [
        [torch.from_numpy(data[f"{case}/{b}{i}"]).requires_grad_() for i in range(3)]
        for b in ("cls", "reg", "obj")
    ]
    size = (128, 160)
    instances = [
        Instances(
            size,
            gt_boxes=Boxes(torch.from_numpy(data[f"{case}/gt_boxes{i}"]).reshape(-1, 4)),
            gt_classes=torch.from_numpy(data[f"{case}/gt_classes{i}"]),
        )
        for i in range(3)
    ]
    images = ImageList(torch.zeros(3, 3, *size), [size] * 3)
    with EventStorage():
        found = model.forward_training(images, maps[0], maps, instances)
    names = {"loss_cls": "loss_cls", "loss_box_reg": "loss_bbox", "loss_obj": "loss_obj"}
    names.update({"loss_l1": "loss_l1"} if case == "l1" else {})
    assert found.keys() == names.keys()
    for ours, theirs in names.items():
        expected = float(data[f"{case}/{theirs}"])
        assert float(found[ours].detach()) == pytest.approx(expected, rel=1e-6), ours
    if case == "l1":
        sum(found.values()).backward()
        for branch, kind in zip(("cls", "reg", "obj"), maps):
            for i in range(3):
                assert error(kind[i].grad, data[f"l1/grad_{branch}{i}"]) < 1e-6


def test_corner_transform():
    transform = CornerTransform()
    cells = torch.tensor([[8.0, 16.0, 16.0, 24.0]]).double()
    boxes = torch.tensor([[3.0, 5.0, 40.0, 50.0]]).double()
    deltas = transform.get_deltas(cells, boxes)
    assert torch.allclose(transform.apply_deltas(deltas, cells), boxes)
    # The centre counts from the corner.
    center = transform.apply_deltas(torch.zeros(1, 4).double(), cells)
    assert center.tolist() == [[4.0, 12.0, 12.0, 20.0]]
    huge = transform.apply_deltas(torch.full((1, 4), 1e4).double(), cells)
    assert huge.isfinite().all()


@pytest.mark.parametrize("assigner", ["simota", "center", "atss", "iou"])
@pytest.mark.parametrize("classify, loss", [("positives", "qfl"), ("all", "efl")])
def test_a_step_of_plain_training(assigner, classify, loss):
    cfg = plain_cfg(3, CLASSIFY=classify)
    cfg.MODEL.DENSE.ASSIGNER, cfg.MODEL.DENSE.CLS_LOSS = assigner, loss
    torch.manual_seed(0)
    model = build_model(cfg)
    for counts in ((3, 2), (0, 0)):
        losses, grads = train_step(model, make_batch(counts))
        assert all(value.isfinite() for value in losses.values())
        assert all(g.isfinite().all() for g in grads.values())
    assert losses["loss_box_reg"] == 0 and losses["loss_obj"] > 0


def test_what_plain_yolox_refuses():
    cfg = plain_cfg()
    cfg.MODEL.SAMPLING_FREE.ENABLED = True
    with pytest.raises(ValueError, match="YOLOX learns classes from positives alone"):
        build_model(cfg)
    with pytest.raises(ValueError, match="MODEL.YOLOX.CLASSIFY is 'some'"):
        build_model(plain_cfg(CLASSIFY="some"))
