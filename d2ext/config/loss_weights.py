"""Keys of loss weights: static ones, and those that follow the losses (ALWA and others)."""

import re

from detectron2.config import CfgNode as CN

from .rules import BOOLEAN, Relation, Rule, integer, listing, number, one_of

__all__ = ["add_loss_weights_config"]


def add_loss_weights_config(cfg: CN) -> None:
    """Add ``SOLVER.LOSS_WEIGHTS`` and ``SOLVER.ALWA`` to ``cfg``, in place.

    ALWA in the paper's symbols: over every C iterations X and Y are computed from the class and the
    box loss; where X > Y the class weight becomes Y / X. The box weight is constant.
    """
    # Static weights by pattern of the loss name: {"loss_box_reg*": 2.0, "loss_mask": 0.5}. A loss
    # that several patterns fit gets the product. A pattern that fits no loss is an error.
    cfg.SOLVER.LOSS_WEIGHTS = CN(new_allowed=True)

    cfg.SOLVER.ALWA = CN()
    cfg.SOLVER.ALWA.ENABLED = False
    # "alwa", or one of the methods it can be compared with: "uncertainty" (Kendall et al.), "dwa"
    # (dynamic weight averaging). They share GROUPS, INTERVAL, START_ITER and SYNC.
    cfg.SOLVER.ALWA.METHOD = "alwa"
    # 1: X and Y are mean + standard deviation. 2: the standard deviation (the authors' default).
    cfg.SOLVER.ALWA.VARIANT = 2
    # C, in forward passes: with SOLVER.ACCUMULATE = n a step has n of them.
    cfg.SOLVER.ALWA.INTERVAL = 100
    # Pairs of losses with a weight of their own each. ["auto"] is what the authors' code weights:
    # the RPN if there is one, else the dense head. ["all"]: every known pair the model has. Or any
    # of "rpn", "dense", "fcos", "dw", "roi" (each cascade stage on its own), or your own,
    # "name=class_loss+class_loss/box_loss".
    cfg.SOLVER.ALWA.GROUPS = ["auto"]
    # Weights before the first update; the box weight stays at INIT_BOX.
    cfg.SOLVER.ALWA.INIT_CLS = 1.0
    cfg.SOLVER.ALWA.INIT_BOX = 1.0
    # Measure X and Y on the "weighted" losses (the authors' code) or on the "raw" ones. Recommended
    # for new work: "raw" with MIN_WEIGHT 0.1 and a START_ITER; "weighted" swings, and locks at a
    # small weight more easily.
    cfg.SOLVER.ALWA.STATS_ON = "weighted"
    # Y / X "replace"s the weight (the authors' code), or "multiply": the weight is multiplied.
    cfg.SOLVER.ALWA.COMPOSE = "replace"
    # Limits of the class weight after an update.
    cfg.SOLVER.ALWA.MIN_WEIGHT = 0.0
    cfg.SOLVER.ALWA.MAX_WEIGHT = 1.0
    # Forward passes before the first window, e.g. the learning rate's warm-up.
    cfg.SOLVER.ALWA.START_ITER = 0
    # "mean": statistics of the mean loss over ranks, one weight for all. "none": each rank has its
    # own statistics and weights, as in the authors' code.
    cfg.SOLVER.ALWA.SYNC = "mean"

    # METHOD "uncertainty": step size of s = log(sigma^2), and the limit of the weights.
    cfg.SOLVER.ALWA.UNCERTAINTY_LR = 0.01
    cfg.SOLVER.ALWA.UNCERTAINTY_MAX_WEIGHT = 10.0
    # METHOD "dwa": T.
    cfg.SOLVER.ALWA.DWA_TEMPERATURE = 2.0


_GROUP_WORDS = ("auto", "all", "rpn", "dense", "fcos", "dw", "roi")
_GROUP = Rule(
    f"one of {', '.join(_GROUP_WORDS)}, or 'name=class_loss+class_loss/box_loss'",
    lambda v: (
        isinstance(v, str) and (v in _GROUP_WORDS or bool(re.fullmatch(r"[^=]+=[^/]+/[^/]+", v)))
    ),
)

RULES = {
    # Any pattern may stand for the star.
    "SOLVER.LOSS_WEIGHTS.*": number(0),
    "SOLVER.ALWA.ENABLED": BOOLEAN,
    "SOLVER.ALWA.METHOD": one_of("alwa", "uncertainty", "dwa"),
    "SOLVER.ALWA.VARIANT": one_of(1, 2),
    "SOLVER.ALWA.INTERVAL": integer(1),
    "SOLVER.ALWA.GROUPS": listing(_GROUP, least=1),
    "SOLVER.ALWA.INIT_CLS": number(above=0),
    "SOLVER.ALWA.INIT_BOX": number(above=0),
    "SOLVER.ALWA.STATS_ON": one_of("weighted", "raw"),
    "SOLVER.ALWA.COMPOSE": one_of("replace", "multiply"),
    "SOLVER.ALWA.MIN_WEIGHT": number(0),
    "SOLVER.ALWA.MAX_WEIGHT": number(0),
    "SOLVER.ALWA.START_ITER": integer(0),
    "SOLVER.ALWA.SYNC": one_of("mean", "none"),
    "SOLVER.ALWA.UNCERTAINTY_LR": number(above=0),
    "SOLVER.ALWA.UNCERTAINTY_MAX_WEIGHT": number(above=0),
    "SOLVER.ALWA.DWA_TEMPERATURE": number(above=0),
}

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
