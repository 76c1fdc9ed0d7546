"""Rules of those of Detectron2's keys that would fail silently or late.

A wrong name, a wrong number of channels or levels, an impossible rate: Detectron2, PyTorch and the
parts of d2ext refuse those at once when they are built, and need no rules here. What is here would
train a worse model, end in an error without a message, or come up at the first evaluation,
at the first checkpoint, or as a complaint about an image.

A section is looked at only where it is used: a backbone or head of your own may give these keys
other meanings.
"""

from typing import Any, Callable, Dict, List, NamedTuple

from .classes import DENSE_SECTIONS
from .rules import (
    ANY,
    BOOLEAN,
    COUNT,
    NORM,
    PROBABILITY,
    SHARE,
    TEXT,
    Relation,
    Rule,
    integer,
    listing,
    number,
    one_of,
    torch_device,
)

__all__ = ["RELATIONS", "SECTIONS", "Section", "type_rule"]

# The backbones of d2ext, which have a normalisation of their own.
EXT_RESNETS = (
    "build_p5_resnet_fpn_backbone", "build_lateral_resnet_fpn_backbone",
    "build_mmdet_retinanet_resnet_fpn_backbone", "build_ext_resnet_fpn_backbone",
)  # fmt: skip
RESNETS = (
    "build_resnet_backbone", "build_resnet_fpn_backbone", "build_retinanet_resnet_fpn_backbone",
    "build_slim_resnet_fpn_backbone", *EXT_RESNETS,
)  # fmt: skip
RPNS = ("RPN", "ExtRPN")
CASCADES = ("CascadeROIHeads", "ExtCascadeROIHeads")
ROI_HEADS = ("StandardROIHeads", "ExtStandardROIHeads", *CASCADES)


def resnet_used(cfg: Any) -> bool:
    return cfg.MODEL.BACKBONE.NAME in RESNETS


def retinanet_used(cfg: Any) -> bool:
    return DENSE_SECTIONS.get(cfg.MODEL.META_ARCHITECTURE) == "RETINANET"


def rpn_used(cfg: Any) -> bool:
    proposes = cfg.MODEL.META_ARCHITECTURE in ("GeneralizedRCNN", "ProposalNetwork")
    return proposes and cfg.MODEL.PROPOSAL_GENERATOR.NAME in RPNS


def roi_heads_used(cfg: Any) -> bool:
    rcnn = cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    return rcnn and cfg.MODEL.ROI_HEADS.NAME in ROI_HEADS


def cascade_used(cfg: Any) -> bool:
    return roi_heads_used(cfg) and cfg.MODEL.ROI_HEADS.NAME in CASCADES


class Section(NamedTuple):
    """Rules that hold where ``used`` is true of a config."""

    used: Callable[[Any], bool]
    rules: Dict[str, Rule]


def _rules(section: str, *found: Any) -> Dict[str, Rule]:
    """Rules by key, from pairs of a rule and the keys of a section that it is for."""
    pairs = zip(found[::2], found[1::2])
    return {f"{section}.{key}": rule for rule, keys in pairs for key in keys.split()}


def type_rule(default: Any) -> Rule:
    """What a key of Detectron2's without a rule of its own may be: what its default is."""
    kinds = ((bool, BOOLEAN), (int, integer()), (float, number(infinite=True)), (str, TEXT),
             ((list, tuple), listing(ANY)))  # fmt: skip
    return next((rule for kind, rule in kinds if isinstance(default, kind)), ANY)


