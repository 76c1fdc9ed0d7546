"""What values of Detectron2's keys must be to each other for a model to be built of them."""

import re
from typing import Any, List, Optional, Sequence

from .rules import Relation
from .upstream_rules import (
    EXT_RESNETS,
    cascade_used,
    fpn_used,
    mask_used,
    resnet_used,
    retinanet_used,
    roi_heads_used,
    rpn_used,
)

__all__ = ["RELATIONS"]

# Colours of an image that Detectron2 reads in a format.
_CHANNELS = {"L": 1, "I": 1, "F": 1, "CMYK": 4, "RGBA": 4}
_SLIM = "build_slim_resnet_fpn_backbone"
_DENSE = {"RetinaNet": "RETINANET", "ExtRetinaNet": "RETINANET", "ExtFCOS": "FCOS",
          "ATSS": "ATSS", "DualWeightingFCOS": "DW"}  # fmt: skip


def _stages(names: Sequence[str]) -> List[int]:
    return [int(name[3:]) for name in names]


def _consecutive(numbers: Sequence[int]) -> bool:
    return list(numbers) == list(range(numbers[0], numbers[0] + len(numbers)))


def _features(cfg: Any) -> Optional[List[str]]:
    """Names of the feature maps of a backbone that is known here, else None."""
    name = cfg.MODEL.BACKBONE.NAME
    if name == "build_resnet_backbone":
        return list(cfg.MODEL.RESNETS.OUT_FEATURES)
    if not fpn_used(cfg):
        return None
    stages = _stages(cfg.MODEL.FPN.IN_FEATURES)
    if name == _SLIM:
        extra = 1 if 2 in stages else 0
    else:
        extra = 1 if name == "build_resnet_fpn_backbone" else 2
    return [f"p{k}" for k in [*stages, *range(stages[-1] + 1, stages[-1] + 1 + extra)]]


def _has_features(key: str, used) -> Relation:
    """The feature maps that a head asks for are those of the backbone."""
    leaf = key.split(".")[1]
    return Relation(
        (key, "MODEL.FPN.IN_FEATURES", "MODEL.RESNETS.OUT_FEATURES"),
        "the backbone must have every map that a head asks for, named p3 if it is made of res3",
        lambda cfg: set(cfg.MODEL[leaf].IN_FEATURES) <= set(_features(cfg) or ()),
        when=lambda cfg: used(cfg) and _features(cfg) is not None,
    )


def _dense_used(leaf: str):
    return lambda cfg: _DENSE.get(cfg.MODEL.META_ARCHITECTURE) == leaf


def _matching_anchors(leaf: str, used) -> Relation:
    """Sizes and ratios for one level or for each, and as many anchors on each."""

    def per_level(values: Sequence[Any], count: int) -> Optional[List[int]]:
        if not isinstance(values[0], (list, tuple)):
            return [len(values)] * count
        sizes = [len(v) for v in values]
        return sizes * count if len(sizes) == 1 else sizes if len(sizes) == count else None

    def holds(cfg: Any) -> bool:
        node, count = cfg.MODEL.ANCHOR_GENERATOR, len(cfg.MODEL[leaf].IN_FEATURES)
        sizes, ratios = per_level(node.SIZES, count), per_level(node.ASPECT_RATIOS, count)
        if sizes is None or ratios is None:
            return False
        return len({s * r for s, r in zip(sizes, ratios)}) == 1

    return Relation(
        (
            "MODEL.ANCHOR_GENERATOR.SIZES",
            "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS",
            f"MODEL.{leaf}.IN_FEATURES",
        ),
        "sizes and ratios are one list, or one for each feature map, with as many anchors on each",
        holds,
        when=lambda cfg: used(cfg) and cfg.MODEL.ANCHOR_GENERATOR.NAME == "DefaultAnchorGenerator",
    )


def _one_label_more(leaf: str, used) -> Relation:
    return Relation(
        (f"MODEL.{leaf}.IOU_LABELS", f"MODEL.{leaf}.IOU_THRESHOLDS"),
        "there must be one label more than thresholds",
        lambda cfg: len(cfg.MODEL[leaf].IOU_LABELS) == len(cfg.MODEL[leaf].IOU_THRESHOLDS) + 1,
        when=used,
    )


