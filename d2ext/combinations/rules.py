"""What excludes what, and what is hardly worth combining: the rules."""

from typing import List, NamedTuple, Tuple

__all__ = ["RULES", "Rule", "UNREAD"]


class Rule(NamedTuple):
    """What to say about facts that come together.

    Attributes:
        facts: the rule holds where all of these do.
        reason: why, in a few words, for tables; of a note, the note.
        message: the sentence of the refusal or warning; ``{names}`` are filled in by who checks.
        level: "refuse", "warn" (allowed, with a line in the log) or "note" (allowed, and told by
            the documentation and the doctor).
    """

    facts: Tuple[str, ...]
    reason: str
    message: str = "{key} cannot be '{name}' because {reason}; choose one of {choices}."
    level: str = "refuse"


def _not_at(place: str, names: str, reason: str) -> List[Rule]:
    """Class losses that make no sense at a place."""
    return [Rule((place, f"cls:{name}"), reason) for name in names.split()]


RULES: Tuple[Rule, ...] = (
    # Detectors that are one idea.
    Rule(
        ("own losses",),
        "DW is assignment and loss in one",
        "DualWeightingFCOS has losses of its own, which {key} cannot change; leave that key at its "
        "default, or set MODEL.META_ARCHITECTURE to ExtFCOS or ATSS.",
    ),
    # Class losses and places.
    *_not_at("dense", "softmax seesaw ecm", "a dense head has no background output"),
    *_not_at("rpn", "softmax seesaw ecm", "the RPN has one output an anchor"),
    *_not_at("rpn", "qfl eqfl varifocal mal", "the RPN has no quality target"),
    *_not_at(
        "roi", "qfl eqfl varifocal mal", "the score of an ROI head is trained with hard labels"
    ),
    *(
        Rule(
            (place, "objectness"),
            "only an ROI head has a column for the background",
            "{key} is '{name}' with a column for the background, which only an ROI head has; set "
            "MODEL.EQLV2.OBJECTNESS to False.",
        )
        for place in ("dense", "rpn")
    ),
    *(
        Rule(
            ("class weights", f"cls:{name}"),
            "Both balance the classes; compare with one of them alone.",
            "MODEL.CLASS_WEIGHTS weighs the classes of '{name}', which balances them itself; "
            "compare with one of them alone.",
            level="warn",
        )
        for name in ("efl", "eqfl", "eqlv2", "seesaw")
    ),
    Rule(
        ("class weights", "given weights", "power"),
        "the weights are given, or follow from counts",
        "MODEL.CLASS_WEIGHTS.VALUES gives the weights and POWER computes them; set one of the two.",
    ),
    Rule(
        ("class weights", "ignores weights"),
        "the loss does not multiply by them",
        "MODEL.CLASS_WEIGHTS has no effect on {loss}, which does not multiply by "
        "weights_of_classes; choose a class loss that does, or leave VALUES and POWER at their "
        "defaults.",
    ),
    # Which samples learn.
    Rule(
        ("federated", "one softmax"),
        "a federated loss leaves classes out, and a softmax needs all",
        "MODEL.ROI_BOX_HEAD.USE_FED_LOSS needs independent classes; set "
        "MODEL.ROI_BOX_HEAD.CLS_LOSS to bce or focal.",
    ),
    Rule(
        ("federated", "class statistics"),
        "a federated loss shows other classes in each step",
        "MODEL.ROI_BOX_HEAD.USE_FED_LOSS shows the loss other classes in each step, and efl and "
        "eqlv2 keep statistics of all classes; set USE_FED_LOSS to False or CLS_LOSS to bce or "
        "focal.",
    ),
    Rule(
        ("federated", "class margins"),
        "a federated loss shows other classes in each step",
        "MODEL.ROI_BOX_HEAD.USE_FED_LOSS shows the loss other classes in each step, and ecm has a "
        "column for each; set USE_FED_LOSS to False or CLS_LOSS to bce or focal.",
    ),
    Rule(
        ("class margins", "adaptive threshold"),
        "Scores of ecm are products with the background's, which the thresholds were not made for.",
        "MODEL.SAMPLING_FREE.SCORE_THRESH class_adaptive is made for independent scores, and those "
        "of ecm are products with the background's; fixed is safer.",
        level="warn",
    ),
    Rule(
        ("federated", "class weights"),
        "a federated loss shows other classes in each step",
        "MODEL.ROI_BOX_HEAD.USE_FED_LOSS shows the loss other classes in each step, and "
        "MODEL.CLASS_WEIGHTS weighs all of them; set USE_FED_LOSS to False or leave the weights "
        "out.",
    ),
    *(
        Rule(
            ("roi", "ohem", other),
            "OHEM selects the proposals that learn",
            "MODEL.OHEM.ON_ROI selects proposals, which works neither with "
            "MODEL.SAMPLING_FREE.ON_ROI nor with MODEL.ROI_BOX_HEAD.USE_FED_LOSS; set one of them "
            "to False.",
        )
        for other in ("sampling free", "federated")
    ),
    Rule(
        ("rpn", "ohem", "sampling free"),
        "one selects anchors, the other takes all",
        "MODEL.OHEM.ON_RPN and MODEL.SAMPLING_FREE.ON_RPN exclude each other: one selects anchors, "
        "the other takes all; set one of them to False.",
    ),
    Rule(
        ("sampling free", "given prior", "adaptive threshold"),
        "a given prior says nothing of single classes",
        "MODEL.SAMPLING_FREE.SCORE_THRESH class_adaptive needs the number of objects of each "
        "class; set PRIOR to 0, so that it is counted, or SCORE_THRESH to fg_ratio.",
    ),
    Rule(
        ("needs predictions", "counted prior"),
        "the prior is counted before there are predictions",
        "MODEL.DENSE.ASSIGNER is '{name}', which assigns by predictions, so the prior cannot be "
        "counted before training; set MODEL.SAMPLING_FREE.PRIOR to a number, or choose another "
        "assigner.",
    ),
    Rule(
        ("needs predictions", "rotated boxes"),
        "its overlaps are those of upright boxes",
        "MODEL.DENSE.ASSIGNER '{name}' is not defined for rotated boxes; choose iou, or an anchor "
        "generator without angles.",
    ),
    Rule(
        ("needs predictions", "anchors share places"),
        "With more than one anchor a place an object takes several of one place; set "
        "`MODEL.ANCHOR_GENERATOR` to one size and ratio.",
        "MODEL.DENSE.ASSIGNER '{name}' is made for one anchor a place, and there are {anchors}: an "
        "object takes several of one place. Set MODEL.ANCHOR_GENERATOR.SIZES and ASPECT_RATIOS to "
        "one each.",
        level="warn",
    ),
    Rule(
        ("needs predictions", "third branch"),
        "The centerness or IoU branch is redundant: the scores aim at overlaps already, with "
        "`MODEL.DENSE.CLS_LOSS` qfl or varifocal.",
        "MODEL.DENSE.ASSIGNER '{name}' makes the detector's third branch redundant: with a soft "
        "CLS_LOSS (qfl, varifocal) the scores say how well a box fits already.",
        level="warn",
    ),
    Rule(
        ("needs predictions", "coupled"),
        "Both align scores with boxes; compare with one of them alone.",
        "MODEL.DENSE.ASSIGNER '{name}' aligns scores with boxes, as the coupling of the losses "
        "does; compare with one of them alone.",
        level="warn",
    ),
    # Box losses.
    *(
        Rule(
            ("rotated boxes", f"box:{name}"),
            "it is not defined for rotated boxes",
            "{key} '{name}' is not defined for rotated boxes; choose smooth_l1.",
        )
        for name in (
            "mpdiou",
            "inner_iou",
            "wiou",
            "nwd",
            "log_iou",
            "log_iou_legacy",
            "ghm_r",
        )
    ),
    Rule(
        ("rpn", "box:mpdiou"),
        "the RPN's loss does not know the images' sizes",
        "{key} cannot be '{name}' because {reason}; choose giou or smooth_l1.",
    ),
    Rule(
        ("logit norm", "no plain softmax"),
        "it standardises the logits of a softmax",
        "MODEL.ROI_BOX_HEAD.LOGIT_NORM standardises the logits of a softmax; set CLS_LOSS to "
        "softmax, or LOGIT_NORM.ENABLED to False.",
    ),
    # Couplings.
    Rule(
        ("harmonic", "correlation"),
        "a place has one coupling",
        "MODEL.HARMONIC and MODEL.CORRELATION both couple the losses at the {place}, which takes "
        "one coupling; set ENABLED, or ON_{PLACE}, of one of them to False.",
    ),
    *(
        Rule(
            ("correlation", f"cls:{name}"),
            "Both make scores follow overlaps; compare with one of them alone.",
            "MODEL.CORRELATION makes scores follow overlaps, as the class loss '{name}' does; "
            "compare with one of them alone.",
            level="warn",
        )
        for name in ("qfl", "eqfl", "varifocal", "mal")
    ),
    *(
        Rule(
            ("coupled by factors", f"box:{name}"),
            "The factors of the coupling follow single box losses, and these depend on the batch.",
            "The factors of MODEL.HARMONIC follow the losses of single boxes, and those of "
            "'{name}' depend on the rest of the batch; set MODEL.HARMONIC.COUPLE to False or "
            "choose another box loss.",
            level="warn",
        )
        for name in ("wiou", "ghm_r")
    ),
    *(
        Rule(
            facts,
            reason,
            "The harmonic loss needs the class loss of single samples, which {loss} does not have; "
            "choose softmax, bce, focal or efl, or set MODEL.HARMONIC.COUPLE or "
            "MODEL.HARMONIC.ON_{place} to False.",
        )
        for facts, reason in (
            (("coupled by factors", "no rows"), "the loss of single samples is needed"),
            (
                ("class loss of its own", "harmonic"),
                "its own class loss, qfl, has no loss of single samples; with bce it works",
            ),
        )
    ),
    Rule(
        ("harmonic", "rotated boxes"),
        "it is not defined for rotated boxes",
        "The harmonic loss is not defined for rotated boxes; set MODEL.HARMONIC.ENABLED to False.",
    ),
    Rule(
        ("harmonic iou", "overlap"),
        "Set `MODEL.HARMONIC.ALPHA_HIOU: 0`, or the overlap counts twice; a warning says so.",
        "MODEL.HARMONIC.ALPHA_HIOU {alpha} adds the harmonic IoU loss to {box_loss}, which counts "
        "the overlap twice; 0 leaves it out.",
        level="warn",
    ),
    Rule(
        ("sampling free", "alwa"),
        "The guided scale makes X about Y, so ALWA finds nothing to do. With "
        "`MODEL.SAMPLING_FREE.GUIDE: none` (the measured bias alone) it does.",
        level="note",
    ),
    Rule(
        ("objectness branch", "sampling free"),
        "the classes are learnt from positives, and objectness has no prior that is counted",
        "YOLOX learns classes from positives alone, so there is no share of the foreground to "
        "start from; set MODEL.SAMPLING_FREE.ENABLED or ON_DENSE to False.",
    ),
)

#: What to say about a part at a detector without a place for it.
UNREAD = Rule((), "none of its parts reads the key")
