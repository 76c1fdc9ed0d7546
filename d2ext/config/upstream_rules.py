"""Rules of those of Detectron2's keys that the detectors and the trainer of d2ext read.

A section of the config is looked at only where it is used: a backbone or head of your own may give
these keys other meanings.
"""

from typing import Any, Callable, Dict, List, NamedTuple

from .rules import (
    ANY,
    BOOLEAN,
    COUNT,
    FEATURES,
    NAME,
    NORM,
    PROBABILITY,
    SHARE,
    TEXT,
    Rule,
    integer,
    listing,
    number,
    one_of,
    registered,
    torch_device,
)

__all__ = ["RPN_NAMES", "Section", "SECTIONS", "fpn_used", "resnet_used", "retinanet_used",
           "roi_heads_used", "rpn_used"]  # fmt: skip

RETINANETS = ("RetinaNet", "ExtRetinaNet")
RPN_NAMES = ("RPN", "ExtRPN")
ROI_HEADS = ("StandardROIHeads", "ExtStandardROIHeads", "CascadeROIHeads", "ExtCascadeROIHeads")
CASCADES = ("CascadeROIHeads", "ExtCascadeROIHeads")
FPNS = (
    "build_resnet_fpn_backbone",
    "build_retinanet_resnet_fpn_backbone",
    "build_p5_resnet_fpn_backbone",
    "build_lateral_resnet_fpn_backbone",
    "build_slim_resnet_fpn_backbone",
)
RESNETS = ("build_resnet_backbone", *FPNS)
# The backbones of d2ext, which have a normalisation of their own.
EXT_RESNETS = ("build_p5_resnet_fpn_backbone", "build_lateral_resnet_fpn_backbone")


def resnet_used(cfg: Any) -> bool:
    return cfg.MODEL.BACKBONE.NAME in RESNETS


def fpn_used(cfg: Any) -> bool:
    return cfg.MODEL.BACKBONE.NAME in FPNS


def retinanet_used(cfg: Any) -> bool:
    return cfg.MODEL.META_ARCHITECTURE in RETINANETS


def rcnn_used(cfg: Any) -> bool:
    return cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"


def rpn_used(cfg: Any) -> bool:
    proposes = cfg.MODEL.META_ARCHITECTURE in ("GeneralizedRCNN", "ProposalNetwork")
    return proposes and cfg.MODEL.PROPOSAL_GENERATOR.NAME in RPN_NAMES


def roi_heads_used(cfg: Any) -> bool:
    return rcnn_used(cfg) and cfg.MODEL.ROI_HEADS.NAME in ROI_HEADS


def cascade_used(cfg: Any) -> bool:
    return rcnn_used(cfg) and cfg.MODEL.ROI_HEADS.NAME in CASCADES


def mask_used(cfg: Any) -> bool:
    return roi_heads_used(cfg) and cfg.MODEL.MASK_ON is True


class Section(NamedTuple):
    """Rules that hold where ``used`` is true of a config."""

    used: Callable[[Any], bool]
    rules: Dict[str, Rule]


# Detectron2 takes 60000.0 for 60000 in a list of steps.
_STEP = Rule(
    "an integer of at least 1",
    lambda v: number(1).accepts(v) and float(v).is_integer(),
)
_FACTOR = number(0)
_PERIOD = integer(0)
_IOUS = listing(number(above=0, high=1), least=1, ascending=True)
_LABELS = listing(one_of(0, -1, 1), least=2)
_BOX_WEIGHTS = listing(number(above=0), length=4)
_POOLER = one_of("ROIAlignV2", "ROIAlign", "ROIPool", "ROIAlignRotated")
_UPSTREAM_BOX_LOSS = one_of("smooth_l1", "giou", "diou", "ciou")
_BOX_LOSS = registered("d2ext.modeling.losses.registry:BOX_LOSS_REGISTRY")
# Numpy's limit is 2^32 - 1, and each process adds its rank.
_SEED = integer(high=2**32 - 2**16)


def _levels(item: Rule) -> Rule:
    """One list for all levels, or one a level."""
    return listing(item, least=1) | listing(listing(item, least=1), least=1)


