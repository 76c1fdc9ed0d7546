"""Deformable convolutions and BatchNorm in evaluation mode, in a ResNet built from a config."""

import pytest
import torch
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec
from detectron2.solver import build_optimizer
from torch import nn

from d2ext.config import get_cfg
from d2ext.modeling.backbones.deform import DeformBottleneckBlock, ModulatedDeformConv
from d2ext.modeling.backbones.resnet import EvalBatchNorm2d, build_ext_resnet_backbone


def resnet(**overrides):
    cfg = get_cfg()
    cfg.MODEL.RESNETS.OUT_FEATURES = ["res3", "res4", "res5"]
    cfg.merge_from_list([x for pair in overrides.items() for x in pair])
    torch.manual_seed(0)
    return cfg, build_ext_resnet_backbone(cfg, ShapeSpec(channels=3)).train()


DCN = {
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [False, True, True, True],
    "MODEL.RESNETS.DEFORM_MODULATED": True,
}


def test_starts_as_half_a_convolution():
    torch.manual_seed(0)
    deform = ModulatedDeformConv(6, 8, 3, stride=2, padding=1, groups=2)
    plain = nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=2)
    plain.load_state_dict({k: v for k, v in deform.state_dict().items() if "offset" not in k})
    x = torch.randn(2, 6, 9, 11)
    bias = deform.bias[None, :, None, None]
    torch.testing.assert_close(deform(x), (plain(x) - bias) * 0.5 + bias)


def test_samples_where_the_offsets_say():
    conv = ModulatedDeformConv(1, 1, 1, bias=False)
    nn.init.ones_(conv.weight)
    image = torch.arange(20.0).reshape(1, 1, 4, 5)
    offset_mask = torch.zeros(1, 3, 4, 5)
    offset_mask[:, 0] = 1  # one down
    offset_mask[:, 1] = 0.5  # half a cell to the right
    offset_mask[:, 2] = 100  # weight 1
    expected = (image[0, 0, 1:, :-1] + image[0, 0, 1:, 1:]) / 2
    torch.testing.assert_close(conv(image, offset_mask)[0, 0, :-1, :-1], expected)


def test_gradients_and_half_precision():
    conv = ModulatedDeformConv(4, 4, 3, padding=1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = conv(torch.randn(1, 4, 6, 6))
    assert out.dtype == torch.float32
    out.sum().backward()
    assert all(p.grad is not None for p in conv.parameters())
    assert float(conv.conv_offset.weight.grad.abs().sum()) > 0


def test_deformable_stages():
    cfg, model = resnet(**DCN)
    _, plain = resnet()
    assert not any(isinstance(b, DeformBottleneckBlock) for b in model.res2)
    for stage in (model.res3, model.res4, model.res5):
        assert all(isinstance(b, DeformBottleneckBlock) for b in stage)
    extra = set(model.state_dict()) - set(plain.state_dict())
    assert {k.rsplit(".", 2)[1] for k in extra} == {"conv2_offset"}
    assert set(plain.state_dict()) <= set(model.state_dict())
    features = model(torch.randn(1, 3, 64, 64))
    sum(f.sum() for f in features.values()).backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is None) == (not parameter.requires_grad), name
    assert model.res3[0].conv2_offset.weight.grad is not None


@pytest.mark.parametrize(
    "overrides, word",
    [
        ({**DCN, "MODEL.RESNETS.DEFORM_MODULATED": False}, "DEFORM_MODULATED True"),
        ({**DCN, "MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64}, "DEPTH to 50"),
    ],
)
def test_unknown_deformations_are_refused(overrides, word):
    with pytest.raises(ValueError, match=word):
        resnet(**overrides)


def test_eval_batch_norm():
    small = {"MODEL.RESNETS.DEPTH": 18, "MODEL.RESNETS.RES2_OUT_CHANNELS": 64}
    cfg, model = resnet(**small, **{"MODEL.RESNETS.NORM": "EvalBN"})
    _, frozen = resnet(**small)
    assert isinstance(model.stem.conv1.norm, FrozenBatchNorm2d)
    assert isinstance(model.res2[0].conv1.norm, FrozenBatchNorm2d)
    norms = [m for m in model.modules() if isinstance(m, EvalBatchNorm2d)]
    assert norms and not any(m.training for m in norms)

    # The same function, statistics that never move, and trained affine parameters.
    x = torch.randn(2, 3, 64, 64)
    state = {k: torch.rand_like(v) + 0.5 for k, v in frozen.state_dict().items() if "norm" in k}
    frozen.load_state_dict(state, strict=False)
    missing = model.load_state_dict(frozen.state_dict(), strict=False).missing_keys
    assert all(k.endswith("num_batches_tracked") for k in missing)
    ours, theirs = model(x), frozen(x)
    for key in ours:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-4, atol=1e-4)
    sum(f.mean() for f in ours.values()).backward()
    norm = model.res5[1].conv2.norm
    assert norm.weight.grad is not None and norm.bias.grad is not None
    assert torch.equal(norm.running_mean, frozen.res5[1].conv2.norm.running_mean)

    cfg.SOLVER.WEIGHT_DECAY_NORM = 0.0
    groups = build_optimizer(cfg, model).param_groups
    decay = {id(p): g["weight_decay"] for g in groups for p in g["params"]}
    assert decay[id(norm.weight)] == 0 and decay[id(model.res5[1].conv2.weight)] > 0


def test_eval_batch_norm_without_a_frozen_part():
    overrides = {
        "MODEL.RESNETS.DEPTH": 18,
        "MODEL.RESNETS.RES2_OUT_CHANNELS": 64,
        "MODEL.RESNETS.NORM": "EvalBN",
        "MODEL.BACKBONE.FREEZE_AT": 0,
    }
    _, model = resnet(**overrides)
    assert not any(isinstance(m, FrozenBatchNorm2d) for m in model.modules())
