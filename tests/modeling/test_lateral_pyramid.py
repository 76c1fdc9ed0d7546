"""The pyramid of the improved baseline: where P6 and P7 come from."""

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from model_kit import small_cfg
from torch.nn import functional as F


def make(name="build_lateral_resnet_fpn_backbone", fuse="sum"):
    options = ["MODEL.BACKBONE.NAME", name, "MODEL.FPN.IN_FEATURES", ["res3", "res4", "res5"],
               "MODEL.RESNETS.OUT_FEATURES", ["res3", "res4", "res5"],
               "MODEL.FPN.FUSE_TYPE", fuse]  # fmt: skip
    torch.manual_seed(0)
    return build_backbone(small_cfg(overrides=options), ShapeSpec(channels=3)).eval()


@torch.no_grad()
def test_p6_is_made_of_the_lateral_map_and_p7_of_p6_without_a_relu():
    pyramid = make()
    image = torch.randn(1, 3, 128, 192)
    levels = pyramid(image)
    lateral = pyramid.fpn_lateral5(pyramid.bottom_up(image)["res5"])
    top = pyramid.top_block
    p6 = F.conv2d(lateral, top.p6.weight, top.p6.bias, stride=2, padding=1)
    p7 = F.conv2d(p6, top.p7.weight, top.p7.bias, stride=2, padding=1)
    assert torch.equal(levels["p6"], p6) and torch.equal(levels["p7"], p7)
    assert bool((p6 < 0).any())  # so that a ReLU would show
    shapes = pyramid.output_shape()
    assert list(levels) == list(shapes) == ["p3", "p4", "p5", "p6", "p7"]
    for name, level in levels.items():
        assert level.shape[1] == shapes[name].channels
        assert level.shape[3] == -(-192 // shapes[name].stride)
    assert pyramid.size_divisibility == 64


@torch.no_grad()
def test_lower_levels_are_upstreams():
    for fuse in ("sum", "avg"):
        ours, upstream = make(fuse=fuse), make("build_p5_resnet_fpn_backbone", fuse)
        upstream.load_state_dict(ours.state_dict())
        image = torch.randn(1, 3, 64, 128)
        got, want = ours(image), upstream(image)
        for name in ("p3", "p4", "p5"):
            assert torch.equal(got[name], want[name])
        assert not torch.equal(got["p6"], want["p6"])
