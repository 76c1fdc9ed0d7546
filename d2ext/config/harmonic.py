"""Keys of the harmonic loss (Wang and Zhang, ICCV 2021)."""

from detectron2.config import CfgNode as CN

from .rules import BOOLEAN, number, one_of

__all__ = ["add_harmonic_config"]


def add_harmonic_config(cfg: CN) -> None:
    """Add ``MODEL.HARMONIC`` to ``cfg``, in place.

    In the paper's symbols, for a positive sample with class loss CE, box loss L, score p::

        L_loc = L + alpha (1 + IoU)^gamma (1 - IoU)
        (1 + beta_r) CE + (1 + beta_c) L_loc + L_TC,   beta_r = exp(-L_loc), beta_c = exp(-CE)
    """
    cfg.MODEL.HARMONIC = CN()
    cfg.MODEL.HARMONIC.ENABLED = False
    # Where: dense heads (RetinaNet, FCOS, ATSS), the RPN, ROI heads with every cascade stage. The
    # paper's experiments, as far as known, leave the RPN alone.
    cfg.MODEL.HARMONIC.ON_DENSE = True
    cfg.MODEL.HARMONIC.ON_RPN = False
    cfg.MODEL.HARMONIC.ON_ROI = True

    # Multiply CE by (1 + beta_r) and L_loc by (1 + beta_c). False leaves the IoU and the
    # task-contrastive terms alone, for ablations.
    cfg.MODEL.HARMONIC.COUPLE = True
    # The betas are constants (factors in (1, 2]). False: the gradient of the literal formula, which
    # pushes well localised, badly classified boxes away from their objects early in training.
    cfg.MODEL.HARMONIC.DETACH_BETAS = True
    # beta_r = exp(-x): x is "loc" (with the harmonic IoU term) or "base" (without).
    cfg.MODEL.HARMONIC.BETA_R_SOURCE = "loc"
    # beta_c = exp(-x): x is "loss" (the class loss as trained), "bce" (plain binary cross entropy)
    # or "gt_prob" (-log p, hence beta_c = p). They differ for focal losses, whose exp(-x) hardly
    # varies, and are the same for softmax.
    cfg.MODEL.HARMONIC.BETA_C_SOURCE = "loss"

    # alpha: weight of the harmonic IoU loss that is added to the box loss; 0: none. With an IoU
    # type of box loss (giou, diou, ciou, harmonic_iou) use 0, it would count the overlap twice.
    cfg.MODEL.HARMONIC.ALPHA_HIOU = 1.5
    # gamma of the harmonic IoU loss, also of the box loss "harmonic_iou"; 0 is the plain IoU loss.
    # Above 1 the loss does not fall with the IoU everywhere, which is warned about.
    cfg.MODEL.HARMONIC.GAMMA = 0.8

    # Task-contrastive term 1 / (1 + e^H) max(0, |p - IoU| - m), logged as loss_tc; H is the entropy
    # of the sample's scores.
    cfg.MODEL.HARMONIC.TC = CN()
    # 0: no such term.
    cfg.MODEL.HARMONIC.TC.WEIGHT = 1.0
    # m.
    cfg.MODEL.HARMONIC.TC.MARGIN = 0.2
    # "subtract" as in the formula, or "hard": |p - IoU| whole where it is at least m, else 0.
    cfg.MODEL.HARMONIC.TC.MARGIN_MODE = "subtract"
    # p: the score of the object's class ("gt") or the highest ("max").
    cfg.MODEL.HARMONIC.TC.SCORE = "gt"
    # No gradient through the weight, the IoU, the score. The formula alone detaches none of them.
    cfg.MODEL.HARMONIC.TC.DETACH_ENTROPY = False
    cfg.MODEL.HARMONIC.TC.DETACH_IOU = False
    cfg.MODEL.HARMONIC.TC.DETACH_SCORE = False


RULES = {
    "MODEL.HARMONIC.ENABLED": BOOLEAN,
    "MODEL.HARMONIC.ON_DENSE": BOOLEAN,
    "MODEL.HARMONIC.ON_RPN": BOOLEAN,
    "MODEL.HARMONIC.ON_ROI": BOOLEAN,
    "MODEL.HARMONIC.COUPLE": BOOLEAN,
    "MODEL.HARMONIC.DETACH_BETAS": BOOLEAN,
    "MODEL.HARMONIC.BETA_R_SOURCE": one_of("loc", "base"),
    "MODEL.HARMONIC.BETA_C_SOURCE": one_of("loss", "bce", "gt_prob"),
    "MODEL.HARMONIC.ALPHA_HIOU": number(0),
    "MODEL.HARMONIC.GAMMA": number(0),
    "MODEL.HARMONIC.TC.WEIGHT": number(0),
    # Score and IoU never differ by more than 1.
    "MODEL.HARMONIC.TC.MARGIN": number(0, below=1),
    "MODEL.HARMONIC.TC.MARGIN_MODE": one_of("subtract", "hard"),
    "MODEL.HARMONIC.TC.SCORE": one_of("gt", "max"),
    "MODEL.HARMONIC.TC.DETACH_ENTROPY": BOOLEAN,
    "MODEL.HARMONIC.TC.DETACH_IOU": BOOLEAN,
    "MODEL.HARMONIC.TC.DETACH_SCORE": BOOLEAN,
}
