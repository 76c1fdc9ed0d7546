"""Keys of the harmonic loss (Wang and Zhang, ICCV 2021).

In the paper's symbols, for a positive sample with class loss CE, box loss L, score p::

    L_loc = L + alpha (1 + IoU)^gamma (1 - IoU)
    (1 + beta_r) CE + (1 + beta_c) L_loc + L_TC,   beta_r = exp(-L_loc), beta_c = exp(-CE)
    L_TC  = 1 / (1 + e^H) max(0, |p - IoU| - m),   H the entropy of the sample's scores
"""

from .keys import Key, Section
from .rules import BOOLEAN, number, one_of

__all__ = ["SECTIONS"]

SECTIONS = [
    Section(
        "MODEL.HARMONIC",
        Key("ENABLED", False, BOOLEAN, "use it", argument=""),
        # The paper's experiments, as far as known, leave the RPN alone.
        Key("ON_DENSE", True, BOOLEAN, "in dense heads: RetinaNet, FCOS, ATSS", argument=""),
        Key("ON_RPN", False, BOOLEAN, "in the RPN", argument=""),
        Key("ON_ROI", True, BOOLEAN, "in ROI heads, every cascade stage", argument=""),
        # False leaves the IoU and the task-contrastive terms alone, for ablations.
        Key("COUPLE", True, BOOLEAN, "multiply CE by `1 + beta_r` and L_loc by `1 + beta_c`"),
        # The literal formula's gradient pushes well localised, badly classified boxes away from
        # their objects early in training.
        Key("DETACH_BETAS", True, BOOLEAN, "the betas are constants; False: the literal formula"),
        Key("BETA_R_SOURCE", "loc", one_of("loc", "base"),
            "x in `beta_r = exp(-x)`: with the harmonic IoU term, or without"),
        # They differ for focal losses, whose exp(-x) hardly varies, and are the same for softmax.
        Key("BETA_C_SOURCE", "loss", one_of("loss", "bce", "gt_prob"),
            "x in `beta_c = exp(-x)`: the class loss as trained, plain BCE, or -log p"),
        # With an IoU type of box loss (giou, diou, ciou, harmonic_iou) use 0, it would count the
        # overlap twice.
        Key("ALPHA_HIOU", 1.5, number(0), "alpha: weight of the harmonic IoU loss; 0: none"),
        # Above 1 the loss does not fall with the IoU everywhere, which is warned about.
        Key("GAMMA", 0.8, number(0), "gamma, also of the box loss `harmonic_iou`; 0: plain IoU"),
        Key("TC.WEIGHT", 1.0, number(0), "weight of L_TC, logged as `loss_tc`; 0: none"),
        # Score and IoU never differ by more than 1.
        Key("TC.MARGIN", 0.2, number(0, below=1), "m"),
        Key("TC.MARGIN_MODE", "subtract", one_of("subtract", "hard"),
            "as in the formula; or the whole difference where it is at least m, else 0"),
        Key("TC.SCORE", "gt", one_of("gt", "max"), "p: score of the object's class, or highest"),
        # The formula alone detaches none of them.
        Key("TC.DETACH_ENTROPY", False, BOOLEAN, "no gradient through the weight"),
        Key("TC.DETACH_IOU", False, BOOLEAN, "no gradient through the IoU"),
        Key("TC.DETACH_SCORE", False, BOOLEAN, "no gradient through the score"),
    ),
]  # fmt: skip
