"""Keys of the dense detectors: the slots they share, FCOS and ATSS."""

from typing import List

from .keys import Key, Section
from .rules import (
    BOOLEAN,
    COUNT,
    FEATURES,
    NORM,
    PROBABILITY,
    SHARE,
    integer,
    listing,
    number,
    one_of,
    registered,
)

__all__ = ["SECTIONS"]


_SELECTION = [
    # Detectron2 clips behind NMS, when overlaps of boxes beyond the border have been compared.
    Key("CLIP_BEFORE_NMS", False, BOOLEAN, "clip boxes to the image before NMS"),
    # On a coarse level this is less than TOPK_CANDIDATES_TEST.
    Key("TOPK_PER_LEVEL_CAP", "none", one_of("none", "anchors"),
        "`anchors`: no more (place, class) pairs of a level than it has anchors"),
]  # fmt: skip
_THRESHOLD = Key(
    "SCORE_THRESH_ON",
    "score",
    one_of("score", "class"),
    "what SCORE_THRESH_TEST is compared with: the score, or the class' part of it",
)


def _detector(
    threshold: float,
    threshold_of: str,
    *,
    top: int = 7,
    convs: int = 4,
    norm: str = "GN",
    gamma: float = 2.0,
    nms: float = 0.6,
) -> List[Key]:
    """Keys that FCOS, ATSS and YOLOX have in common."""
    levels = [f"p{level}" for level in range(3, top + 1)]
    return [
        Key("NUM_CLASSES", 80, COUNT, "classes, without background"),
        Key("IN_FEATURES", levels, FEATURES, "levels of the pyramid",
            "head_in_features"),
        Key("NUM_CONVS", convs, COUNT, "convolutions in each of the two towers", ""),
        Key("NORM", norm, NORM, "their normalisation", part="head"),
        Key("PRIOR_PROB", 0.01, PROBABILITY, "score of every class at the start", part="head"),
        Key("FOCAL_LOSS_ALPHA", 0.25, number(high=1), "weight of positives; below 0: none",
            "alpha", "loss"),
        Key("FOCAL_LOSS_GAMMA", gamma, number(0), "focusing exponent", "gamma", "loss"),
        Key("SCORE_THRESH_TEST", threshold, SHARE, f"least score; {threshold_of}",
            "test_score_thresh"),
        Key("TOPK_CANDIDATES_TEST", 1000, COUNT, "(place, class) pairs kept on each level",
            "test_topk_candidates"),
        Key("NMS_THRESH_TEST", nms, SHARE, "IoU above which NMS removes a box", "test_nms_thresh"),
        *_SELECTION,
    ]  # fmt: skip


