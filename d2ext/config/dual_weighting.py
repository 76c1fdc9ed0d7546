"""Keys of dual weighting (Li et al., CVPR 2022).

In the paper's symbols, for a point with joint score s = class * objectness and a box of overlap
IoU with the object, q the centre prior::

    t     = s exp(-beta (1 - GIoU))
    w_pos = exp(mu t) t q / sum_bag exp(mu_norm t) t q
    P_neg = (1 - IoU^gamma1) scaled to [0, 1] in the bag, 1 below neg_iou;  I_neg = s^gamma2
    loss  = 0.25 (sum w_pos (-log s) + 5 sum w_pos (1 - GIoU)) / (number of objects)
            + sum P_neg I_neg (-log(1 - s)) / sum (1 - P_neg)
"""

from .keys import Key, Section
from .rules import (
    BOOLEAN,
    COUNT,
    FEATURES,
    NORM,
    PROBABILITY,
    SHARE,
    number,
    one_of,
    registered,
)

__all__ = ["SECTIONS"]

# exp(MU t) with t up to 1 must fit into float32.
_MU = number(0, 80)

_DETECTOR = [
    Key("NUM_CLASSES", 80, COUNT, "classes, without background"),
    Key("IN_FEATURES", ["p3", "p4", "p5", "p6", "p7"], FEATURES, "levels of the pyramid",
        "head_in_features"),
    # FCOS' 0.2 is compared with the square root of such a product.
    Key("SCORE_THRESH_TEST", 0.05, SHARE, "least product of class score and objectness",
        "test_score_thresh"),
    Key("TOPK_CANDIDATES_TEST", 1000, COUNT, "(point, class) pairs kept on each level",
        "test_topk_candidates"),
    Key("NMS_THRESH_TEST", 0.6, SHARE, "IoU above which NMS removes a box", "test_nms_thresh"),
]  # fmt: skip

_HEAD = [
    Key("NUM_CONVS", 4, COUNT, "convolutions in each of the two towers", ""),
    Key("NORM", "GN", NORM, "their normalisation", part="head"),
    # The objectness starts at 0.5, so the joint score starts at 0.01.
    Key("PRIOR_PROB", 0.02, PROBABILITY, "class score at the start", part="head"),
    # DW's weights do not care where boxes come from.
    Key("REGRESSION", "point", one_of("point", "anchor"),
        "distances to the four sides; or shifts and scales of one square anchor", part="head"),
    Key("BOX_BIAS", 4.0, number(0), "`point`: distance to each side at the start, in strides",
        part="head"),
    Key("ANCHOR_SCALE", 8.0, number(above=0), "`anchor`: its side, in strides", part="head"),
    Key("REFINE_BOXES", False, BOOLEAN, "read each side again at a learned point near it",
        "refine", "head"),
    # For the backbone see MODEL.RESNETS.DEFORM_ON_PER_STAGE and DEFORM_MODULATED.
    Key("DEFORM_LAST_CONV", False, BOOLEAN, "deformable last convolution of both towers",
        part="head"),
    # A checkpoint of a whole detector makes it irrelevant.
    Key("DEFORM_INIT", "zero", one_of("zero", "authors"),
        "its offsets start at 0 and weights as the others', or all as in the authors' code",
        part="head"),
]  # fmt: skip

_WEIGHTS = [
    # q: a Gaussian of the distance to the object's centre.
    Key("SOFT_PRIOR", True, BOOLEAN, "q is a Gaussian; False: 1 where that is above a threshold",
        part="constants"),
    Key("PRIOR_SIGMA", 1.11, number(above=0), "its width, in strides", part="constants"),
    # The Gaussian is never above 1, so no point would be left.
    Key("PRIOR_THRESHOLD", 0.3, number(0, below=1), "that threshold", part="constants"),
    # "iou_pow" as the paper writes it; "none", for ablations: no positive weighting,
    # w_pos = q / sum_bag q.
    Key("T_METRIC", "exp_giou", registered("d2ext.ops.dual_weighting:T_METRICS"),
        "t: exp_giou as above; iou_pow, `s IoU^beta`; none, no positive weighting",
        part="constants"),
    Key("BETA", 5.0, number(0), "beta", part="constants"),
    # MU_NORM below MU lets w_pos sum to more than 1, the more the better the object is detected;
    # this balances the positive with the negative loss.
    Key("MU", 5.0, _MU, "mu", part="constants"),
    Key("MU_NORM", 3.0, _MU, "mu in the divisor of w_pos; equal to MU: the paper's formula",
        part="constants"),
    # "fixed": a curve through 1 at NEG_IOU and 0 at IoU 0.95, as the paper writes it.
    # "complement", for ablations: P_neg = 1 - w_pos / max_bag w_pos.
    Key("NEG_METRIC", "bag_norm", registered("d2ext.ops.dual_weighting:NEG_METRICS"),
        "P_neg: bag_norm as above; fixed, the paper's curve; complement, 1 less w_pos",
        part="constants"),
    Key("GAMMA1", 2.0, number(above=0), "gamma1", part="constants"),
    Key("NEG_IOU", 0.5, number(above=0, below=0.95), "neg_iou", part="constants"),
    # p^gamma2 has an infinite slope at p = 0 for exponents below 1.
    Key("GAMMA2", 2.0, number(1), "gamma2", part="constants"),
    Key("NEG_CONFLICT", "last", registered("d2ext.ops.dual_weighting:NEG_CONFLICTS"),
        "P_neg of a point of several objects of one class: of the last one, or the min",
        part="constants"),
    Key("POS_LOSS_WEIGHT", 0.25, number(0), "factor of both positive losses", part="constants"),
    Key("LOC_LOSS_WEIGHT", 5.0, number(0), "a further one of the box loss", part="constants"),
]  # fmt: skip

SECTIONS = [Section("MODEL.DW", *_DETECTOR, *_HEAD, *_WEIGHTS)]