def _groups(norm: str, channels: str, used) -> Relation:
    """Group normalisation has 32 groups."""

    def get(cfg: Any, key: str) -> Any:
        _, section, leaf = key.split(".")
        return cfg.MODEL[section][leaf]

    return Relation(
        (norm, channels),
        "GN needs a number of channels that 32 divides",
        lambda cfg: get(cfg, channels) % 32 == 0,
        when=lambda cfg: used(cfg) and get(cfg, norm) == "GN",
    )


def _crop_fits(cfg: Any) -> bool:
    first, second = cfg.INPUT.CROP.SIZE
    if cfg.INPUT.CROP.TYPE.startswith("relative"):
        return first <= 1 and second <= 1
    whole = all(float(v).is_integer() for v in (first, second))
    return whole and (cfg.INPUT.CROP.TYPE == "absolute" or first <= second)


def _pyramid_fits(cfg: Any) -> bool:
    """Consecutive stages that ResNet gives, up to where the top of the pyramid starts."""
    stages, given = cfg.MODEL.FPN.IN_FEATURES, cfg.MODEL.RESNETS.OUT_FEATURES
    if not (_consecutive(_stages(stages)) and set(stages) <= set(given)):
        return False
    name = cfg.MODEL.BACKBONE.NAME
    if name == "build_retinanet_resnet_fpn_backbone":
        return "res5" in given
    return "res5" in stages or (name == _SLIM and "res2" not in stages)


def _plain_resnet(cfg: Any) -> bool:
    node = cfg.MODEL.RESNETS
    return node.RES2_OUT_CHANNELS == 64 and node.NUM_GROUPS == 1 and node.RES5_DILATION == 1


def _bottleneck(cfg: Any) -> int:
    return cfg.MODEL.RESNETS.NUM_GROUPS * cfg.MODEL.RESNETS.WIDTH_PER_GROUP


def _resnet_groups(cfg: Any) -> bool:
    node = cfg.MODEL.RESNETS
    numbers = [node.STEM_OUT_CHANNELS, node.RES2_OUT_CHANNELS]
    if node.DEPTH > 34 and cfg.MODEL.BACKBONE.NAME != _SLIM:
        numbers.append(_bottleneck(cfg))
    return all(n % 32 == 0 for n in numbers)


def _roi_levels(cfg: Any) -> bool:
    names = cfg.MODEL.ROI_HEADS.IN_FEATURES
    if not all(re.fullmatch(r"p\d+", name) for name in names):
        return len(names) == 1
    return _consecutive([int(name[1:]) for name in names])


def _is_rcnn(cfg: Any) -> bool:
    """Whether the model is Detectron2's R-CNN, or a class of the user's own below it."""
    from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN

    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    return isinstance(model, type) and issubclass(model, GeneralizedRCNN)


_BOX, _MASK, _FPN = "MODEL.ROI_BOX_HEAD", "MODEL.ROI_MASK_HEAD", "MODEL.FPN"

