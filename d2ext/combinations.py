"""Which part goes with which detector and which other part, and why not: the one table.

Builders ask it (`check`, `reason_against`), the doctor (`notes`), the documentation and the tests
(`PARTS`, `DETECTORS`, `refusal`). To add a part, add a line to `PARTS`; to limit it, add a line to
`RULES`. Everything that no rule forbids is allowed, also what a user registers.

What is known about a detector or one of its places is a set of words, *facts*: a place ("dense"), a
choice in a slot ("cls:efl"), or a property ("overlap"). A rule holds where all of its facts do.

This module needs neither torch nor Detectron2.
"""

import contextlib
import logging
from typing import Any, Dict, Iterable, Iterator, List, NamedTuple, Optional, Tuple

from .config.keys import all_sections

__all__ = [
    "DETECTORS",
    "PARTS",
    "PLACES",
    "RULES",
    "SECTIONS",
    "UNREAD",
    "CHOICES",
    "Choice",
    "Detector",
    "Part",
    "Rule",
    "changed",
    "check",
    "listening",
    "notes",
    "present",
    "reason_against",
    "refusal",
    "value_of",
]

logger = logging.getLogger(__name__)

#: Where detectors have d2ext's losses, as messages name it.
PLACES = {"dense": "dense head", "rpn": "RPN", "roi": "ROI head"}

#: The keys that choose the class loss of a place.
CLS_LOSS_KEYS = {"dense": "MODEL.DENSE.CLS_LOSS", "roi": "MODEL.ROI_BOX_HEAD.CLS_LOSS"}


#: The keys that choose the box loss of a place.
BOX_LOSS_KEYS = {
    "dense": "MODEL.DENSE.BOX_LOSS",
    "rpn": "MODEL.RPN.BBOX_REG_LOSS_TYPE",
    "roi": "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE",
}


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
        for name in ("mpdiou", "inner_iou", "wiou", "nwd", "log_iou", "ghm_r")
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


class Choice(NamedTuple):
    """A key that chooses a part, and has no effect on detectors without a place that reads it.

    Attributes:
        key: its name.
        places: those that read it.
        instead: the key that does the same at another place, or "".
    """

    key: str
    places: Tuple[str, ...]
    instead: str = ""

    @property
    def default(self) -> Any:
        """Its value by default."""
        section, _, name = self.key.rpartition(".")
        declared = [key for s in all_sections() if s.name == section for key in s.keys]
        return next(key.default for key in declared if key.name == name)

    def is_made(self, cfg: Any) -> bool:
        """Whether a config has another value than the default."""
        value = value_of(cfg, self.key)
        return (list(value) if isinstance(value, tuple) else value) != self.default


CHOICES: Tuple[Choice, ...] = (
    Choice("MODEL.DENSE.CLS_LOSS", ("dense",), "MODEL.ROI_BOX_HEAD.CLS_LOSS"),
    Choice("MODEL.DENSE.BOX_LOSS", ("dense",), "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE"),
    Choice("MODEL.DENSE.ASSIGNER", ("dense",)),
    Choice("MODEL.DENSE.NORMALIZER", ("dense",)),
    Choice("MODEL.DENSE.NORMALIZER_SYNC", ("dense",)),
    Choice("MODEL.ROI_BOX_HEAD.CLS_LOSS", ("roi",), "MODEL.DENSE.CLS_LOSS"),
    Choice("MODEL.OHEM.ON_ROI", ("roi",)),
    Choice("MODEL.OHEM.ON_RPN", ("rpn",)),
    Choice("MODEL.CLASS_WEIGHTS.VALUES", ("dense", "roi")),
    Choice("MODEL.CLASS_WEIGHTS.POWER", ("dense", "roi")),
    Choice("MODEL.CORRELATION.ENABLED", ("dense", "roi")),
    Choice("MODEL.ROI_BOX_HEAD.LOGIT_NORM.ENABLED", ("roi",)),
)

#: Sections with ENABLED, and ON_DENSE, ON_RPN and ON_ROI.
SECTIONS = ("MODEL.HARMONIC", "MODEL.SAMPLING_FREE")


