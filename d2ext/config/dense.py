"""Keys of the dense detectors: the slots they share, FCOS and ATSS."""

from typing import Dict

from detectron2.config import CfgNode as CN

from .rules import (
    BOOLEAN,
    COUNT,
    NAME,
    NORM,
    PROBABILITY,
    SHARE,
    Rule,
    listing,
    number,
    one_of,
    registered,
)

__all__ = ["add_dense_config"]


def add_dense_config(cfg: CN) -> None:
    """Add the keys of the dense detectors to ``cfg``, in place."""
    # Slots that ExtRetinaNet, ExtFCOS and ATSS share.
    cfg.MODEL.DENSE = CN()
    # One of focal, bce, qfl, efl, eqfl, eqlv2, ghmc, or a name you registered. The parameters of
    # focal and qfl are those of the detector (e.g. MODEL.RETINANET.FOCAL_LOSS_GAMMA); efl and eqfl
    # have MODEL.EFL, eqlv2 has MODEL.EQLV2 and ghmc has MODEL.GHM.
    cfg.MODEL.DENSE.CLS_LOSS = "focal"
    # One of smooth_l1, iou, giou, diou, ciou, harmonic_iou. Empty: the detector's own
    # (MODEL.RETINANET.BBOX_REG_LOSS_TYPE for RetinaNet, giou for FCOS and ATSS).
    cfg.MODEL.DENSE.BOX_LOSS = ""
    # What sums of losses are divided by: "ema", a running mean of the number of positives;
    # "positives", the number of this step. Empty: the detector's own (ema for RetinaNet and FCOS
    # as in Detectron2, positives for ATSS).
    cfg.MODEL.DENSE.NORMALIZER = ""
    # Whether that number is the mean over ranks: "auto" (True for ATSS, False for the others, as
    # in their original code), "on" or "off".
    cfg.MODEL.DENSE.NORMALIZER_SYNC = "auto"

    _add_fcos(cfg)
    _add_atss(cfg)


def _add_fcos(cfg: CN) -> None:
    cfg.MODEL.FCOS = CN()
    cfg.MODEL.FCOS.NUM_CLASSES = 80
    cfg.MODEL.FCOS.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # Convolutions in each of the two towers, and their normalisation ("", "GN", "BN", "SyncBN").
    cfg.MODEL.FCOS.NUM_CONVS = 4
    cfg.MODEL.FCOS.NORM = "GN"
    cfg.MODEL.FCOS.PRIOR_PROB = 0.01
    # Radius of the centre, in strides, inside which a point may be positive.
    cfg.MODEL.FCOS.CENTER_SAMPLING_RADIUS = 1.5
    cfg.MODEL.FCOS.FOCAL_LOSS_ALPHA = 0.25
    cfg.MODEL.FCOS.FOCAL_LOSS_GAMMA = 2.0
    # The score is sqrt(class * centerness), so 0.2 here means a product of 0.04.
    cfg.MODEL.FCOS.SCORE_THRESH_TEST = 0.2
    cfg.MODEL.FCOS.TOPK_CANDIDATES_TEST = 1000
    cfg.MODEL.FCOS.NMS_THRESH_TEST = 0.6


