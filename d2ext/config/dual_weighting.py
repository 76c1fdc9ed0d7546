"""Keys of dual weighting (Li et al., CVPR 2022)."""

from detectron2.config import CfgNode as CN

from .rules import (
    BOOLEAN,
    COUNT,
    NAME,
    NORM,
    PROBABILITY,
    SHARE,
    listing,
    number,
    one_of,
    registered,
)

__all__ = ["add_dual_weighting_config"]


def add_dual_weighting_config(cfg: CN) -> None:
    """Add ``MODEL.DW`` to ``cfg``, in place.

    In the paper's symbols, for a point with joint score s = class * objectness and a box of
    overlap IoU with the object, q the centre prior::

        t     = s exp(-beta (1 - GIoU))
        w_pos = exp(mu t) t q / sum_bag exp(mu_norm t) t q
        P_neg = (1 - IoU^gamma1) scaled to [0, 1] in the bag, 1 below neg_iou;  I_neg = s^gamma2
        loss  = 0.25 (sum w_pos (-log s) + 5 sum w_pos (1 - GIoU)) / (number of objects)
                + sum P_neg I_neg (-log(1 - s)) / sum (1 - P_neg)
    """
    cfg.MODEL.DW = CN()
    _add_model(cfg.MODEL.DW)
    _add_weights(cfg.MODEL.DW)
    _add_inference(cfg.MODEL.DW)


def _add_model(node: CN) -> None:
    node.NUM_CLASSES = 80
    node.IN_FEATURES = ["p3", "p4", "p5", "p6", "p7"]
    # Convolutions in each of the two towers, and their normalisation ("", "GN", "BN", "SyncBN").
    node.NUM_CONVS = 4
    node.NORM = "GN"
    # Initial class score. The objectness starts at 0.5, so the joint score starts at 0.01.
    node.PRIOR_PROB = 0.02
    # "point": the box branch gives the distances to the four sides. "anchor": shifts and scales of
    # one square anchor a location, as in ATSS; DW's weights do not care where boxes come from.
    node.REGRESSION = "point"
    # Initial distance to each side, in strides, for "point"; side of the anchor for "anchor".
    node.BOX_BIAS = 4.0
    node.ANCHOR_SCALE = 8.0
    # Read each side's distance again at a learned point near that side.
    node.REFINE_BOXES = False
    # The last convolution of both towers is deformable, with learned modulation. For the backbone
    # see MODEL.RESNETS.DEFORM_ON_PER_STAGE and DEFORM_MODULATED.
    node.DEFORM_LAST_CONV = False


def _add_weights(node: CN) -> None:
    # q: a Gaussian of the distance to the object's centre, PRIOR_SIGMA strides wide. False: 1 where
    # that Gaussian is above PRIOR_THRESHOLD, else 0.
    node.SOFT_PRIOR = True
    node.PRIOR_SIGMA = 1.11
    node.PRIOR_THRESHOLD = 0.3
    # t: "exp_giou" as above, or "iou_pow", s IoU^beta, as the paper writes it. "none", for
    # ablations: no positive weighting, w_pos = q / sum_bag q.
    node.T_METRIC = "exp_giou"
    node.BETA = 5.0
    # MU_NORM below MU lets w_pos sum to more than 1, the more the better the object is detected;
    # this balances the positive with the negative loss. Equal: the paper's formula.
    node.MU = 5.0
    node.MU_NORM = 3.0
    # P_neg: "bag_norm" as above, or "fixed", a curve through 1 at NEG_IOU and 0 at IoU 0.95, as the
    # paper writes it. "complement", for ablations: no weighting of the negatives on their own,
    # P_neg = 1 - w_pos / max_bag w_pos.
    node.NEG_METRIC = "bag_norm"
    node.GAMMA1 = 2.0
    node.NEG_IOU = 0.5
    node.GAMMA2 = 2.0
    # Where several objects of one class hold a point, its P_neg is that of the "last" one in
    # annotation order, or the smallest ("min").
    node.NEG_CONFLICT = "last"
    # Factor of both positive losses, and a further one of the box loss.
    node.POS_LOSS_WEIGHT = 0.25
    node.LOC_LOSS_WEIGHT = 5.0


def _add_inference(node: CN) -> None:
    # Compared with the product of class score and objectness.
    node.SCORE_THRESH_TEST = 0.05
    # (point, class) pairs kept on each level.
    node.TOPK_CANDIDATES_TEST = 1000
    node.NMS_THRESH_TEST = 0.6


# exp(MU t) with t up to 1 must fit into float32.
_MU = number(0, 80)

RULES = {
    "MODEL.DW.NUM_CLASSES": COUNT,
    "MODEL.DW.IN_FEATURES": listing(NAME, least=1, distinct=True),
    "MODEL.DW.NUM_CONVS": COUNT,
    "MODEL.DW.NORM": NORM,
    "MODEL.DW.PRIOR_PROB": PROBABILITY,
    "MODEL.DW.REGRESSION": one_of("point", "anchor"),
    "MODEL.DW.BOX_BIAS": number(0),
    "MODEL.DW.ANCHOR_SCALE": number(above=0),
    "MODEL.DW.REFINE_BOXES": BOOLEAN,
    "MODEL.DW.DEFORM_LAST_CONV": BOOLEAN,
    "MODEL.DW.SOFT_PRIOR": BOOLEAN,
    "MODEL.DW.PRIOR_SIGMA": number(above=0),
    # The Gaussian is never above 1, so no point would be left.
    "MODEL.DW.PRIOR_THRESHOLD": number(0, below=1),
    "MODEL.DW.T_METRIC": registered("d2ext.ops.dual_weighting:T_METRICS"),
    "MODEL.DW.BETA": number(0),
    "MODEL.DW.MU": _MU,
    "MODEL.DW.MU_NORM": _MU,
    "MODEL.DW.NEG_METRIC": registered("d2ext.ops.dual_weighting:NEG_METRICS"),
    "MODEL.DW.GAMMA1": number(above=0),
    "MODEL.DW.NEG_IOU": number(above=0, below=0.95),
    # p^gamma2 has an infinite slope at p = 0 for exponents below 1.
    "MODEL.DW.GAMMA2": number(1),
    "MODEL.DW.NEG_CONFLICT": registered("d2ext.ops.dual_weighting:NEG_CONFLICTS"),
    "MODEL.DW.POS_LOSS_WEIGHT": number(0),
    "MODEL.DW.LOC_LOSS_WEIGHT": number(0),
    "MODEL.DW.SCORE_THRESH_TEST": SHARE,
    "MODEL.DW.TOPK_CANDIDATES_TEST": COUNT,
    "MODEL.DW.NMS_THRESH_TEST": SHARE,
}