_ALWAYS = {
    "MODEL.META_ARCHITECTURE": registered("detectron2.modeling:META_ARCH_REGISTRY"),
    "MODEL.DEVICE": torch_device(),
    "MODEL.WEIGHTS": TEXT,
    "MODEL.MASK_ON": BOOLEAN,
    "MODEL.KEYPOINT_ON": BOOLEAN,
    "MODEL.LOAD_PROPOSALS": BOOLEAN,
    "MODEL.PIXEL_MEAN": listing(number(), least=1),
    "MODEL.PIXEL_STD": listing(number(above=0), least=1),
    "MODEL.BACKBONE.NAME": registered("detectron2.modeling:BACKBONE_REGISTRY"),
    "INPUT.MIN_SIZE_TRAIN": listing(integer(0), least=1) | COUNT,
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": one_of("choice", "range"),
    "INPUT.MAX_SIZE_TRAIN": COUNT,
    "INPUT.MIN_SIZE_TEST": integer(0),
    "INPUT.MAX_SIZE_TEST": COUNT,
    "INPUT.RANDOM_FLIP": one_of("horizontal", "vertical", "none"),
    "INPUT.CROP.ENABLED": BOOLEAN,
    "INPUT.CROP.TYPE": one_of("relative_range", "relative", "absolute", "absolute_range"),
    "INPUT.CROP.SIZE": listing(number(above=0), length=2),
    "INPUT.FORMAT": one_of(
        "BGR", "RGB", "L", "YUV-BT.601", "HSV", "YCbCr", "LAB", "CMYK", "RGBA", "I", "F"
    ),
    "INPUT.MASK_FORMAT": one_of("polygon", "bitmask"),
    "DATASETS.TRAIN": listing(NAME),
    "DATASETS.TEST": listing(NAME),
    "DATASETS.PROPOSAL_FILES_TRAIN": listing(NAME),
    "DATASETS.PROPOSAL_FILES_TEST": listing(NAME),
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": COUNT,
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": COUNT,
    "DATALOADER.NUM_WORKERS": integer(0),
    "DATALOADER.ASPECT_RATIO_GROUPING": BOOLEAN,
    "DATALOADER.SAMPLER_TRAIN": one_of(
        "TrainingSampler",
        "RepeatFactorTrainingSampler",
        "RandomSubsetTrainingSampler",
        "WeightedTrainingSampler",
        "WeightedCategoryTrainingSampler",
    ),
    "DATALOADER.REPEAT_THRESHOLD": SHARE,
    "DATALOADER.FILTER_EMPTY_ANNOTATIONS": BOOLEAN,
    "SOLVER.LR_SCHEDULER_NAME": one_of(
        "WarmupMultiStepLR",
        "WarmupCosineLR",
        "WarmupStepWithFixedGammaLR",
        "QuadraticWarmupCosineLR",
    ),
    "SOLVER.MAX_ITER": COUNT,
    "SOLVER.BASE_LR": number(0),
    "SOLVER.BASE_LR_END": number(0),
    "SOLVER.MOMENTUM": SHARE,
    "SOLVER.NESTEROV": BOOLEAN,
    "SOLVER.WEIGHT_DECAY": number(0),
    "SOLVER.WEIGHT_DECAY_NORM": number(0) | one_of(None),
    "SOLVER.WEIGHT_DECAY_BIAS": number(0) | one_of(None),
    "SOLVER.GAMMA": number(0),
    "SOLVER.STEPS": listing(_STEP, strictly=True),
    "SOLVER.NUM_DECAYS": COUNT,
    "SOLVER.WARMUP_FACTOR": number(0),
    "SOLVER.WARMUP_ITERS": integer(0),
    "SOLVER.WARMUP_METHOD": one_of("linear", "constant"),
    "SOLVER.RESCALE_INTERVAL": BOOLEAN,
    "SOLVER.CHECKPOINT_PERIOD": _PERIOD,
    "SOLVER.IMS_PER_BATCH": COUNT,
    "SOLVER.REFERENCE_WORLD_SIZE": integer(0),
    "SOLVER.BIAS_LR_FACTOR": number(0),
    "SOLVER.CLIP_GRADIENTS.ENABLED": BOOLEAN,
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": one_of("value", "norm", "global_norm", "full_model"),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": number(above=0, infinite=True),
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": number(above=0, infinite=True),
    "SOLVER.AMP.ENABLED": BOOLEAN,
    "TEST.EVAL_PERIOD": _PERIOD,
    "TEST.EXPECTED_RESULTS": listing(listing(ANY, least=4)),
    "TEST.DETECTIONS_PER_IMAGE": COUNT | one_of(-1),
    "TEST.AUG.ENABLED": BOOLEAN,
    "TEST.AUG.MIN_SIZES": listing(COUNT, least=1),
    "TEST.AUG.MAX_SIZE": COUNT,
    "TEST.AUG.FLIP": BOOLEAN,
    "TEST.PRECISE_BN.ENABLED": BOOLEAN,
    "TEST.PRECISE_BN.NUM_ITER": COUNT,
    "OUTPUT_DIR": TEXT,
    "SEED": _SEED,
    "CUDNN_BENCHMARK": BOOLEAN,
    "VIS_PERIOD": _PERIOD,
}

