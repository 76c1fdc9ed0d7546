"""The converter of the authors' checkpoints, on a synthetic one with their names."""

from pathlib import Path

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from model_kit import build

from d2ext.cli import main
from d2ext.config import get_cfg
from d2ext.convert import convert_checkpoint

ROOT = Path(__file__).resolve().parents[2]
WIDTH = 32  # channels of FPN and head


def batch_norm(name, channels):
    return {
        f"{name}.weight": (channels,),
        f"{name}.bias": (channels,),
        f"{name}.running_mean": (channels,),
        f"{name}.running_var": (channels,),
        f"{name}.num_batches_tracked": (),
    }


def conv(name, out_channels, in_channels, kernel, bias=True):
    shapes = {f"{name}.weight": (out_channels, in_channels, kernel, kernel)}
    return {**shapes, **({f"{name}.bias": (out_channels,)} if bias else {})}


def resnet_names(dcn):
    """Names and shapes of mmdetection's ResNet-50."""
    names = {**conv("conv1", 64, 3, 7, bias=False), **batch_norm("bn1", 64)}
    channels = 64
    for layer, blocks in enumerate((3, 4, 6, 3), start=1):
        middle = 32 * 2**layer
        for i in range(blocks):
            block = f"layer{layer}.{i}"
            names.update(conv(f"{block}.conv1", middle, channels, 1, bias=False))
            names.update(conv(f"{block}.conv2", middle, middle, 3, bias=False))
            names.update(conv(f"{block}.conv3", 4 * middle, middle, 1, bias=False))
            for k, c in ((1, middle), (2, middle), (3, 4 * middle)):
                names.update(batch_norm(f"{block}.bn{k}", c))
            if dcn and layer > 1:
                names.update(conv(f"{block}.conv2.conv_offset", 27, middle, 3))
            if i == 0:
                names.update(conv(f"{block}.downsample.0", 4 * middle, channels, 1, bias=False))
                names.update(batch_norm(f"{block}.downsample.1", 4 * middle))
            channels = 4 * middle
    return {f"backbone.{k}": v for k, v in names.items()}


def authors_names(num_convs=4, num_classes=3, refine=True, dcn=False):
    names = resnet_names(dcn)
    for i, channels in enumerate((512, 1024, 2048)):
        names.update(conv(f"neck.lateral_convs.{i}.conv", WIDTH, channels, 1))
    for i in range(5):
        names.update(conv(f"neck.fpn_convs.{i}.conv", WIDTH, WIDTH, 3))
    head = {}
    for tower in ("cls_convs", "reg_convs"):
        for i in range(num_convs):
            head.update(conv(f"{tower}.{i}.conv", WIDTH, WIDTH, 3))
            head.update({f"{tower}.{i}.gn.{k}": (WIDTH,) for k in ("weight", "bias")})
        if dcn:
            head.update(conv(f"{tower}.{num_convs - 1}.conv.conv_offset", 27, WIDTH, 3))
    for name, channels in (("conv_cls", num_classes), ("conv_reg", 4), ("conv_centerness", 1)):
        head.update(conv(name, channels, WIDTH, 3))
    if refine:
        head.update(conv("reg_offset", 8, WIDTH, 3))
    head.update({f"scales.{i}.scale": () for i in range(5)})
    head.update({f"center_prior.{k}": (num_classes, 2) for k in ("mean", "sigma")})
    return {**names, **{f"bbox_head.{k}": v for k, v in head.items()}}


def make_checkpoint(**options):
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, shape in authors_names(**options).items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(0)
        elif name.endswith("running_var"):
            state[name] = torch.rand(shape, generator=generator) + 0.5
        else:
            state[name] = torch.randn(shape, generator=generator) * 0.02
    state["bbox_head.center_prior.mean"].zero_()
    state["bbox_head.center_prior.sigma"].fill_(1).add_(0.11)
    return state


def small_cfg(refine, dcn):
    cfg = get_cfg()
    cfg.merge_from_file(str(ROOT / "configs/DualWeighting/dw_R_50_FPN_1x.yaml"))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = "cpu", ""
    cfg.MODEL.FPN.OUT_CHANNELS = WIDTH
    cfg.MODEL.DW.NUM_CLASSES = 3
    cfg.MODEL.DW.REFINE_BOXES = refine
    cfg.MODEL.DW.DEFORM_LAST_CONV = dcn
    if dcn:
        cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False, True, True, True]
        cfg.MODEL.RESNETS.DEFORM_MODULATED = True
    return cfg


