"""Keys of loss weights: static ones, and those that follow the losses (ALWA and others).

ALWA in the paper's symbols: over every C iterations X and Y are computed from the class and the
box loss; where X > Y the class weight becomes Y / X. The box weight is constant.
"""

import re

from .keys import Key, Section
from .rules import BOOLEAN, NAME, Relation, Rule, integer, listing, number, one_of

__all__ = ["RELATIONS", "SECTIONS"]

_METHODS = "alwa uncertainty dwa famo gradnorm"
_GROUP_WORDS = ("auto", "all", "rpn", "dense", "fcos", "dw", "roi")
_GROUP = Rule(
    f"one of {', '.join(_GROUP_WORDS)}, or 'name=class_loss+class_loss/box_loss'",
    lambda v: (
        isinstance(v, str) and (v in _GROUP_WORDS or bool(re.fullmatch(r"[^=]+=[^/]+/[^/]+", v)))
    ),
)

SECTIONS = [
    # {"loss_box_reg*": 2.0, "loss_mask": 0.5}: a loss that several patterns fit gets the product, a
    # pattern that fits no loss is an error.
    Section(
        "SOLVER",
        Key("LOSS_WEIGHTS.*", None, number(0), "static weight of the losses of this name pattern"),
    ),
    Section(
        "SOLVER.ALWA",
        Key("ENABLED", False, BOOLEAN, "use it", argument=""),
        # All share GROUPS, INTERVAL, START_ITER and SYNC.
        Key("METHOD", "alwa", one_of("alwa", "uncertainty", "dwa", "famo", "gradnorm"),
            "or what it can be compared with: Kendall et al., dynamic weight averaging, FAMO, "
            "GradNorm",
            argument=""),
        Key("VARIANT", 2, one_of(1, 2),
            "X and Y are mean + standard deviation, or the standard deviation", part="alwa"),
        # With SOLVER.ACCUMULATE = n a step has n forward passes.
        Key("INTERVAL", 100, integer(1), "C, in forward passes", part=_METHODS),
        # ["auto"] is what the authors' code weights: the RPN if there is one, else the dense head.
        # ["all"]: every known pair the model has. "roi" takes each cascade stage on its own.
        Key("GROUPS", ["auto"], listing(_GROUP, least=1),
            "pairs of losses with a weight of their own each", argument=""),
        Key("INIT_CLS", 1.0, number(above=0), "class weight before the first update", part="alwa"),
        Key("INIT_BOX", 1.0, number(above=0), "box weight, which stays", part="alwa"),
        # Recommended for new work: "raw" with MIN_WEIGHT 0.1 and a START_ITER; "weighted" swings,
        # and locks at a small weight more easily.
        Key("STATS_ON", "weighted", one_of("weighted", "raw"),
            "measure X and Y after weighting (the authors' code), or before", part="alwa"),
        Key("COMPOSE", "replace", one_of("replace", "multiply"),
            "Y / X becomes the weight (the authors' code), or multiplies it", part="alwa"),
        Key("MIN_WEIGHT", 0.0, number(0), "least class weight after an update", part="alwa"),
        Key("MAX_WEIGHT", 1.0, number(0), "largest class weight after an update", part="alwa"),
        # E.g. the learning rate's warm-up.
        Key("START_ITER", 0, integer(0), "forward passes before the first window", part=_METHODS),
        # "none": each rank has its own statistics and weights.
        Key("SYNC", "mean", one_of("mean", "none"),
            "statistics of the mean over ranks, or of each rank (the authors' code)", argument=""),
        Key("UNCERTAINTY_LR", 0.01, number(above=0),
            "`uncertainty`: step size of s = log(sigma^2)", "lr", part="uncertainty"),
        Key("UNCERTAINTY_MAX_WEIGHT", 10.0, number(above=0), "`uncertainty`: largest weight",
            "max_weight", part="uncertainty"),
        Key("DWA_TEMPERATURE", 2.0, number(above=0), "`dwa`: T", "temperature", part="dwa"),
        Key("FAMO_LR", 0.025, number(above=0), "`famo`: step size of w", "lr", part="famo"),
        # 0.01 in the class of the authors' repository, less in its experiments.
        Key("FAMO_DECAY", 0.01, number(0), "`famo`: weight decay of w", "decay", part="famo"),
        Key("GRADNORM_LR", 0.025, number(above=0), "`gradnorm`: step size", "lr", part="gradnorm"),
        Key("GRADNORM_ALPHA", 1.5, number(0), "`gradnorm`: how strongly rates are equalled",
            "alpha", part="gradnorm"),
        # The parameters whose gradients are measured, by a pattern of their names.
        Key("GRADNORM_LAYER", "backbone.fpn_output*.weight", NAME,
            "`gradnorm`: name pattern of the shared layer's weights", argument=""),
    ),
]  # fmt: skip

RELATIONS = [
    Relation(
        ("SOLVER.ALWA.MIN_WEIGHT", "SOLVER.ALWA.MAX_WEIGHT"),
        "the first must not be above the second",
        lambda cfg: cfg.SOLVER.ALWA.MIN_WEIGHT <= cfg.SOLVER.ALWA.MAX_WEIGHT,
    ),
    Relation(
        ("SOLVER.ALWA.INTERVAL", "SOLVER.ALWA.METHOD"),
        "the interval must be at least 2, for a single loss has no deviation",
        lambda cfg: cfg.SOLVER.ALWA.INTERVAL >= 2,
        when=lambda cfg: cfg.SOLVER.ALWA.METHOD == "alwa",
    ),
]