SECTIONS = [
    # Slots that ExtRetinaNet, ExtFCOS, ATSS and YOLOX share.
    Section(
        "MODEL.DENSE",
        # The parameters of focal and qfl are those of the detector (e.g.
        # MODEL.RETINANET.FOCAL_LOSS_GAMMA); the others have sections of their own.
        Key("CLS_LOSS", "focal", registered("d2ext.modeling.losses.registry:CLS_LOSS_REGISTRY"),
            "focal, bce, qfl, efl, eqfl, eqlv2, ghmc, varifocal, mal, or a name you registered"),
        # The detector's own: MODEL.RETINANET.BBOX_REG_LOSS_TYPE for RetinaNet, giou for FCOS and
        # ATSS, iou_squared for YOLOX.
        Key("BOX_LOSS", "", registered("d2ext.modeling.losses.registry:BOX_LOSS_REGISTRY", ""),
            "smooth_l1, iou, iou_squared, giou, diou, ciou or a rival's; empty: the detector's"),
        # iou, center, atss, tal_tood, tal_yolo, simota, dsl, or a name you registered. Detectors'
        # own: iou for RetinaNet, center for FCOS, atss for ATSS, simota for YOLOX.
        # Parameters are MODEL.RETINANET.IOU_THRESHOLDS and IOU_LABELS,
        # MODEL.FCOS.CENTER_SAMPLING_RADIUS, and MODEL.ATSS.TOPK and CLAMP_CENTERS, whichever
        # detector they are used in; the others have sections of their own.
        Key("ASSIGNER", "auto",
            registered("d2ext.modeling.assigners:ASSIGNER_REGISTRY", "auto"),
            "who learns which object: iou, center, atss, ...; auto: the detector's own"),
        # ema: a running mean of the number of positives. The detector's own: ema for RetinaNet and
        # FCOS as in Detectron2, positives for ATSS and where the assigner sees predictions.
        Key("NORMALIZER", "",
            registered("d2ext.modeling.losses.normalizers:NORMALIZER_REGISTRY", ""),
            "divisor of sums of losses: ema, positives; empty: the detector's own"),
        # auto: as in the original code, on for ATSS and for assigners that see predictions, and
        # off for the others.
        Key("NORMALIZER_SYNC", "auto", one_of("auto", "on", "off"),
            "whether that is the mean over ranks; auto: for ATSS"),
    ),
    Section(
        "MODEL.FCOS",
        *_detector(0.2, "it is sqrt(class * centerness), so 0.2 means a product of 0.04"),
        Key("CENTER_SAMPLING_RADIUS", 1.5, number(0),
            "radius of the centre, in strides, inside which a point may be positive; 0: all"),
        # The others are those of the first FCOS, which Sampling-Free's authors use. exp_pixels: a
        # learned factor scales a level's logarithms.
        Key("DISTANCE", "relu_stride", one_of("relu_stride", "exp_pixels"),
            "distances to the sides: strides, by a ReLU; or pixels, by an exponential", ""),
        Key("LEGACY_BOXES", False, BOOLEAN, "objects end one pixel before x2 and y2", ""),
        Key("CENTERNESS_ON", "box", one_of("box", "class"), "tower below the centerness branch",
            part="head"),
        Key("BOX_WEIGHT", "none", one_of("none", "centerness"),
            "weight of a positive in the box loss"),
        _THRESHOLD,
    ),
    Section(
        "MODEL.YOLOX",
        # With gamma 0, qfl is the binary cross entropy with the IoU that YOLOX has. The head's
        # batch normalisation has the constants of MODEL.CSPDARKNET.
        *_detector(0.01, "class times objectness", top=5, convs=2, norm="BN", gamma=0.0, nms=0.65),
        # "all": background points learn that they are of no class, which objectness says already.
        Key("CLASSIFY", "positives", one_of("positives", "all"), "which points learn their class"),
        Key("BBOX_REG_LOSS_WEIGHT", 5.0, number(0), "weight of the box loss", "box_loss_weight"),
        Key("L1_LOSS_WEIGHT", 1.0, number(0), "weight of the L1 of deltas; 0: none"),
        # YOLOX: with the last epochs, which have no mosaic.
        Key("L1_FROM_ITER", 0, integer(0), "first step with that loss"),
    ),
    Section(
        "MODEL.ATSS",
        *_detector(0.05, "see SCORE"),
        # YOLOX's decoupled head has BatchNorm with the constants of MODEL.CSPDARKNET.
        Key("HEAD", "shared", one_of("shared", "decoupled"),
            "towers shared over the levels, or YOLOX's, each level with its own", ""),
        # EFL's improved baseline has none.
        Key("CONV_BIAS", True, BOOLEAN, "`shared`: bias of the towers' convolutions",
            part="shared"),
        # Two (6 and 8) for the improved baseline of EFL's paper.
        Key("ANCHOR_SCALES", [8.0], listing(number(above=0), least=1),
            "sides of the square anchors of a location, in strides", ""),
        Key("ANCHOR_OFFSET", 0.5, number(0, below=1),
            "centre of the anchors in their cell, in strides: 0.5 the middle, 0 the corner", ""),
        Key("TOPK", 9, COUNT, "candidates of an object on a level, for each anchor of a location",
            ""),
        # A box may reach beyond the image.
        Key("CLAMP_CENTERS", False, BOOLEAN,
            "measure distances from the object's centre moved into the image", part="assigner"),
        # 0.51 in the improved baseline of EFL's paper, whose boxes end one pixel earlier.
        Key("INSIDE_MARGIN", 0.01, number(0),
            "how far inside its object a positive's centre is, in pixels", "margin", "assigner"),
        Key("REGRESSION", "anchor", one_of("anchor", "point"),
            "boxes relative to the anchor, or distances from its centre to the four sides", ""),
        Key("BBOX_REG_WEIGHTS", (10.0, 10.0, 5.0, 5.0), listing(number(above=0), length=4),
            "`anchor`: factors of the deltas", ""),
        # Its target also weighs the box loss.
        Key("QUALITY", "centerness", one_of("centerness", "iou"), "what the third branch predicts"),
        Key("LEVEL_SCALES", True, BOOLEAN,
            "`shared`: a learned factor on the box branch of each level", part="shared"),
        Key("BBOX_REG_LOSS_WEIGHT", 2.0, number(0), "weight of the box loss", "box_loss_weight"),
        # Not among the losses that guide the class loss of Sampling-Free.
        Key("L1_LOSS_WEIGHT", 0.0, number(0),
            "weight of a further loss, the mean L1 of the positives' deltas", "l1_loss_weight"),
        Key("SCORE", "sqrt", one_of("sqrt", "product"),
            "geometric mean of class score and quality, or their product"),
        _THRESHOLD,
        # Clips them, too.
        Key("DROP_EMPTY", False, BOOLEAN,
            "leave out boxes without area in the image before the best of a level are taken"),
    ),
    Section("MODEL.RETINANET", *_SELECTION),
]  # fmt: skip