@pytest.mark.parametrize("refine, dcn", [(False, False), (True, True)])
def test_converted_checkpoint_fills_the_model(refine, dcn):
    model = build(small_cfg(refine, dcn))
    source = make_checkpoint(refine=refine, dcn=dcn)
    converted, _ = convert_checkpoint(source, "dw", small_cfg(refine, dcn))
    missing, unexpected = model.load_state_dict(converted, strict=False)
    assert all(k.endswith("num_batches_tracked") for k in (*missing, *unexpected))
    # Tensors of equal shapes must not have changed places.
    for theirs, ours in (
        ("backbone.layer1.0.downsample.0.weight", "backbone.bottom_up.res2.0.shortcut.weight"),
        ("backbone.layer4.2.bn3.running_var", "backbone.bottom_up.res5.2.conv3.norm.running_var"),
        ("neck.fpn_convs.2.conv.weight", "backbone.fpn_output5.weight"),
        ("neck.fpn_convs.3.conv.weight", "backbone.top_block.p6.weight"),
        ("neck.fpn_convs.4.conv.weight", "backbone.top_block.p7.weight"),
        ("bbox_head.cls_convs.1.gn.bias", "head.cls_subnet.4.bias"),
        ("bbox_head.reg_convs.3.conv.weight", "head.bbox_subnet.9.weight"),
        ("bbox_head.conv_centerness.weight", "head.ctrness.weight"),
    ):
        assert torch.equal(source[theirs], model.state_dict()[ours]), ours
    assert float(model.head.scales[3].detach()) == float(source["bbox_head.scales.3.scale"])
    if dcn:
        theirs = source["backbone.layer2.0.conv2.conv_offset.weight"]
        assert torch.equal(model.backbone.bottom_up.res3[0].conv2_offset.weight, theirs)


def command(source, target):
    """``d2ext convert`` for the small detector without refinement."""
    config = target.with_suffix(".yaml")
    config.write_text(small_cfg(refine=False, dcn=False).dump())
    words = ["convert", str(source), "--from", "dw", "--output", str(target)]
    return main([*words, "--config-file", str(config)])


def test_command_writes_what_the_checkpointer_loads(tmp_path, capsys):
    source, target = tmp_path / "authors.pth", tmp_path / "ours.pth"
    torch.save({"meta": {"epoch": 12}, "state_dict": make_checkpoint(refine=False)}, source)
    assert command(source, target) == 0
    assert "tensors of the DW authors' detector" in capsys.readouterr().out
    model = build(small_cfg(refine=False, dcn=False))
    DetectionCheckpointer(model).load(str(target))
    loaded = model.head.cls_subnet[0].weight
    assert torch.equal(loaded, make_checkpoint(refine=False)["bbox_head.cls_convs.0.conv.weight"])


def test_what_does_not_fit_is_refused():
    cfg = small_cfg(False, False)
    with pytest.raises(ValueError, match="head.reg_offset.bias has no place"):
        convert_checkpoint(make_checkpoint(refine=True), "dw", cfg)
    state = make_checkpoint(refine=False, num_classes=5)
    with pytest.raises(ValueError, match="head.cls_score.bias has another shape"):
        convert_checkpoint(state, "dw", cfg)
    state = {k: v for k, v in state.items() if ".scales." not in k}
    with pytest.raises(ValueError, match="head.scales is not in the checkpoint"):
        convert_checkpoint(state, "dw", cfg)


@pytest.mark.parametrize(
    "name", ["roi_head.fc.weight", "bbox_head.atss_cls.weight", "neck.downsample.weight"]
)
def test_names_of_other_models_are_refused(name):
    with pytest.raises(ValueError, match="not a parameter of the DW authors' detector"):
        convert_checkpoint({name: torch.zeros(1)}, "dw", small_cfg(False, False))


@pytest.mark.parametrize(
    "name, value, sentence",
    [
        ("sigma", 1.5, "delete the entry .* set MODEL.DW.PRIOR_SIGMA to it"),
        ("mean", 0.1, "delete the entry .* a prior around the centre, which no key moves"),
    ],
)
def test_another_prior_is_refused(name, value, sentence):
    state, cfg = make_checkpoint(), small_cfg(True, False)
    entry = f"bbox_head.center_prior.{name}"
    state[entry].fill_(value)
    with pytest.raises(ValueError, match=sentence):
        convert_checkpoint(state, "dw", cfg)
    del state[entry]  # as the sentence says
    assert not any("prior" in key for key in convert_checkpoint(state, "dw", cfg)[0])


class Command:
    def __reduce__(self):
        return (print, ("executed",))


def test_code_in_a_checkpoint_is_not_run(tmp_path, capsys):
    path = tmp_path / "bad.pth"
    torch.save({"state_dict": {}, "extra": Command()}, path)
    assert command(path, tmp_path / "ours.pth") == 1
    output = capsys.readouterr()
    assert "could run any code" in output.err and "executed" not in output.out