class Detector(NamedTuple):
    """A kind of detector.

    Attributes:
        places: where it has d2ext's losses.
        facts: its properties.
    """

    places: Tuple[str, ...]
    facts: Tuple[str, ...] = ()


DETECTORS: Dict[str, Detector] = {
    "RetinaNet": Detector(("dense",)),
    "FCOS": Detector(("dense",)),
    "ATSS": Detector(("dense",)),
    "YOLOX": Detector(("dense",), ("objectness branch", "class loss of its own")),
    "DW": Detector(("dense",), ("own losses",)),
    "Faster R-CNN": Detector(("rpn", "roi")),
    "Mask R-CNN": Detector(("rpn", "roi")),
    "Cascade R-CNN": Detector(("rpn", "roi")),
    "any other": Detector(()),
}


class Part(NamedTuple):
    """Something that a config can choose.

    Attributes:
        facts: what holds at a place that has it.
        words: KEY VALUE words that choose it at each place, the telling pair first. What works on
            any model has the place "training".
        rivals: the method that it is compared with; "" for what one of the five papers brought.
    """

    facts: Tuple[str, ...]
    words: Dict[str, Tuple[str, ...]]
    rivals: str = ""


def _cls(name: str, rivals: str = "", **more: Tuple[str, ...]) -> Part:
    """A class loss; ``more`` are further words for a place."""
    words = {place: (key, name, *more.get(place, ())) for place, key in CLS_LOSS_KEYS.items()}
    return Part((f"cls:{name}",), words, rivals)


def _box(name: str, *facts: str, rivals: str = "") -> Part:
    """A box loss."""
    words: Dict[str, Tuple[str, ...]] = {
        place: (BOX_LOSS_KEYS[place], name) for place in ("dense", "roi")
    }
    return Part((f"box:{name}", *facts), words, rivals)


def _everywhere(*words: str) -> Dict[str, Tuple[str, ...]]:
    return dict.fromkeys(("dense", "roi", "rpn"), words)


PARTS: Dict[str, Part] = {
    "EFL": _cls("efl", roi=("MODEL.ROI_BOX_HEAD.PRIOR_PROB", "0.01")),
    "EQFL": _cls("eqfl"),
    "Sampling-Free": Part(("sampling free",), _everywhere("MODEL.SAMPLING_FREE.ENABLED", "True")),
    "Harmonic": Part(
        ("harmonic", "harmonic iou"),
        _everywhere("MODEL.HARMONIC.ENABLED", "True", "MODEL.HARMONIC.ALPHA_HIOU", "0.0"),
    ),
    "HIoU loss": _box("harmonic_iou", "overlap"),
    "ALWA": Part(("alwa",), {"training": ("SOLVER.ALWA.ENABLED", "True")}),
    "class weights": Part(
        ("class weights",),
        dict.fromkeys(("dense", "roi"), ("MODEL.CLASS_WEIGHTS.POWER", "0.5")),
        rivals="EFL",
    ),
    # Later ideas for the same slots: docs/rivals.md.
    **{
        name: Part(("needs predictions",), {"dense": ("MODEL.DENSE.ASSIGNER", value)}, rivals="DW")
        for name, value in {
            "TAL (TOOD)": "tal_tood",
            "TAL (YOLO)": "tal_yolo",
            "SimOTA": "simota",
            "DSL": "dsl",
        }.items()
    },
    "varifocal": _cls("varifocal", rivals="Harmonic"),
    "MAL": _cls("mal", rivals="Harmonic"),
    "ECM": Part((*_cls("ecm").facts, "class margins"), _cls("ecm").words, rivals="EFL"),
    "LogN": Part(
        ("logit norm",),
        {"roi": ("MODEL.ROI_BOX_HEAD.LOGIT_NORM.ENABLED", "True")},
        rivals="EFL",
    ),
    "MPDIoU": _box("mpdiou", "overlap", rivals="HIoU loss"),
    "Inner-IoU": _box("inner_iou", "overlap", rivals="HIoU loss"),
    "Wise-IoU": _box("wiou", "overlap", rivals="HIoU loss"),
    "log IoU": _box("log_iou", "overlap", rivals="HIoU loss"),
    "NWD": _box("nwd", rivals="HIoU loss"),
    "GHM-R": _box("ghm_r", rivals="HIoU loss"),
    "correlation": Part(
        ("correlation",),
        dict.fromkeys(("dense", "roi"), ("MODEL.CORRELATION.ENABLED", "True")),
        rivals="Harmonic",
    ),
    **{
        name: Part(
            ("alwa", method),
            {"training": ("SOLVER.ALWA.METHOD", method, "SOLVER.ALWA.ENABLED", "True")},
            rivals="ALWA",
        )
        for name, method in {"FAMO": "famo", "GradNorm": "gradnorm"}.items()
    },
}


