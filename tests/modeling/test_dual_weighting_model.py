"""DualWeightingFCOS: the head and post-processing of the authors, training, precision."""

import model_kit
import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_model
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.structures import Boxes, ImageList, Instances
from detectron2.utils.events import EventStorage
from golden_kit import golden
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from d2ext.config import get_cfg
from d2ext.convert.dual_weighting import DUAL_WEIGHTING
from d2ext.convert.names import rename
from d2ext.modeling.backbones.deform import ModulatedDeformConv
from d2ext.modeling.meta_arch import DualWeightingFCOS
from d2ext.modeling.meta_arch.dual_weighting_head import DualWeightingHead
from d2ext.ops import host
from d2ext.ops.dual_weighting import DualWeightingConstants, dual_weighting_losses


class Features(nn.Module):
    """Stands for a backbone: gives feature maps of given shapes."""

    size_divisibility = 0
    padding_constraints = {}

    def __init__(self, channels, strides):
        super().__init__()
        self.shapes = {f"p{i}": ShapeSpec(channels, stride=s) for i, s in enumerate(strides)}

    def output_shape(self):
        return self.shapes

    def forward(self, images):
        n, _, h, w = images.shape
        return {
            k: torch.randn(n, s.channels, -(-h // s.stride), -(-w // s.stride))
            for k, s in self.shapes.items()
        }


def make_detector(strides, num_classes, channels=8, **kwargs):
    backbone = Features(channels, strides)
    shapes = list(backbone.output_shape().values())
    names = ("refine", "deform_last_conv", "norm", "regression")
    head_args = {k: kwargs.pop(k) for k in names if k in kwargs}
    head_args.setdefault("norm", "")
    return DualWeightingFCOS(
        backbone=backbone,
        head=DualWeightingHead(
            input_shape=shapes, num_classes=num_classes, conv_dims=[channels] * 2, **head_args
        ),
        head_in_features=list(backbone.output_shape()),
        num_classes=num_classes,
        pixel_mean=(0.0, 0.0, 0.0),
        pixel_std=(1.0, 1.0, 1.0),
        **kwargs,
    )


def make_inputs(objects, num_classes=3, size=(96, 128)):
    generator = torch.Generator().manual_seed(0)
    inputs = []
    for count in objects:
        corner = torch.rand(count, 2, generator=generator) * 50
        extent = torch.rand(count, 2, generator=generator) * 45 + 8
        instances = Instances(size)
        instances.gt_boxes = Boxes(torch.cat((corner, corner + extent), dim=1))
        instances.gt_classes = torch.randint(num_classes, (count,), generator=generator)
        inputs.append({"image": torch.zeros(3, *size), "instances": instances})
    return inputs


@pytest.mark.parametrize("name", ["h_head_plain", "h_head_refine"])
def test_head_equals_the_authors(name):
    data = golden("dw", name)
    strides, num_levels = data["strides"].tolist(), len(data["strides"])
    features = [torch.tensor(data[f"feat{i}"]).double() for i in range(num_levels)]
    head = DualWeightingHead(
        input_shape=[ShapeSpec(features[0].shape[1], stride=s) for s in strides],
        num_classes=int(data["num_classes"]),
        conv_dims=[32] * int(data["stacked_convs"]),
        refine=bool(data["reg_refine"]),
    ).double()
    stored = {
        "bbox_head." + key[len("param.") :]: torch.tensor(data[key])
        for key in data.files
        if key.startswith("param.")
    }
    rules, finish = DUAL_WEIGHTING.rules(None), DUAL_WEIGHTING.finish
    converted = finish(rename(stored, rules, ""), None)
    head.load_state_dict({k[len("head.") :]: v for k, v in converted.items()}, strict=True)
    with torch.no_grad():
        outputs = head(features)
    for kind, maps in zip(("cls", "ltrb", "obj"), outputs):
        for i, actual in enumerate(maps):
            expected = torch.tensor(data[f"{kind}{i}_f64"])
            torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6 * strides[i])


def test_initial_outputs():
    torch.manual_seed(0)
    head = DualWeightingHead(
        input_shape=[ShapeSpec(32, stride=s) for s in (8, 16)],
        num_classes=4,
        conv_dims=[32] * 2,
        refine=False,
    )
    logits, ltrb, objectness = head([torch.randn(1, 32, 6, 6), torch.randn(1, 32, 3, 3)])
    score = (logits[0].sigmoid() * objectness[0].sigmoid()).mean()
    assert float(score.detach()) == pytest.approx(0.01, rel=0.1)
    assert ltrb[0].mean().item() == pytest.approx(4 * 8, rel=0.1)
    assert ltrb[1].mean().item() == pytest.approx(4 * 16, rel=0.1)


def test_anchor_regression_decodes_as_detectron2():
    torch.manual_seed(0)
    shape = ShapeSpec(8, stride=16)
    head = DualWeightingHead(
        input_shape=[shape], num_classes=3, conv_dims=[8], norm="", regression="anchor"
    )
    feature = torch.randn(1, 8, 4, 5)
    (ltrb,) = head([feature])[1]
    torch.testing.assert_close(ltrb, torch.full_like(ltrb, 64.0), rtol=0.05, atol=0)
    nn.init.normal_(head.bbox_pred.weight, std=0.3)
    (ltrb,) = head([feature])[1]
    deltas = head.bbox_pred(head.bbox_subnet(feature))
    anchors = torch.tensor([[-64.0, -64.0, 64.0, 64.0]]).expand(20, 4)
    boxes = Box2BoxTransform((10.0, 10.0, 5.0, 5.0)).apply_deltas(deltas[0].flatten(1).t(), anchors)
    expected = (boxes * torch.tensor([-1.0, -1.0, 1.0, 1.0])).relu()
    torch.testing.assert_close(ltrb[0].flatten(1).t(), expected, rtol=1e-4, atol=1e-3)


def test_several_anchors_are_refused():
    with pytest.raises(ValueError, match="several boxes"):
        DualWeightingHead(
            input_shape=[ShapeSpec(8, stride=8)], num_classes=3, conv_dims=[8], regression="anchors"
        )


def test_post_processing_equals_the_authors():
    data = golden("dw", "i_infer_f32")
    strides, num_classes = data["strides"].tolist(), int(data["num_classes"])
    model = make_detector(strides, num_classes).eval()
    sizes = data["feat_sizes"].tolist()
    features = [torch.zeros(2, 8, h, w) for h, w in sizes]

    def levels(key, channels):
        flat = torch.tensor(data[key]).reshape(2, -1, channels)
        parts = flat.split([h * w for h, w in sizes], dim=1)
        return [p.transpose(1, 2).reshape(2, channels, h, w) for p, (h, w) in zip(parts, sizes)]

    predictions = [
        levels("cls_logits", num_classes),
        levels("bbox_ltrb", 4),
        levels("obj_logits", 1),
    ]
    image_sizes = [tuple(s) for s in data["img_shape"].tolist()]
    images = ImageList(torch.zeros(2, 3, 128, 160), image_sizes)
    with torch.no_grad():
        results = model.forward_inference(images, features, predictions)
    for i, result in enumerate(results):
        expected = torch.tensor(data[f"img{i}_dets"])
        boxes = result.pred_boxes.tensor / torch.tensor(data["scale_factor"][i])
        assert len(result) == len(expected)
        # Equal scores may come in another order; compare sets of rounded rows.
        actual = torch.cat((boxes, result.scores[:, None], result.pred_classes[:, None].float()), 1)
        labels = torch.tensor(data[f"img{i}_labels"]).float()
        expected = torch.cat((expected, labels[:, None]), 1)
        torch.testing.assert_close(sort_rows(actual), sort_rows(expected), rtol=1e-5, atol=1e-4)


def sort_rows(rows):
    order = sorted(
        range(len(rows)), key=lambda i: [round(float(v), 3) for v in rows[i, [4, 5, 0, 1]]]
    )
    return rows[order]


def test_low_threshold_makes_no_index_of_all_scores():
    model = make_detector([8, 16], 5, test_score_thresh=0.0, test_topk_candidates=10).eval()
    with torch.no_grad():
        (result,) = model([{"image": torch.zeros(3, 64, 64)}])
    assert 0 < len(result["instances"]) <= 20
    scores = torch.rand(64, 5)
    anchors = model.anchor_generator([torch.zeros(1, 8, 8, 8), torch.zeros(1, 8, 4, 4)])[0]
    args = (anchors, scores, torch.ones(64, 4), 0.4, 10, (64, 64))
    ours = model._decode_per_level_predictions(*args)
    theirs = super(DualWeightingFCOS, model)._decode_per_level_predictions(*args)
    assert torch.equal(ours.scores, theirs.scores)
    assert torch.equal(ours.pred_classes, theirs.pred_classes)


@pytest.mark.parametrize(
    "refine, regression", [(False, "point"), (True, "point"), (True, "anchor")]
)
@pytest.mark.parametrize("objects", [(0, 0), (0, 4), (3,)])
def test_every_parameter_gets_a_gradient(objects, refine, regression):
    torch.manual_seed(0)
    model = make_detector(
        [8, 16, 32], 3, refine=refine, deform_last_conv=refine, regression=regression
    )
    losses = model(make_inputs(objects))
    assert set(losses) == {"loss_cls_pos", "loss_cls_neg", "loss_loc"}
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
    if sum(objects):
        assert float(model.head.scales.grad.abs().sum()) > 0


class Waits(TorchDispatchMode):
    """Counts the operations that read a number off a device or have a result of unknown size."""

    names = ("aten::_local_scalar_dense", "aten::nonzero", "aten::masked_select", "aten::equal")

    def __init__(self):
        super().__init__()
        self.count, self.operations = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.operations += 1
        self.count += func._schema.name in self.names
        if func._schema.name in ("aten::index", "aten::index_put_"):
            self.count += any(i is not None and i.dtype == torch.bool for i in args[1])
        return func(*args, **(kwargs or {}))


def test_step_waits_once_and_does_the_same_work_for_any_batch(monkeypatch):
    # Count what a GPU would be waited for.
    monkeypatch.setattr(host, "asking_is_free", lambda tensor: False)
    model = make_detector([8, 16, 32], 3)
    seen = set()
    for objects in ((2, 3), (9, 0, 4, 2, 5), (40, 40)):
        inputs = make_inputs(objects)
        images = model.preprocess_image(inputs)
        features = list(model.backbone(images.tensor).values())
        predictions = model.head(features)
        with EventStorage(start_iter=1), Waits() as waits:
            model.forward_training(images, features, predictions, [x["instances"] for x in inputs])
        assert waits.count == 1
        seen.add(waits.operations)
    assert len(seen) == 1


@pytest.mark.parametrize("objects", [(2, 4), (0, 0)])
def test_the_divisors_are_recorded_in_the_steps_that_are_written(objects):
    model = make_detector([8, 16, 32], 3)
    images = model.preprocess_image(make_inputs(objects))
    features = list(model.backbone(images.tensor).values())
    instances = [x["instances"] for x in make_inputs(objects)]
    inputs = model.weighting_inputs(features, model.head(features), instances)
    out = dual_weighting_losses(**inputs)
    for step in (18, 19, 20):
        with EventStorage(step) as storage:
            losses = model.losses(**inputs)
            recorded = {name: value for name, (value, _) in storage.latest().items()}
        # The log is written behind steps 19, 39, ...
        assert set(recorded) == ({"dw/num_gt", "dw/neg_norm"} if step == 19 else set())
        for loss, divisor in (("loss_loc", "num_gt"), ("loss_cls_neg", "neg_norm")):
            value = recorded.get(f"dw/{divisor}", max(1.0, float(out[divisor])))
            torch.testing.assert_close(losses[loss] * value, out[loss])
    assert out["num_gt"] == sum(objects)


def test_a_label_of_another_class_count_names_the_key():
    model = make_detector([8, 16, 32], 3)
    inputs = make_inputs((2, 4))
    inputs[1]["instances"].gt_classes[2] = 3
    with pytest.raises(ValueError, match="label 3, .* 3 classes, 0 to 2; set MODEL.DW.NUM_CLASSES"):
        model(inputs)


def test_a_model_in_float64_keeps_the_digits_of_its_boxes():
    model = make_detector([8, 16, 32], 3).double()
    features = [x.double() for x in model.backbone(torch.zeros(1, 3, 64, 64)).values()]
    predictions = model.head(features)
    inputs = model.weighting_inputs(features, predictions, [make_inputs((2,))[0]["instances"]])
    ltrb = torch.cat([x.flatten(2).transpose(1, 2) for x in predictions[1]], dim=1)
    points = inputs["points"].double()
    wanted = torch.cat((points - ltrb[..., :2], points + ltrb[..., 2:]), dim=-1)
    assert inputs["pred_boxes"].dtype == torch.float64
    assert torch.equal(inputs["pred_boxes"], wanted)


def test_training_learns_one_batch():
    torch.manual_seed(0)

    class Fixed(Features):
        def forward(self, images):
            torch.manual_seed(1)
            return super().forward(images)

    model = make_detector([8, 16, 32], 3, channels=32, norm="GN", refine=True)
    model.backbone.__class__ = Fixed
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    inputs = make_inputs((2, 3))
    first = last = None
    for _ in range(40):
        losses = model(inputs)
        last = float(losses["loss_loc"].detach()) + float(losses["loss_cls_pos"].detach())
        first = last if first is None else first
        optimizer.zero_grad()
        sum(losses.values()).backward()
        optimizer.step()
    assert last < 0.6 * first


def test_autocast_keeps_losses_in_float32():
    torch.manual_seed(0)
    model = make_detector([8, 16, 32], 3, refine=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(make_inputs((2, 0)))
    assert all(v.dtype == torch.float32 and torch.isfinite(v) for v in losses.values())
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def small_cfg(**overrides):
    cfg = get_cfg()
    cfg.MODEL.META_ARCHITECTURE = "DualWeightingFCOS"
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.BACKBONE.NAME = "build_p5_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.IN_FEATURES = ["res3", "res4", "res5"]
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.DW.NUM_CLASSES = 3
    cfg.MODEL.DW.NUM_CONVS = 1
    cfg.merge_from_list([x for pair in overrides.items() for x in pair])
    return cfg


def test_keys_reach_the_parts():
    keys = {
        "MODEL.DW.BETA": 4.0,
        "MODEL.DW.SOFT_PRIOR": False,
        "MODEL.DW.NEG_CONFLICT": "min",
        "MODEL.DW.REFINE_BOXES": True,
        "MODEL.DW.SCORE_THRESH_TEST": 0.1,
    }
    model = build_model(small_cfg(**keys))
    assert model.constants == DualWeightingConstants(beta=4.0, soft_prior=False, neg_conflict="min")
    assert model.head.reg_offset is not None
    assert model.test_score_thresh == 0.1
    # Every constant has a key of its name, with its default.
    node = get_cfg().MODEL.DW
    for name, value in vars(DualWeightingConstants()).items():
        assert node[name.upper()] == value


@pytest.mark.parametrize(
    "keys, word",
    [
        ({"MODEL.DENSE.CLS_LOSS": "bce"}, "MODEL.DENSE.CLS_LOSS"),
        ({"MODEL.DENSE.BOX_LOSS": "ciou"}, "MODEL.DENSE.BOX_LOSS"),
        ({"MODEL.DENSE.NORMALIZER": "ema"}, "MODEL.DENSE.NORMALIZER"),
        ({"MODEL.DENSE.NORMALIZER_SYNC": "off"}, "MODEL.DENSE.NORMALIZER_SYNC"),
        ({"MODEL.HARMONIC.ENABLED": True}, "MODEL.HARMONIC.ENABLED"),
        ({"MODEL.DW.IN_FEATURES": ["p3", "p9"]}, "p9"),
        ({"MODEL.DW.T_METRIC": "giou"}, "MODEL.DW.T_METRIC"),
    ],
)
def test_senseless_combinations_are_refused(keys, word):
    with pytest.raises(ValueError, match=word):
        build_model(small_cfg(**keys))


def test_the_authors_start_of_the_deformable_towers():
    path = "configs/DualWeighting/dw_R_50_FPN_dcn_2x_ms_refine.yaml"
    head = model_kit.build(model_kit.small_cfg(path, ["MODEL.FPN.OUT_CHANNELS", 256])).head
    for tower in (head.cls_subnet, head.bbox_subnet):
        (conv,) = [m for m in tower if isinstance(m, ModulatedDeformConv)]
        offset = conv.conv_offset
        assert offset.weight.std().item() == pytest.approx(0.01, rel=0.02)
        assert not offset.bias.any() and not conv.bias.any()
        # Uniform up to 1 / sqrt(9 * 256).
        assert conv.weight.abs().max().item() == pytest.approx(0.0208, rel=0.01)
        assert conv.weight.std().item() == pytest.approx(0.0208 / 3**0.5, rel=0.01)
    head = model_kit.build(model_kit.small_cfg(path, ["MODEL.DW.DEFORM_INIT", "zero"])).head
    (conv,) = [m for m in head.cls_subnet if isinstance(m, ModulatedDeformConv)]
    assert not conv.conv_offset.weight.any()