def _add_atss(cfg: CN) -> None:
    cfg.MODEL.ATSS = CN()
    cfg.MODEL.ATSS.NUM_CLASSES = 80
    cfg.MODEL.ATSS.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    cfg.MODEL.ATSS.NUM_CONVS = 4
    cfg.MODEL.ATSS.NORM = "GN"
    # Whether the towers' convolutions have a bias besides their normalisation. EFL's improved
    # baseline has none.
    cfg.MODEL.ATSS.CONV_BIAS = True
    cfg.MODEL.ATSS.PRIOR_PROB = 0.01
    # Sides of the square anchors of a location, in strides. One for ATSS, two (6 and 8) for the
    # improved baseline of EFL's paper.
    cfg.MODEL.ATSS.ANCHOR_SCALES = [8.0]
    # Where in a cell its anchors are centred, in strides: 0.5 the middle, 0 the corner.
    cfg.MODEL.ATSS.ANCHOR_OFFSET = 0.5
    # Candidates of an object on each level, for each anchor of a location.
    cfg.MODEL.ATSS.TOPK = 9
    # Measure distances from the object's centre moved into the image: a box may reach beyond it.
    cfg.MODEL.ATSS.CLAMP_CENTERS = False
    # "anchor": boxes relative to the anchor. "point": distances from the centre to the four sides.
    cfg.MODEL.ATSS.REGRESSION = "anchor"
    cfg.MODEL.ATSS.BBOX_REG_WEIGHTS = (10.0, 10.0, 5.0, 5.0)
    # What the third branch predicts: "centerness" or "iou". Its target also weighs the box loss.
    cfg.MODEL.ATSS.QUALITY = "centerness"
    # A learned factor on the box branch of each level.
    cfg.MODEL.ATSS.LEVEL_SCALES = True
    cfg.MODEL.ATSS.BBOX_REG_LOSS_WEIGHT = 2.0
    cfg.MODEL.ATSS.FOCAL_LOSS_ALPHA = 0.25
    cfg.MODEL.ATSS.FOCAL_LOSS_GAMMA = 2.0
    # "sqrt": geometric mean of class score and quality. "product": their product.
    cfg.MODEL.ATSS.SCORE = "sqrt"
    # Compared with the score, whichever it is.
    cfg.MODEL.ATSS.SCORE_THRESH_TEST = 0.05
    cfg.MODEL.ATSS.TOPK_CANDIDATES_TEST = 1000
    cfg.MODEL.ATSS.NMS_THRESH_TEST = 0.6


_FEATURES = listing(NAME, least=1, distinct=True)
# Below 0: none. Above 1 the negatives would weigh less than nothing.
_FOCAL_ALPHA = number(high=1)


def _detector(name: str) -> Dict[str, Rule]:
    """Rules of what both detectors have."""
    node = f"MODEL.{name}"
    return {
        f"{node}.NUM_CLASSES": COUNT,
        f"{node}.IN_FEATURES": _FEATURES,
        f"{node}.NUM_CONVS": COUNT,
        f"{node}.NORM": NORM,
        f"{node}.PRIOR_PROB": PROBABILITY,
        f"{node}.FOCAL_LOSS_ALPHA": _FOCAL_ALPHA,
        f"{node}.FOCAL_LOSS_GAMMA": number(0),
        f"{node}.SCORE_THRESH_TEST": SHARE,
        f"{node}.TOPK_CANDIDATES_TEST": COUNT,
        f"{node}.NMS_THRESH_TEST": SHARE,
    }


RULES = {
    "MODEL.DENSE.CLS_LOSS": registered("d2ext.modeling.losses.registry:CLS_LOSS_REGISTRY"),
    "MODEL.DENSE.BOX_LOSS": registered("d2ext.modeling.losses.registry:BOX_LOSS_REGISTRY", ""),
    "MODEL.DENSE.NORMALIZER": registered(
        "d2ext.modeling.losses.normalizers:NORMALIZER_REGISTRY", ""
    ),
    "MODEL.DENSE.NORMALIZER_SYNC": one_of("auto", "on", "off"),
    **_detector("FCOS"),
    "MODEL.FCOS.CENTER_SAMPLING_RADIUS": number(above=0),
    **_detector("ATSS"),
    "MODEL.ATSS.CONV_BIAS": BOOLEAN,
    "MODEL.ATSS.ANCHOR_SCALES": listing(number(above=0), least=1),
    "MODEL.ATSS.ANCHOR_OFFSET": number(0, below=1),
    "MODEL.ATSS.TOPK": COUNT,
    "MODEL.ATSS.CLAMP_CENTERS": BOOLEAN,
    "MODEL.ATSS.REGRESSION": one_of("anchor", "point"),
    "MODEL.ATSS.BBOX_REG_WEIGHTS": listing(number(above=0), length=4),
    "MODEL.ATSS.QUALITY": one_of("centerness", "iou"),
    "MODEL.ATSS.LEVEL_SCALES": BOOLEAN,
    "MODEL.ATSS.BBOX_REG_LOSS_WEIGHT": number(0),
    "MODEL.ATSS.SCORE": one_of("sqrt", "product"),
}