def present(**facts: Any) -> Tuple[str, ...]:
    """The names of the true ones, with spaces for underscores: facts of who asks."""
    return tuple(name.replace("_", " ") for name, holds in facts.items() if holds)


def _matching(facts: Iterable[str], *levels: str) -> Iterable[Rule]:
    known = set(facts)
    return (rule for rule in RULES if rule.level in levels and known.issuperset(rule.facts))


def check(*facts: str, **words: Any) -> None:
    """Raise for facts that exclude each other, and warn of those that hardly make sense.

    Args:
        facts: all that is known of a place.
        words: what the messages name.

    Raises:
        ValueError: the sentence of the first rule that refuses them.
    """
    for rule in _matching(facts, "refuse"):
        raise ValueError(rule.message.format(reason=rule.reason, **words))
    for rule in _matching(facts, "warn"):
        warning = rule.message.format(reason=rule.reason, **words)
        logger.warning(warning) if _heard is None else _heard.append(warning)


_heard: Optional[List[str]] = None


@contextlib.contextmanager
def listening() -> Iterator[List[str]]:
    """Collect the warnings of `check` instead of logging them."""
    global _heard
    outer, _heard = _heard, []
    try:
        yield _heard
    finally:
        _heard = outer


def reason_against(*facts: str) -> Optional[str]:
    """Why these exclude each other, in a few words, or None."""
    return next((rule.reason for rule in _matching(facts, "refuse")), None)


def refusal(detector: str, *parts: str) -> Optional[Rule]:
    """The rule by which a detector refuses parts, alone or together; None if it takes them.

    Args:
        detector: a name in `DETECTORS`.
        parts: names in `PARTS`.
    """
    places, own = DETECTORS[detector]
    if any(fact.startswith("cls:") for part in parts for fact in PARTS[part].facts):
        own = tuple(fact for fact in own if fact != "class loss of its own")
    for part in parts:
        words = PARTS[part].words
        if "training" in words:
            continue
        refused = [
            next(iter(_matching((place, *own, *PARTS[part].facts), "refuse")), None)
            for place in places
            if place in words
        ]
        if None not in refused:
            return refused[0] if refused else UNREAD
    return None


def notes(cfg: Any = None, parts: Iterable[str] = ()) -> List[Rule]:
    """What to know of parts that work together.

    Args:
        cfg: a config, for the notes on what it chooses; or
        parts: names in `PARTS`, for all notes on them.
    """
    levels = ("note", "warn") if cfg is None else ("note",)
    names = parts if cfg is None else [name for name in PARTS if _is_on(cfg, PARTS[name])]
    return list(_matching((fact for name in names for fact in PARTS[name].facts), *levels))


def _is_on(cfg: Any, part: Part) -> bool:
    return any(str(value_of(cfg, words[0])) == words[1] for words in part.words.values())


def value_of(cfg: Any, key: str) -> Any:
    """The value of a dotted key."""
    for word in key.split("."):
        cfg = cfg[word]
    return cfg


def changed(cfg: Any, place: str) -> List[str]:
    """The keys by which a config changes the parts of a place."""
    keys = [c.key for c in CHOICES if place in c.places and c.is_made(cfg)]
    for section in SECTIONS:
        node = value_of(cfg, section)
        if node["ENABLED"] and node[f"ON_{place.upper()}"]:
            keys.append(f"{section}.ENABLED")
    return keys
