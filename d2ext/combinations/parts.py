"""What can be chosen, by which key, and what the detectors have places for."""

from typing import Any, Dict, NamedTuple, Tuple

from d2ext.config.keys import all_sections

__all__ = [
    "BOX_LOSS_KEYS",
    "CHOICES",
    "CLS_LOSS_KEYS",
    "DETECTORS",
    "PARTS",
    "PLACES",
    "SECTIONS",
    "Choice",
    "Detector",
    "Part",
    "value_of",
]

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


def value_of(cfg: Any, key: str) -> Any:
    """The value of a dotted key."""
    for word in key.split("."):
        cfg = cfg[word]
    return cfg