_WEIGHTS = listing(number(above=0), length=4)
_IOUS = listing(number(above=0, high=1), least=1, ascending=True)
# Detectron2 takes 60000.0 for 60000 in a list of steps.
_STEP = Rule("an integer of at least 1", lambda v: number(1).accepts(v) and float(v).is_integer())
_SIZES = listing(number(above=0), least=1)
_ANCHORS = _SIZES | listing(_SIZES, least=1)
_MATCHER = (_IOUS, "IOU_THRESHOLDS", listing(one_of(0, -1, 1), least=2), "IOU_LABELS")
_HEAD_LOSS = (number(0), "BBOX_REG_LOSS_WEIGHT SMOOTH_L1_BETA", _WEIGHTS, "BBOX_REG_WEIGHTS")
_POOLER = (COUNT, "POOLER_RESOLUTION CONV_DIM", integer(0), "POOLER_SAMPLING_RATIO NUM_CONV",
           NORM, "NORM")  # fmt: skip

_ALWAYS = {
    **_rules(
        "INPUT", COUNT, "MAX_SIZE_TRAIN MAX_SIZE_TEST", integer(0), "MIN_SIZE_TEST",
        listing(integer(0), least=1) | COUNT, "MIN_SIZE_TRAIN",
        one_of("polygon", "bitmask"), "MASK_FORMAT",
        one_of("BGR", "RGB", "L", "YUV-BT.601", "HSV", "YCbCr", "LAB", "CMYK", "RGBA", "I", "F"),
        "FORMAT", listing(number(above=0), length=2), "CROP.SIZE",
        one_of("relative_range", "relative", "absolute", "absolute_range"), "CROP.TYPE",
    ),
    **_rules(
        "SOLVER", COUNT, "MAX_ITER IMS_PER_BATCH NUM_DECAYS", SHARE, "MOMENTUM",
        integer(0), "WARMUP_ITERS CHECKPOINT_PERIOD REFERENCE_WORLD_SIZE",
        number(0), "BASE_LR GAMMA WARMUP_FACTOR BIAS_LR_FACTOR WEIGHT_DECAY BASE_LR_END",
        number(0) | one_of(None), "WEIGHT_DECAY_NORM WEIGHT_DECAY_BIAS",
        listing(_STEP, strictly=True), "STEPS",
        number(above=0, infinite=True), "CLIP_GRADIENTS.NORM_TYPE",
    ),
    **_rules(
        "TEST", integer(0), "EVAL_PERIOD", COUNT | one_of(-1), "DETECTIONS_PER_IMAGE",
        listing(listing(ANY, least=4)), "EXPECTED_RESULTS",
        listing(COUNT, least=1), "AUG.MIN_SIZES", COUNT, "AUG.MAX_SIZE PRECISE_BN.NUM_ITER",
    ),
    **_rules("DATALOADER", integer(0), "NUM_WORKERS", SHARE, "REPEAT_THRESHOLD"),
    **_rules("DATASETS", listing(TEXT), "TRAIN TEST PROPOSAL_FILES_TRAIN PROPOSAL_FILES_TEST",
             COUNT, "PRECOMPUTED_PROPOSAL_TOPK_TRAIN PRECOMPUTED_PROPOSAL_TOPK_TEST"),
    **_rules("MODEL", torch_device(), "DEVICE", listing(number(above=0), least=1), "PIXEL_STD",
             listing(number(), least=1), "PIXEL_MEAN"),
    # Numpy's limit is 2^32 - 1, and each process adds its rank.
    "SEED": integer(high=2**32 - 2**16),
    "VIS_PERIOD": integer(0),
}  # fmt: skip