_RESNET = {
    "MODEL.BACKBONE.FREEZE_AT": integer(0, 5),
    "MODEL.RESNETS.DEPTH": one_of(18, 34, 50, 101, 152),
    "MODEL.RESNETS.OUT_FEATURES": listing(
        one_of("stem", "res2", "res3", "res4", "res5"), least=1, distinct=True
    ),
    "MODEL.RESNETS.NUM_GROUPS": COUNT,
    "MODEL.RESNETS.WIDTH_PER_GROUP": COUNT,
    "MODEL.RESNETS.NORM": NORM | one_of("EvalBN"),
    "MODEL.RESNETS.STRIDE_IN_1X1": BOOLEAN,
    "MODEL.RESNETS.RES5_DILATION": one_of(1, 2),
    "MODEL.RESNETS.RES2_OUT_CHANNELS": COUNT,
    "MODEL.RESNETS.STEM_OUT_CHANNELS": COUNT,
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": listing(BOOLEAN, length=4),
    "MODEL.RESNETS.DEFORM_MODULATED": BOOLEAN,
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": COUNT,
}

_FPN = {
    "MODEL.FPN.IN_FEATURES": listing(one_of("res2", "res3", "res4", "res5"), least=1),
    "MODEL.FPN.OUT_CHANNELS": COUNT,
    "MODEL.FPN.NORM": NORM,
    "MODEL.FPN.FUSE_TYPE": one_of("sum", "avg"),
}

_ANCHORS = {
    "MODEL.ANCHOR_GENERATOR.NAME": registered("detectron2.modeling:ANCHOR_GENERATOR_REGISTRY"),
    "MODEL.ANCHOR_GENERATOR.SIZES": _levels(number(above=0)),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": _levels(number(above=0)),
    "MODEL.ANCHOR_GENERATOR.OFFSET": number(0, below=1),
}

_RETINANET = {
    "MODEL.RETINANET.NUM_CLASSES": COUNT,
    "MODEL.RETINANET.IN_FEATURES": FEATURES,
    "MODEL.RETINANET.NUM_CONVS": COUNT,
    "MODEL.RETINANET.IOU_THRESHOLDS": _IOUS,
    "MODEL.RETINANET.IOU_LABELS": _LABELS,
    "MODEL.RETINANET.PRIOR_PROB": PROBABILITY,
    "MODEL.RETINANET.SCORE_THRESH_TEST": SHARE,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": COUNT,
    "MODEL.RETINANET.NMS_THRESH_TEST": SHARE,
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": _BOX_WEIGHTS,
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": number(0),
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": number(high=1),
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": number(0),
    "MODEL.RETINANET.NORM": NORM,
}

_RCNN = {
    "MODEL.PROPOSAL_GENERATOR.NAME": registered(
        "detectron2.modeling:PROPOSAL_GENERATOR_REGISTRY", "PrecomputedProposals"
    ),
    "MODEL.ROI_HEADS.NAME": registered("detectron2.modeling:ROI_HEADS_REGISTRY"),
}

_RPN = {
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": number(0),
    "MODEL.RPN.HEAD_NAME": registered("detectron2.modeling:RPN_HEAD_REGISTRY"),
    "MODEL.RPN.IN_FEATURES": FEATURES,
    "MODEL.RPN.BOUNDARY_THRESH": number(-1),
    "MODEL.RPN.IOU_THRESHOLDS": _IOUS,
    "MODEL.RPN.IOU_LABELS": _LABELS,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": COUNT,
    "MODEL.RPN.POSITIVE_FRACTION": SHARE,
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": _FACTOR,
    "MODEL.RPN.BBOX_REG_WEIGHTS": _BOX_WEIGHTS,
    "MODEL.RPN.SMOOTH_L1_BETA": number(0),
    "MODEL.RPN.LOSS_WEIGHT": _FACTOR,
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": COUNT,
    "MODEL.RPN.PRE_NMS_TOPK_TEST": COUNT,
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": COUNT,
    "MODEL.RPN.POST_NMS_TOPK_TEST": COUNT,
    "MODEL.RPN.NMS_THRESH": SHARE,
    "MODEL.RPN.CONV_DIMS": listing(COUNT | one_of(-1), least=1),
}

