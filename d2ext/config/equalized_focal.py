"""Keys of the equalized focal loss (Li et al., CVPR 2022) and of what it is compared with."""

from .keys import Key, Section
from .rules import BOOLEAN, number

__all__ = ["SECTIONS"]

SECTIONS = [
    # Used wherever a class loss is "efl" or "eqfl": MODEL.DENSE.CLS_LOSS and, for "efl",
    # MODEL.ROI_BOX_HEAD.CLS_LOSS.
    Section(
        "MODEL.EFL",
        Key("GAMMA_B", 2.0, number(above=0), "gamma_b: focusing exponent of a class in balance"),
        # The exponent of class j is gamma_b + s (1 - g_j) and its weight is that over gamma_b. The
        # authors use 8 for the RetinaNet family and 4 for YOLOX.
        Key("SCALE", 8.0, number(0), "s: added to the exponent at g = 0; 0 is the focal loss"),
        Key("ALPHA", 0.25, number(high=1), "weight of positives; below 0: none. EQFL has none"),
        # Prefer SOLVER.LOSS_WEIGHTS: the ratio g_j does not depend on constant factors.
        Key("LOSS_WEIGHT", 1.0, number(0), "factor of the loss, in the collected gradients too"),
    ),
    # f(g) = 1 / (1 + exp(-gamma (g - mu))) weighs the negatives of a class, and
    # 1 + alpha (1 - f(g)) its positives.
    Section(
        "MODEL.EQLV2",
        Key("GAMMA", 12.0, number(0), "gamma: how steep the weights follow the ratio g"),
        Key("MU", 0.8, number(), "mu: the ratio g at which negatives weigh one half"),
        Key("ALPHA", 4.0, number(0), "alpha: the most that is added to the weight of positives"),
        # Classes are then scored by their probability times that of not being background.
        Key("OBJECTNESS", False, BOOLEAN, "train an ROI head's last column as 'background'"),
        # As the authors' code does: then everything looks like an object at first.
        Key(
            "BACKGROUND_PRIOR",
            False,
            BOOLEAN,
            "`OBJECTNESS`: the background's column starts at PRIOR_PROB too, not at 0.5",
            "",
        ),
    ),
    Section(
        "MODEL.SEESAW",
        Key("P", 0.8, number(0), "p: exponent of the mitigation, by class frequency"),
        Key("Q", 2.0, number(0), "q: exponent of the compensation, by score"),
        # Scores are divided by it.
        Key("MIN_SCORE", 0.01, number(above=0, high=1), "least score of the own class in it"),
    ),
]