SECTIONS = [
    Section(lambda cfg: True, _ALWAYS),
    Section(resnet_used, _rules(
        "MODEL", integer(0, 5), "BACKBONE.FREEZE_AT", one_of(18, 34, 50, 101, 152), "RESNETS.DEPTH",
        one_of(1, 2), "RESNETS.RES5_DILATION", NORM | one_of("EvalBN"), "RESNETS.NORM",
        listing(BOOLEAN, length=4), "RESNETS.DEFORM_ON_PER_STAGE",
        COUNT, "RESNETS.DEFORM_NUM_GROUPS RESNETS.NUM_GROUPS RESNETS.WIDTH_PER_GROUP",
        one_of("sum", "avg"), "FPN.FUSE_TYPE", NORM, "FPN.NORM",
    )),
    Section(lambda cfg: retinanet_used(cfg) or rpn_used(cfg), _rules(
        "MODEL.ANCHOR_GENERATOR", _ANCHORS, "SIZES ASPECT_RATIOS", number(0, below=1), "OFFSET",
    )),
    Section(retinanet_used, _rules(
        "MODEL.RETINANET", *_MATCHER, COUNT, "NUM_CLASSES NUM_CONVS TOPK_CANDIDATES_TEST",
        PROBABILITY, "PRIOR_PROB", SHARE, "SCORE_THRESH_TEST NMS_THRESH_TEST",
        _WEIGHTS, "BBOX_REG_WEIGHTS", number(0), "FOCAL_LOSS_GAMMA SMOOTH_L1_LOSS_BETA",
        number(high=1), "FOCAL_LOSS_ALPHA", NORM, "NORM",
    )),
    Section(rpn_used, {"MODEL.PROPOSAL_GENERATOR.MIN_SIZE": number(0), **_rules(
        "MODEL.RPN", *_MATCHER, *_HEAD_LOSS, number(0), "LOSS_WEIGHT",
        number(-1), "BOUNDARY_THRESH",
        COUNT, "BATCH_SIZE_PER_IMAGE PRE_NMS_TOPK_TRAIN PRE_NMS_TOPK_TEST POST_NMS_TOPK_TRAIN "
        "POST_NMS_TOPK_TEST", SHARE, "POSITIVE_FRACTION NMS_THRESH",
        listing(COUNT | one_of(-1), least=1), "CONV_DIMS",
    )}),
    Section(roi_heads_used, {**_rules(
        "MODEL.ROI_HEADS", *_MATCHER, COUNT, "NUM_CLASSES BATCH_SIZE_PER_IMAGE",
        SHARE, "POSITIVE_FRACTION SCORE_THRESH_TEST NMS_THRESH_TEST",
    ), **_rules(
        "MODEL.ROI_BOX_HEAD", *_HEAD_LOSS, *_POOLER, COUNT, "FC_DIM FED_LOSS_NUM_CLASSES",
        integer(0), "NUM_FC", number(0), "FED_LOSS_FREQ_WEIGHT_POWER",
    )}),
    Section(cascade_used, _rules(
        "MODEL.ROI_BOX_CASCADE_HEAD", listing(number(above=0, high=1), least=1), "IOUS",
        listing(_WEIGHTS, least=1), "BBOX_REG_WEIGHTS",
    )),
    Section(
        lambda cfg: roi_heads_used(cfg) and cfg.MODEL.MASK_ON is True,
        _rules("MODEL.ROI_MASK_HEAD", *_POOLER),
    ),
]  # fmt: skip

# Colours of an image that Detectron2 reads in a format.
_CHANNELS = {"L": 1, "I": 1, "F": 1, "CMYK": 4, "RGBA": 4}


def _crop_fits(cfg: Any) -> bool:
    first, second = cfg.INPUT.CROP.SIZE
    if cfg.INPUT.CROP.TYPE.startswith("relative"):
        return bool(first <= 1 and second <= 1)
    whole = all(float(v).is_integer() for v in (first, second))
    return whole and (cfg.INPUT.CROP.TYPE == "absolute" or first <= second)


def _range_fits(cfg: Any) -> bool:
    sizes = cfg.INPUT.MIN_SIZE_TRAIN
    return isinstance(sizes, (list, tuple)) and len(sizes) == 2 and sizes[0] < sizes[1]


def _is_rcnn(cfg: Any) -> bool:
    """Whether the model is Detectron2's R-CNN, or a class of the user's own below it."""
    from detectron2.modeling import META_ARCH_REGISTRY, GeneralizedRCNN

    if cfg.MODEL.META_ARCHITECTURE not in META_ARCH_REGISTRY:
        return True
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)
    return isinstance(model, type) and issubclass(model, GeneralizedRCNN)