_ROI_HEADS = {
    "MODEL.ROI_HEADS.NUM_CLASSES": COUNT,
    "MODEL.ROI_HEADS.IN_FEATURES": FEATURES,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": _IOUS,
    "MODEL.ROI_HEADS.IOU_LABELS": _LABELS,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": COUNT,
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": SHARE,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": SHARE,
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": SHARE,
    "MODEL.ROI_HEADS.PROPOSAL_APPEND_GT": BOOLEAN,
    "MODEL.ROI_BOX_HEAD.NAME": registered(
        "detectron2.modeling.roi_heads.box_head:ROI_BOX_HEAD_REGISTRY"
    ),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": _FACTOR,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": _BOX_WEIGHTS,
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": number(0),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": COUNT,
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": integer(0),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": _POOLER,
    "MODEL.ROI_BOX_HEAD.NUM_FC": integer(0),
    "MODEL.ROI_BOX_HEAD.FC_DIM": COUNT,
    "MODEL.ROI_BOX_HEAD.NUM_CONV": integer(0),
    "MODEL.ROI_BOX_HEAD.CONV_DIM": COUNT,
    "MODEL.ROI_BOX_HEAD.NORM": NORM,
    "MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": BOOLEAN,
    "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": BOOLEAN,
    "MODEL.ROI_BOX_HEAD.USE_FED_LOSS": BOOLEAN,
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": BOOLEAN,
    "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER": number(0),
    "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES": COUNT,
}

_CASCADE = {
    "MODEL.ROI_BOX_CASCADE_HEAD.BBOX_REG_WEIGHTS": listing(_BOX_WEIGHTS, least=1),
    "MODEL.ROI_BOX_CASCADE_HEAD.IOUS": listing(number(above=0, high=1), least=1),
}

_MASK = {
    "MODEL.ROI_MASK_HEAD.NAME": registered("detectron2.modeling:ROI_MASK_HEAD_REGISTRY"),
    "MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION": COUNT,
    "MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO": integer(0),
    "MODEL.ROI_MASK_HEAD.NUM_CONV": integer(0),
    "MODEL.ROI_MASK_HEAD.CONV_DIM": COUNT,
    "MODEL.ROI_MASK_HEAD.NORM": NORM,
    "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK": BOOLEAN,
    "MODEL.ROI_MASK_HEAD.POOLER_TYPE": _POOLER,
}


def _box_loss(key: str, used: Callable[[Any], bool], extended: Callable[[Any], bool]) -> List:
    """A box loss is one of the registry's where d2ext's part is used, else one of Detectron2's."""
    return [
        Section(lambda cfg: used(cfg) and extended(cfg), {key: _BOX_LOSS}),
        Section(lambda cfg: used(cfg) and not extended(cfg), {key: _UPSTREAM_BOX_LOSS}),
    ]


SECTIONS = [
    Section(lambda cfg: True, _ALWAYS),
    Section(resnet_used, _RESNET),
    Section(fpn_used, _FPN),
    Section(lambda cfg: retinanet_used(cfg) or rpn_used(cfg), _ANCHORS),
    Section(retinanet_used, _RETINANET),
    Section(rcnn_used, _RCNN),
    Section(rpn_used, _RPN),
    Section(roi_heads_used, _ROI_HEADS),
    Section(cascade_used, _CASCADE),
    Section(mask_used, _MASK),
    *_box_loss(
        "MODEL.RETINANET.BBOX_REG_LOSS_TYPE",
        retinanet_used,
        lambda cfg: cfg.MODEL.META_ARCHITECTURE == "ExtRetinaNet",
    ),
    *_box_loss(
        "MODEL.RPN.BBOX_REG_LOSS_TYPE",
        rpn_used,
        lambda cfg: cfg.MODEL.PROPOSAL_GENERATOR.NAME == "ExtRPN",
    ),
    *_box_loss(
        "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE",
        roi_heads_used,
        lambda cfg: str(cfg.MODEL.ROI_HEADS.NAME).startswith("Ext"),
    ),
]
