from detectron2.config import CfgNode as CN

from .rules import BOOLEAN, number

__all__ = ["add_equalized_focal_config"]


def add_equalized_focal_config(cfg: CN) -> None:
    """Add the keys of this area to ``cfg``, in place.

    They are used wherever a class loss is "efl" or "eqfl": ``MODEL.DENSE.CLS_LOSS`` and, for "efl",
    ``MODEL.ROI_BOX_HEAD.CLS_LOSS``.
    """
    cfg.MODEL.EFL = CN()
    # gamma_b in the paper: the focusing exponent of a class whose gradients are balanced (g_j = 1).
    cfg.MODEL.EFL.GAMMA_B = 2.0
    # s in the paper: the exponent of class j is gamma_b + s (1 - g_j) and its weight is that over
    # gamma_b. The authors use 8 for the RetinaNet family and 4 for YOLOX; 0 is the focal loss.
    cfg.MODEL.EFL.SCALE = 8.0
    # alpha_t of the focal loss: the weight of positives; below 0: no weights. EQFL has none.
    cfg.MODEL.EFL.ALPHA = 0.25
    # Factor of the loss, which the collected gradients contain. Prefer SOLVER.LOSS_WEIGHTS: the
    # ratio g_j does not depend on constant factors.
    cfg.MODEL.EFL.LOSS_WEIGHT = 1.0

    # EQL v2, CLS_LOSS "eqlv2": f(g) = 1 / (1 + exp(-gamma (g - mu))) weighs the negatives of a
    # class, and 1 + alpha (1 - f(g)) its positives.
    cfg.MODEL.EQLV2 = CN()
    cfg.MODEL.EQLV2.GAMMA = 12.0
    cfg.MODEL.EQLV2.MU = 0.8
    cfg.MODEL.EQLV2.ALPHA = 4.0
    # Whether the last column of an ROI head's classifier is trained as "this is background", and
    # classes are scored by their probability times that of not being background.
    cfg.MODEL.EQLV2.OBJECTNESS = False

    # Seesaw loss, CLS_LOSS "seesaw": exponents of the mitigation (p, by class frequency) and of the
    # compensation (q, by score), and the least score that a compensation divides by.
    cfg.MODEL.SEESAW = CN()
    cfg.MODEL.SEESAW.P = 0.8
    cfg.MODEL.SEESAW.Q = 2.0
    cfg.MODEL.SEESAW.MIN_SCORE = 0.01


RULES = {
    "MODEL.EFL.GAMMA_B": number(above=0),
    "MODEL.EFL.SCALE": number(0),
    "MODEL.EFL.ALPHA": number(high=1),
    "MODEL.EFL.LOSS_WEIGHT": number(0),
    "MODEL.EQLV2.GAMMA": number(0),
    "MODEL.EQLV2.MU": number(),
    "MODEL.EQLV2.ALPHA": number(0),
    "MODEL.EQLV2.OBJECTNESS": BOOLEAN,
    "MODEL.SEESAW.P": number(0),
    "MODEL.SEESAW.Q": number(0),
    # Scores are divided by it.
    "MODEL.SEESAW.MIN_SCORE": number(above=0, high=1),
}
