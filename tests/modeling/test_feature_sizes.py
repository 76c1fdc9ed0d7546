"""Sizes of feature maps without a forward pass."""

import pytest
import torch
from detectron2.modeling import build_backbone
from detectron2.modeling.backbone import Backbone
from model_kit import small_cfg

from d2ext.modeling.backbones.feature_sizes import FeatureSizes

BACKBONES = {
    "build_retinanet_resnet_fpn_backbone": ["res3", "res4", "res5"],
    "build_p5_resnet_fpn_backbone": ["res3", "res4", "res5"],
    "build_resnet_fpn_backbone": ["res2", "res3", "res4", "res5"],
    "build_slim_resnet_fpn_backbone": ["res2", "res3", "res4", "res5"],
    "build_resnet_backbone": ["res4", "res5"],
}


@pytest.mark.parametrize("name", BACKBONES)
def test_feature_sizes_without_a_forward_pass(name):
    cfg = small_cfg()
    cfg.MODEL.BACKBONE.NAME = name
    cfg.MODEL.RESNETS.OUT_FEATURES = cfg.MODEL.FPN.IN_FEATURES = BACKBONES[name]
    backbone = build_backbone(cfg).eval()
    sizes = FeatureSizes(backbone)
    for images in ([(65, 97), (33, 130)], [(64, 224)], [(1, 95)]):
        found = sizes(images)
        divisor = max(backbone.size_divisibility, 1)
        height, width = (-(-max(x) // divisor) * divisor for x in zip(*images))
        with torch.no_grad():
            features = backbone(torch.zeros(1, 3, height, width))
        assert found == {k: tuple(v.shape[-2:]) for k, v in features.items()}
    assert sizes.forwards == 0


class Strange(Backbone):
    """Stride 8; rounds up as a ResNet does, or down."""

    def __init__(self, up):
        super().__init__()
        self._out_features = ["x"]
        self._out_feature_strides, self._out_feature_channels = {"x": 8}, {"x": 2}
        self.conv = torch.nn.Conv2d(3, 2, 8, stride=8)
        self.up = up

    def forward(self, x):
        pad = [0, -x.shape[-1] % 8, 0, -x.shape[-2] % 8] if self.up else [0, 0, 0, 0]
        return {"x": self.conv(torch.nn.functional.pad(x, pad))}


@pytest.mark.parametrize("up", [True, False])
def test_an_unknown_backbone_is_asked(up):
    sizes = FeatureSizes(Strange(up))
    expected = [(3, 4), (2, 2)] if up else [(2, 3), (1, 2)]
    images = [(20, 30), (15, 16)]
    assert [sizes([i])["x"] for i in images + images] == expected + expected
    assert sizes.forwards == (1 if up else 2)