RELATIONS = [
    Relation(
        ("MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD", "INPUT.FORMAT"),
        "mean and deviation need one number for each colour of the format",
        lambda cfg: (
            len(cfg.MODEL.PIXEL_MEAN)
            == len(cfg.MODEL.PIXEL_STD)
            == _CHANNELS.get(cfg.INPUT.FORMAT, 3)
        ),
    ),
    Relation(
        ("INPUT.MIN_SIZE_TRAIN", "INPUT.MIN_SIZE_TRAIN_SAMPLING"),
        "a range is two sizes in ascending order",
        lambda cfg: (
            isinstance(cfg.INPUT.MIN_SIZE_TRAIN, (list, tuple))
            and len(cfg.INPUT.MIN_SIZE_TRAIN) == 2
            and cfg.INPUT.MIN_SIZE_TRAIN[0] <= cfg.INPUT.MIN_SIZE_TRAIN[1]
        ),
        when=lambda cfg: cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range",
    ),
    Relation(
        ("INPUT.CROP.SIZE", "INPUT.CROP.TYPE"),
        "a relative crop has two sizes of at most 1, an absolute one two integers, and a range "
        "them in ascending order",
        _crop_fits,
        when=lambda cfg: cfg.INPUT.CROP.ENABLED,
    ),
    Relation(
        ("DATASETS.PROPOSAL_FILES_TRAIN", "DATASETS.TRAIN"),
        "every data set needs a proposal file while MODEL.LOAD_PROPOSALS is on",
        lambda cfg: len(cfg.DATASETS.PROPOSAL_FILES_TRAIN) == len(cfg.DATASETS.TRAIN),
        when=lambda cfg: cfg.MODEL.LOAD_PROPOSALS,
    ),
    Relation(
        ("DATASETS.PROPOSAL_FILES_TEST", "DATASETS.TEST"),
        "every data set needs a proposal file while MODEL.LOAD_PROPOSALS is on",
        lambda cfg: len(cfg.DATASETS.PROPOSAL_FILES_TEST) == len(cfg.DATASETS.TEST),
        when=lambda cfg: cfg.MODEL.LOAD_PROPOSALS,
    ),
    Relation(
        ("SOLVER.BASE_LR_END", "SOLVER.BASE_LR"),
        "a cosine goes from a rate above 0 down to one that is not higher",
        lambda cfg: cfg.SOLVER.BASE_LR > 0 and cfg.SOLVER.BASE_LR_END <= cfg.SOLVER.BASE_LR,
        when=lambda cfg: "Cosine" in cfg.SOLVER.LR_SCHEDULER_NAME,
    ),
    Relation(
        ("SOLVER.NESTEROV", "SOLVER.MOMENTUM"),
        "Nesterov's method needs a momentum above 0",
        lambda cfg: cfg.SOLVER.MOMENTUM > 0,
        when=lambda cfg: cfg.SOLVER.NESTEROV,
    ),
    Relation(
        ("MODEL.FPN.IN_FEATURES", "MODEL.RESNETS.OUT_FEATURES"),
        "the pyramid takes consecutive stages of those that ResNet gives, and the levels above it "
        "are made of res5",
        _pyramid_fits,
        when=fpn_used,
    ),
    Relation(
        ("MODEL.RESNETS.NORM", "MODEL.BACKBONE.NAME"),
        f"EvalBN is known to {' and '.join(EXT_RESNETS)} only",
        lambda cfg: cfg.MODEL.BACKBONE.NAME in EXT_RESNETS,
        when=lambda cfg: resnet_used(cfg) and cfg.MODEL.RESNETS.NORM == "EvalBN",
    ),
    Relation(
        (
            "MODEL.RESNETS.NORM",
            "MODEL.RESNETS.STEM_OUT_CHANNELS",
            "MODEL.RESNETS.RES2_OUT_CHANNELS",
            "MODEL.RESNETS.NUM_GROUPS",
            "MODEL.RESNETS.WIDTH_PER_GROUP",
        ),
        "GN needs numbers of channels that 32 divides",
        _resnet_groups,
        when=lambda cfg: resnet_used(cfg) and cfg.MODEL.RESNETS.NORM == "GN",
    ),
    Relation(
        (
            "MODEL.RESNETS.DEFORM_NUM_GROUPS",
            "MODEL.RESNETS.NUM_GROUPS",
            "MODEL.RESNETS.WIDTH_PER_GROUP",
        ),
        "the channels of a deformable convolution are shared out evenly among its groups",
        lambda cfg: _bottleneck(cfg) % cfg.MODEL.RESNETS.DEFORM_NUM_GROUPS == 0,
        when=lambda cfg: resnet_used(cfg) and any(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE),
    ),
    Relation(
        ("TEST.DETECTIONS_PER_IMAGE", "MODEL.META_ARCHITECTURE"),
        "only an R-CNN takes -1 for all detections",
        lambda cfg: cfg.TEST.DETECTIONS_PER_IMAGE > 0,
        when=lambda cfg: cfg.MODEL.META_ARCHITECTURE in _DENSE,
    ),
    Relation(
        ("TEST.AUG.ENABLED", "MODEL.META_ARCHITECTURE"),
        "test-time augmentation is for GeneralizedRCNN only, so the first must be False",
        _is_rcnn,
        when=lambda cfg: cfg.TEST.AUG.ENABLED,
    ),
    Relation(
        ("TEST.AUG.ENABLED", "MODEL.LOAD_PROPOSALS", "MODEL.KEYPOINT_ON"),
        "test-time augmentation takes neither proposals from files nor key points, so the first "
        "or the others must be False",
        lambda cfg: not (cfg.MODEL.LOAD_PROPOSALS or cfg.MODEL.KEYPOINT_ON),
        when=lambda cfg: cfg.TEST.AUG.ENABLED,
    ),
    Relation(
        ("MODEL.RESNETS.RES5_DILATION", "MODEL.FPN.IN_FEATURES"),
        "a pyramid needs stages whose strides double, so the dilation must be 1",
        lambda cfg: cfg.MODEL.RESNETS.RES5_DILATION == 1,
        when=lambda cfg: fpn_used(cfg) and cfg.MODEL.BACKBONE.NAME != _SLIM,
    ),
    Relation(
        (
            "MODEL.RESNETS.DEPTH",
            "MODEL.RESNETS.RES2_OUT_CHANNELS",
            "MODEL.RESNETS.NUM_GROUPS",
            "MODEL.RESNETS.RES5_DILATION",
        ),
        "a ResNet-18 or 34 has 64 channels in res2, one group and no dilation",
        _plain_resnet,
        when=lambda cfg: (
            resnet_used(cfg)
            and cfg.MODEL.BACKBONE.NAME != _SLIM
            and cfg.MODEL.RESNETS.DEPTH in (18, 34)
        ),
    ),
    *[
        _has_features(f"MODEL.{leaf}.IN_FEATURES", _dense_used(leaf))
        for leaf in ("RETINANET", "FCOS", "ATSS", "DW")
    ],
    _has_features("MODEL.RPN.IN_FEATURES", rpn_used),
    _has_features("MODEL.ROI_HEADS.IN_FEATURES", roi_heads_used),
    Relation(
        ("MODEL.ROI_HEADS.IN_FEATURES",),
        "regions are pooled from consecutive levels, in order",
        _roi_levels,
        when=roi_heads_used,
    ),
    _matching_anchors("RETINANET", retinanet_used),
    _matching_anchors("RPN", rpn_used),
    _one_label_more("RETINANET", retinanet_used),
    _one_label_more("RPN", rpn_used),
    _one_label_more("ROI_HEADS", roi_heads_used),
    *[
        _groups(
            f"MODEL.{leaf}.NORM",
            f"{_FPN}.OUT_CHANNELS",
            lambda cfg, leaf=leaf: fpn_used(cfg) and _dense_used(leaf)(cfg),
        )
        for leaf in ("RETINANET", "FCOS", "ATSS", "DW")
    ],
    _groups(f"{_FPN}.NORM", f"{_FPN}.OUT_CHANNELS", fpn_used),
    _groups(
        f"{_BOX}.NORM",
        f"{_BOX}.CONV_DIM",
        lambda cfg: roi_heads_used(cfg) and cfg.MODEL.ROI_BOX_HEAD.NUM_CONV > 0,
    ),
    _groups(f"{_MASK}.NORM", f"{_MASK}.CONV_DIM", mask_used),
    Relation(
        (f"{_BOX}.NUM_FC", f"{_BOX}.NUM_CONV"),
        "a box head needs at least one layer",
        lambda cfg: cfg.MODEL.ROI_BOX_HEAD.NUM_FC + cfg.MODEL.ROI_BOX_HEAD.NUM_CONV > 0,
        when=lambda cfg: (
            roi_heads_used(cfg) and cfg.MODEL.ROI_BOX_HEAD.NAME == "FastRCNNConvFCHead"
        ),
    ),
    Relation(
        (f"{_BOX}.FED_LOSS_NUM_CLASSES", "MODEL.ROI_HEADS.NUM_CLASSES"),
        "a federated loss cannot draw more classes than there are",
        lambda cfg: cfg.MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES <= cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        when=lambda cfg: roi_heads_used(cfg) and cfg.MODEL.ROI_BOX_HEAD.USE_FED_LOSS,
    ),
    Relation(
        ("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS"),
        "every stage needs an IoU and four weights",
        lambda cfg: (
            len(cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS)
            == len(cfg.MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS)
        ),
        when=cascade_used,
    ),
    Relation(
        ("MODEL.ROI_BOX_CASCADE_HEAD.IOUS", "MODEL.ROI_HEADS.IOU_THRESHOLDS"),
        "the first stage's IoU must be the heads' threshold",
        lambda cfg: cfg.MODEL.ROI_BOX_CASCADE_HEAD.IOUS[0] == cfg.MODEL.ROI_HEADS.IOU_THRESHOLDS[0],
        when=cascade_used,
    ),
    Relation(
        (f"{_BOX}.CLS_AGNOSTIC_BBOX_REG", "MODEL.ROI_HEADS.NAME"),
        "a cascade regresses boxes for all classes alike, so the first must be True",
        lambda cfg: cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG,
        when=cascade_used,
    ),
]
