#!/usr/bin/env python
"""Write the table of methods and detectors into README.md, from ``d2ext.combinations``.

``--check`` changes nothing, and fails if the page says something else. A test builds and trains a
step of each cell that works, and checks that each other one is refused with its reason.
"""

import argparse
import re
import sys
from itertools import combinations
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from d2ext.combinations import DETECTORS, PARTS, Rule, notes, refusal

__all__ = ["METHODS", "SHOWN", "Shown", "cells", "markdown_table", "overrides"]

README = Path(__file__).resolve().parents[1] / "README.md"
MARK = re.compile(r"(<!-- combinations -->\n).*?(<!-- end of combinations -->)", re.S)

#: What the papers brought; their rivals have tables of their own.
METHODS = [name for name, part in PARTS.items() if not part.rivals]


class Shown(NamedTuple):
    """How the table shows a detector, and the tests build it.

    Attributes:
        config: its config on the built-in data.
        chosen_by: how a config names it.
        keys: KEY VALUE words after the config.
    """

    config: str
    chosen_by: str
    keys: Tuple[str, ...] = ()


_RCNN = "`ExtRPN`, `Ext{}ROIHeads`"

SHOWN: Dict[str, Shown] = {
    "RetinaNet": Shown("Demo/retinanet_shapes", "`ExtRetinaNet`"),
    "FCOS": Shown("Demo/fcos_shapes", "`ExtFCOS`"),
    "ATSS": Shown("Demo/atss_shapes", "`ATSS`"),
    "YOLOX": Shown("Demo/yolox_shapes", "`YOLOX`"),
    "DW": Shown("Demo/dw_shapes", "`DualWeightingFCOS`"),
    "Faster R-CNN": Shown("Demo/faster_rcnn_shapes", _RCNN.format("Standard")),
    "Mask R-CNN": Shown("Demo/mask_rcnn_shapes", _RCNN.format("Standard")),
    "Cascade R-CNN": Shown("Demo/cascade_rcnn_shapes", _RCNN.format("Cascade")),
    "any other": Shown(
        "Demo/retinanet_shapes", "its own names", ("MODEL.META_ARCHITECTURE", "RetinaNet")
    ),
}


def overrides(detector: str, methods: Sequence[str]) -> List[str]:
    """KEY VALUE words that give a detector its methods, after its config.

    Where no place fits the detector, they are what a user would try first.
    """
    words = list(SHOWN[detector].keys)
    for method in methods:
        places = (*DETECTORS[detector].places[::-1], *PARTS[method].words)
        words += next(PARTS[method].words[p] for p in places if p in PARTS[method].words)
    return words


def _exclusive(methods: Sequence[str]) -> bool:
    """Whether methods are values of one key, so that no config can name both."""
    return set(methods) == {"EFL", "EQFL"}


def cells() -> Iterator[Tuple[str, Tuple[str, ...]]]:
    """Every detector with no method, each method and each pair of them."""
    singles = [(m,) for m in METHODS]
    pairs = [p for p in combinations(METHODS, 2) if not _exclusive(p)]
    for detector in SHOWN:
        for methods in [(), *singles, *pairs]:
            yield detector, methods


def markdown_table() -> str:
    """Detectors by methods and by pairs of methods, with the reasons below."""
    lines = [
        "| detector | chosen by | " + " | ".join(METHODS) + " | pairs |",
        "|---" * (len(METHODS) + 3) + "|",
    ]
    numbers: Dict[str, int] = {}
    for name, shown in SHOWN.items():
        marks = [_mark(refusal(name, m), numbers) for m in METHODS]
        pairs = [ms for d, ms in cells() if d == name and len(ms) == 2]
        works = sum(refusal(name, *pair) is None for pair in pairs)
        told = "all" if works == len(pairs) else f"{works} of {len(pairs)}"
        lines.append(f"| {name} | {shown.chosen_by} | " + " | ".join(marks) + f" | {told} |")
    lines.append("")
    lines.append(
        "A pair works where both of its methods do. "
        + " ".join(f"({n}) Refused: {reason}." for reason, n in numbers.items())
    )
    for pair in combinations(METHODS, 2):
        lines += [f"{' + '.join(pair)}: {note.reason}" for note in notes(parts=pair)]
    return "\n".join(lines) + "\n"


def _mark(refused: Optional[Rule], numbers: Dict[str, int]) -> str:
    if refused is None:
        return "yes"
    return f"({numbers.setdefault(refused.reason, len(numbers) + 1)})"


def main(argv: Any = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say whether it is out of date")
    args = parser.parse_args(argv)
    old = README.read_text(encoding="utf-8")
    new = MARK.sub(lambda m: f"{m[1]}\n{markdown_table()}\n{m[2]}", old)
    if new != old and not args.check:
        README.write_text(new, encoding="utf-8")
    if new != old:
        print(f"{README.name} {'is out of date' if args.check else 'written'}")
    return int(args.check and new != old)


if __name__ == "__main__":
    sys.exit(main())
