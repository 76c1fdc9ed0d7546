"""Small configs, seeded batches and comparisons that the tests of models share."""

import detectron2.modeling
import numpy as np
import torch
from detectron2.modeling import build_model
from detectron2.modeling.backbone import Backbone, fpn
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from d2ext import get_cfg
from d2ext.modeling.backbones import pyramids, resnet

DENSE_NODES = ("RETINANET", "FCOS", "ATSS", "YOLOX", "DW")
# Of the stem of a ResNet-18 that is that narrow in all its stages, where Detectron2's has to be 64
# wide: most of the time of a small test would go into its weights.
NARROW = 8
WIDE = ["MODEL.RESNETS.STEM_OUT_CHANNELS", 64]
# A network of four convolutions, where what is above it is tested: tracers take long over a ResNet.
FOUR = 16
SHALLOW = ["MODEL.RESNETS.STEM_OUT_CHANNELS", FOUR]


class _FourConvolutions(Backbone):
    """Maps of strides 4 to 32, named as a ResNet's."""

    def __init__(self, cfg, input_shape, channels=FOUR):
        super().__init__()
        self._out_features = cfg.MODEL.RESNETS.OUT_FEATURES
        self._out_feature_strides = {f"res{k}": 2**k for k in range(2, 6)}
        self._out_feature_channels = dict.fromkeys(self._out_feature_strides, channels)
        strides = [(input_shape.channels, 4), *[(channels, 2)] * 3]
        self.stages = torch.nn.ModuleList(
            torch.nn.Conv2d(inputs, channels, 2 * stride - 1, stride, stride - 1)
            for inputs, stride in strides
        )

    def forward(self, x):
        maps = {}
        for name, layer in zip(self._out_feature_strides, self.stages):
            maps[name] = x = layer(x).relu()
        return {name: maps[name] for name in self._out_features}


def _build_narrow_resnet(cfg, input_shape, upstream=fpn.build_resnet_backbone):
    node = cfg.MODEL.RESNETS
    if node.STEM_OUT_CHANNELS == FOUR:
        return _FourConvolutions(cfg, input_shape)
    if node.DEPTH != 18 or node.STEM_OUT_CHANNELS != NARROW:
        return upstream(cfg, input_shape)
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = NARROW
    return pyramids._slim_resnet(cfg, input_shape)


for _module in (fpn, resnet, detectron2.modeling):
    _module.build_resnet_backbone = _build_narrow_resnet


def shrink(cfg, num_classes=3):
    """Make any detector's config small enough for a CPU test, in place."""
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.WEIGHTS = ""
    cfg.MODEL.RESNETS.DEPTH = 18
    slim = cfg.MODEL.BACKBONE.NAME == "build_slim_resnet_fpn_backbone"
    cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = NARROW
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = NARROW if slim else 64
    cfg.MODEL.RESNETS.NUM_GROUPS = 1
    cfg.MODEL.RESNETS.WIDTH_PER_GROUP = 64
    cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE = [False] * 4
    cfg.MODEL.FPN.OUT_CHANNELS = 32
    cfg.MODEL.CSPDARKNET.WIDTH = 0.125
    cfg.MODEL.ROI_BOX_HEAD.FC_DIM = 32
    cfg.MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION = 4
    cfg.MODEL.ROI_MASK_HEAD.CONV_DIM = 16
    cfg.MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION = 4
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 60
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = 60
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 32
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.MODEL.RETINANET.NUM_CONVS = 1
    for name in DENSE_NODES:
        node = cfg.MODEL.get(name)
        for key, value in (("NUM_CLASSES", num_classes), ("NUM_CONVS", 1)):
            if node is not None and key in node:
                node[key] = value
    return cfg


def small_cfg(path=None, overrides=(), num_classes=3):
    """The config file at ``path`` (or none), shrunk, with overrides."""
    cfg = get_cfg()
    if path is not None:
        cfg.merge_from_file(path)
    shrink(cfg, num_classes)
    cfg.merge_from_list(list(overrides))
    return cfg


def make_batch(counts=(3, 2), size=96, num_classes=3, seed=0, masks=False):
    """One image for each entry of ``counts``, with that many objects."""
    rng = np.random.RandomState(seed)
    batch = []
    for i, count in enumerate(counts):
        height, width = size, size + 32 * (i % 2)
        xy = rng.rand(count, 2) * [width * 0.6, height * 0.6]
        wh = 8 + rng.rand(count, 2) * [width * 0.4 - 8, height * 0.4 - 8]
        instances = Instances((height, width))
        boxes = torch.as_tensor(np.concatenate([xy, xy + wh], axis=1), dtype=torch.float32)
        instances.gt_boxes = Boxes(boxes.reshape(-1, 4))
        instances.gt_classes = torch.as_tensor(rng.randint(0, num_classes, count)).long()
        if masks:
            grid_y, grid_x = np.mgrid[:height, :width]
            filled = [(grid_x >= b[0]) & (grid_x < b[2]) & (grid_y >= b[1]) & (grid_y < b[3])
                      for b in boxes.numpy()]  # fmt: skip
            stack = np.stack(filled) if count else np.zeros((0, height, width), bool)
            instances.gt_masks = BitMasks(torch.as_tensor(stack))
        image = torch.as_tensor(rng.randint(0, 256, (3, height, width)), dtype=torch.uint8)
        batch.append({"image": image, "instances": instances, "height": height, "width": width})
    return batch


def build(cfg, seed=0):
    """A model with seeded weights."""
    torch.manual_seed(seed)
    return build_model(cfg)


def train_step(model, batch, seed=0):
    """Losses of one training forward and the gradient of every parameter of their sum."""
    model.train()
    model.zero_grad()
    torch.manual_seed(seed)
    with EventStorage():
        losses = model(batch)
    sum(losses.values()).backward()
    grads = {
        name: p.grad.clone()
        for name, p in model.named_parameters()
        if p.requires_grad and p.grad is not None
    }
    return {k: v.detach() for k, v in losses.items()}, grads


def relative_error(actual, expected):
    """Largest difference over the largest entry of ``expected``."""
    top = float(expected.abs().max()) if expected.numel() else 0.0
    difference = float((actual - expected).abs().max()) if expected.numel() else 0.0
    return difference / top if top > 0 else difference
