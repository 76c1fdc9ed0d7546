"""Which methods work on which detectors, alone and in pairs: the one place that says so.

The table of the README is :func:`markdown_table`; a test builds and trains a step of each cell that
works, and checks that each other one is refused with its reason.
"""

from itertools import combinations
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

__all__ = ["DETECTORS", "METHODS", "Detector", "cells", "markdown_table", "overrides", "refusal"]


class Detector(NamedTuple):
    """A detector of the table.

    Attributes:
        config: its config on the built-in data.
        chosen_by: how a config names it.
        places: where it has losses of ours, "dense", or "rpn" and "roi".
        keys: KEY VALUE words after the config.
    """

    config: str
    chosen_by: str
    places: Tuple[str, ...]
    keys: Tuple[str, ...] = ()


_RCNN = "`ExtRPN`, `Ext{}ROIHeads`"

DETECTORS: Dict[str, Detector] = {
    "RetinaNet": Detector("Demo/retinanet_shapes", "`ExtRetinaNet`", ("dense",)),
    "FCOS": Detector("Demo/fcos_shapes", "`ExtFCOS`", ("dense",)),
    "ATSS": Detector("Demo/atss_shapes", "`ATSS`", ("dense",)),
    "DW": Detector("Demo/dw_shapes", "`DualWeightingFCOS`", ()),
    "Faster R-CNN": Detector("Demo/faster_rcnn_shapes", _RCNN.format("Standard"), ("rpn", "roi")),
    "Mask R-CNN": Detector("Demo/mask_rcnn_shapes", _RCNN.format("Standard"), ("rpn", "roi")),
    "Cascade R-CNN": Detector("Demo/cascade_rcnn_shapes", _RCNN.format("Cascade"), ("rpn", "roi")),
    "any other": Detector(
        "Demo/retinanet_shapes", "its own names", (), ("MODEL.META_ARCHITECTURE", "RetinaNet")
    ),
}

# The keys that switch a method on at a dense head, at region-based heads, or anywhere. Where none
# fits a detector, the first is what a user would try.
METHODS: Dict[str, Dict[str, Tuple[str, ...]]] = {
    "EFL": {
        "dense": ("MODEL.DENSE.CLS_LOSS", "efl"),
        "roi": ("MODEL.ROI_BOX_HEAD.CLS_LOSS", "efl", "MODEL.ROI_BOX_HEAD.PRIOR_PROB", "0.01"),
    },
    "EQFL": {
        "dense": ("MODEL.DENSE.CLS_LOSS", "eqfl"),
        "roi": ("MODEL.ROI_BOX_HEAD.CLS_LOSS", "eqfl"),
    },
    "Sampling-Free": {"any": ("MODEL.SAMPLING_FREE.ENABLED", "True")},
    "Harmonic": {"any": ("MODEL.HARMONIC.ENABLED", "True", "MODEL.HARMONIC.ALPHA_HIOU", "0.0")},
    "HIoU loss": {
        "dense": ("MODEL.DENSE.BOX_LOSS", "harmonic_iou"),
        "roi": ("MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE", "harmonic_iou"),
    },
    "ALWA": {"any": ("SOLVER.ALWA.ENABLED", "True")},
}

_HARD_LABELS = "an ROI head is trained with hard labels"
_OWN_LOSSES = "DW is assignment and loss in one"
_NOT_OURS = "none of its parts reads the key"

# (pattern of the refusal's sentence, reason in the table), by detector and method.
_REFUSED: Dict[Tuple[str, str], Tuple[str, str]] = {
    **{
        (detector, "EQFL"): ("cannot be 'eqfl' because .* hard labels", _HARD_LABELS)
        for detector, (_, _, places, _) in DETECTORS.items()
        if "roi" in places
    },
    **{
        ("DW", method): ("DualWeightingFCOS has losses of its own", _OWN_LOSSES)
        for method in METHODS
        if method != "ALWA"
    },
    **{
        ("any other", method): ("RetinaNet has no", _NOT_OURS)
        for method in METHODS
        if method != "ALWA"
    },
}

# What to know of pairs that work.
_NOTES: Dict[Tuple[str, str], str] = {
    (
        "Sampling-Free",
        "ALWA",
    ): "The guided scale makes X about Y, so ALWA finds nothing to do. With "
    "`MODEL.SAMPLING_FREE.GUIDE: none` (the measured bias alone) it does.",
    ("Harmonic", "HIoU loss"): "Set `MODEL.HARMONIC.ALPHA_HIOU: 0`, or the overlap counts twice; "
    "a warning says so.",
}


def overrides(detector: str, methods: Sequence[str]) -> List[str]:
    """KEY VALUE words that give a detector its methods, after its config."""
    words = list(DETECTORS[detector].keys)
    places = (*DETECTORS[detector].places, "any")
    for method in methods:
        keys = METHODS[method]
        place = next((p for p in places if p in keys), next(iter(keys)))
        words += keys[place]
    return words


def refusal(detector: str, methods: Sequence[str]) -> Optional[Tuple[str, str]]:
    """Why a detector refuses methods: a pattern of the sentence and a reason; None if it works."""
    return next((_REFUSED[detector, m] for m in methods if (detector, m) in _REFUSED), None)


def _exclusive(methods: Sequence[str]) -> bool:
    """Whether methods are values of one key, so that no config can name both."""
    return set(methods) == {"EFL", "EQFL"}


def cells() -> Iterator[Tuple[str, Tuple[str, ...]]]:
    """Every detector with no method, each method and each pair of them."""
    singles = [(m,) for m in METHODS]
    pairs = [p for p in combinations(METHODS, 2) if not _exclusive(p)]
    for detector in DETECTORS:
        for methods in [(), *singles, *pairs]:
            yield detector, methods


def markdown_table() -> str:
    """Detectors by methods and by pairs of methods, with the reasons below, for the README."""
    methods = list(METHODS)
    lines = [
        "| detector | chosen by | " + " | ".join(methods) + " | pairs |",
        "|---" * (len(methods) + 3) + "|",
    ]
    numbers: Dict[str, int] = {}
    for name, detector in DETECTORS.items():
        marks = [_mark(refusal(name, [m]), numbers) for m in methods]
        pairs = [ms for d, ms in cells() if d == name and len(ms) == 2]
        works = sum(refusal(name, pair) is None for pair in pairs)
        told = "all" if works == len(pairs) else f"{works} of {len(pairs)}"
        lines.append(f"| {name} | {detector.chosen_by} | " + " | ".join(marks) + f" | {told} |")
    lines.append("")
    lines.append(
        "A pair works where both of its methods do. "
        + " ".join(f"({n}) Refused: {reason}." for reason, n in numbers.items())
    )
    lines += [f"{' + '.join(pair)}: {note}" for pair, note in _NOTES.items()]
    return "\n".join(lines) + "\n"


def _mark(refused: Optional[Tuple[str, str]], numbers: Dict[str, int]) -> str:
    if refused is None:
        return "yes"
    return f"({numbers.setdefault(refused[1], len(numbers) + 1)})"