def _one_label_more(leaf: str, used: Callable[[Any], bool]) -> Relation:
    return Relation(
        (f"MODEL.{leaf}.IOU_LABELS", f"MODEL.{leaf}.IOU_THRESHOLDS"),
        "there must be one label more than thresholds",
        lambda cfg: len(cfg.MODEL[leaf].IOU_LABELS) == len(cfg.MODEL[leaf].IOU_THRESHOLDS) + 1,
        when=used,
    )


def _proposals(leaf: str) -> Relation:
    return Relation(
        (f"DATASETS.PROPOSAL_FILES_{leaf}", f"DATASETS.{leaf}"),
        "every data set needs a proposal file while MODEL.LOAD_PROPOSALS is on",
        lambda cfg: len(cfg.DATASETS[f"PROPOSAL_FILES_{leaf}"]) == len(cfg.DATASETS[leaf]),
        when=lambda cfg: cfg.MODEL.LOAD_PROPOSALS,
    )


RELATIONS: List[Relation] = [
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
        _range_fits,
        when=lambda cfg: cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING == "range",
    ),
    Relation(
        ("INPUT.CROP.SIZE", "INPUT.CROP.TYPE"),
        "a relative crop has two sizes of at most 1, an absolute one two integers, and a range "
        "them in ascending order",
        _crop_fits,
        when=lambda cfg: cfg.INPUT.CROP.ENABLED,
    ),
    _proposals("TRAIN"),
    _proposals("TEST"),
    Relation(
        ("SOLVER.BASE_LR_END", "SOLVER.BASE_LR"),
        "a cosine goes from a rate above 0 down to one that is not higher",
        lambda cfg: cfg.SOLVER.BASE_LR > 0 and cfg.SOLVER.BASE_LR_END <= cfg.SOLVER.BASE_LR,
        when=lambda cfg: "Cosine" in cfg.SOLVER.LR_SCHEDULER_NAME,
    ),
    Relation(
        ("MODEL.RESNETS.NORM", "MODEL.BACKBONE.NAME"),
        f"EvalBN is known to {' and '.join(EXT_RESNETS)} only",
        lambda cfg: cfg.MODEL.BACKBONE.NAME in EXT_RESNETS,
        when=lambda cfg: resnet_used(cfg) and cfg.MODEL.RESNETS.NORM == "EvalBN",
    ),
    Relation(
        ("MODEL.RESNETS.RES5_DILATION", "MODEL.BACKBONE.NAME"),
        "a pyramid needs stages whose strides double, so the dilation must be 1",
        lambda cfg: cfg.MODEL.RESNETS.RES5_DILATION == 1,
        when=lambda cfg: resnet_used(cfg) and cfg.MODEL.BACKBONE.NAME != "build_resnet_backbone",
    ),
    Relation(
        ("TEST.DETECTIONS_PER_IMAGE", "MODEL.META_ARCHITECTURE"),
        "only an R-CNN takes -1 for all detections",
        lambda cfg: cfg.TEST.DETECTIONS_PER_IMAGE > 0,
        when=lambda cfg: cfg.MODEL.META_ARCHITECTURE in DENSE_SECTIONS,
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
    _one_label_more("RETINANET", retinanet_used),
    _one_label_more("RPN", rpn_used),
    _one_label_more("ROI_HEADS", roi_heads_used),
    Relation(
        ("MODEL.ROI_BOX_HEAD.NUM_FC", "MODEL.ROI_BOX_HEAD.NUM_CONV"),
        "a box head needs at least one layer",
        lambda cfg: cfg.MODEL.ROI_BOX_HEAD.NUM_FC + cfg.MODEL.ROI_BOX_HEAD.NUM_CONV > 0,
        when=lambda cfg: (
            roi_heads_used(cfg) and cfg.MODEL.ROI_BOX_HEAD.NAME == "FastRCNNConvFCHead"
        ),
    ),
    Relation(
        ("MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES", "MODEL.ROI_HEADS.NUM_CLASSES"),
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
]
