"""Keys of later ideas for the slots that the papers' methods stand in: docs/rivals.md."""

from .keys import Key, Section
from .rules import BOOLEAN, COUNT, NAME, Relation, integer, number, one_of

__all__ = ["RELATIONS", "SECTIONS"]

RELATIONS = [
    Relation(
        ("MODEL.ROI_BOX_HEAD.LOGIT_NORM.ENABLED", "ENGINE.EMA.ENABLED"),
        "not both may be True: the statistics are those of the last weights, not of their average",
        lambda cfg: not (cfg.MODEL.ROI_BOX_HEAD.LOGIT_NORM.ENABLED and cfg.ENGINE.EMA.ENABLED),
    ),
]

SECTIONS = [
    # Assigners that see predictions: MODEL.DENSE.ASSIGNER.
    Section(
        "MODEL.TAL_TOOD",
        Key("TOPK", 13, COUNT, "priors an object takes at most"),
        Key("ALPHA", 1.0, number(0), "exponent of the score in the measure"),
        Key("BETA", 6.0, number(0), "exponent of the IoU in it"),
    ),
    Section(
        "MODEL.TAL_YOLO",
        # What YOLO's loss passes, not its class' defaults.
        Key("TOPK", 10, COUNT, "priors an object takes at most"),
        Key("ALPHA", 0.5, number(0), "exponent of the score in the measure"),
        Key("BETA", 6.0, number(0), "exponent of the CIoU in it"),
        Key("MIN_SIDE", 16.0, number(0), "least side of an object in the test of what lies inside"),
        Key("TOPK2", 0, integer(0), "priors kept after conflicts; 1: one to one, 0: all"),
    ),
    Section(
        "MODEL.SIMOTA",
        Key("CENTER_RADIUS", 2.5, number(0), "how near the object's centre, in strides"),
        Key("CANDIDATE_TOPK", 10, COUNT, "IoUs whose sum is the number of an object's priors"),
        Key("IOU_WEIGHT", 3.0, number(0), "weight of -log IoU in the cost"),
        Key("CLS_WEIGHT", 1.0, number(0), "weight of the classes' cross entropy in the cost"),
    ),
    Section(
        "MODEL.DSL",
        Key("SOFT_CENTER_RADIUS", 3.0, number(0), "distance that costs 1, in strides"),
        Key("TOPK", 13, COUNT, "IoUs whose sum is the number of an object's priors"),
        Key("IOU_WEIGHT", 3.0, number(0), "weight of -log IoU in the cost"),
    ),
    # Class losses: MODEL.DENSE.CLS_LOSS, MODEL.ROI_BOX_HEAD.CLS_LOSS.
    Section(
        "MODEL.VARIFOCAL",
        # Not the focal loss' alpha, which weighs positives.
        Key("ALPHA", 0.75, number(0), "weight of negatives"),
        Key("GAMMA", 2.0, number(0), "their focusing exponent"),
        Key("IOU_WEIGHTED", True, BOOLEAN, "positives weigh as much as their IoU; else 1"),
        # True: RT-DETR, D-FINE, DEIM.
        Key("DETACH_WEIGHT", False, BOOLEAN, "no gradient through the focusing factor"),
    ),
    Section(
        "MODEL.MAL",
        Key("GAMMA", 1.5, number(0), "exponent of targets and of the focusing factor"),
        Key("ALPHA", 1.0, number(0), "weight of negatives"),
    ),
    Section(
        "MODEL.ECM",
        # Images, not boxes. auto: the trainer counts them before the first step.
        Key("COUNTS", "auto", NAME,
            "JSON file with the images of each class, or with LVIS' categories; auto: counted", ""),
        # The authors measured it on Mask R-CNN with 512 proposals, a quarter foreground.
        Key("BACKGROUND_RATIO", 6.3313, number(above=0), "background over foreground proposals"),
    ),
    # Box losses: MODEL.DENSE.BOX_LOSS, MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE.
    Section(
        "MODEL.NWD",
        Key("CONSTANT", 12.8, number(above=0), "mean size of the objects in pixels of the input"),
    ),
    Section(
        "MODEL.INNER_IOU",
        Key("RATIO", 0.7, number(above=0),
            "scale of the boxes: below 1 for high overlaps, 1.1 to 1.5 for tiny objects"),
        Key("BASE", "ciou", one_of("iou", "giou", "diou", "ciou"), "the loss it is added to"),
    ),
    Section(
        "MODEL.WIOU",
        Key("VERSION", 3, one_of(1, 3), "1: by distance only; 3: and by how hard a box is"),
        # The paper's; its code for v2 has 1.7, 2.7 and 0.01.
        Key("ALPHA", 1.9, number(above=0), "alpha of version 3"),
        Key("DELTA", 3.0, number(above=0), "delta of version 3"),
        # 1 - 0.05^(1 / (n t)): n steps an epoch, t the epoch at which AP flattens.
        Key("MOMENTUM", 1e-4, number(above=0, high=1), "share of a step in the running mean"),
    ),
    Section(
        "MODEL.GHM_R",
        Key("MU", 0.02, number(above=0), "where the loss turns from quadratic to linear"),
        Key("BINS", 10, COUNT, "regions of the gradient's size"),
        Key("MOMENTUM", 0.0, number(0, below=1), "how much of the old counts stays; 0: none"),
    ),
    # LogN: after the last step the trainer collects the statistics of the logits.
    Section(
        "MODEL.ROI_BOX_HEAD.LOGIT_NORM",
        Key("ENABLED", False, BOOLEAN, "normalise the logits of a softmax at inference",
            argument=""),
        Key("NUM_IMAGES", 5000, COUNT, "training images to collect them from", argument=""),
    ),
    Section(
        "MODEL.CORRELATION",
        Key("ENABLED", False, BOOLEAN, "add the loss, logged as `loss_corr`", argument=""),
        Key("ON_DENSE", True, BOOLEAN, "in dense heads", argument=""),
        Key("ON_ROI", True, BOOLEAN, "in ROI heads, every cascade stage", argument=""),
        Key("KIND", "concordance", one_of("concordance", "pearson", "spearman"),
            "which correlation; spearman is experimental and slow for STRENGTH below 1"),
        Key("WEIGHT", 0.3, number(above=0), "weight of the loss; it is not normalised"),
        Key("STRENGTH", 1.0, number(above=0),
            "`spearman`: gap of scores that counts as a rank; from 1 on it is pearson"),
    ),
]  # fmt: skip
