"""Which losses of a model belong together: found by their names, so in any model."""

import math
import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Dict, Iterable, List, Mapping, Sequence, Tuple

__all__ = ["LossGroup", "check_static_weights", "find_groups", "static_weights"]


@dataclass(frozen=True)
class LossGroup:
    """A classification loss and a box loss that are weighed against each other.

    Attributes:
        name: for logs and saved states.
        cls: names of the classification losses, which share a weight.
        box: names of the box losses, which share a weight.
    """

    name: str
    cls: Tuple[str, ...]
    box: Tuple[str, ...]


# The names that Detectron2's and this package's models give their losses.
_KNOWN = {
    "rpn": LossGroup("rpn", ("loss_rpn_cls",), ("loss_rpn_loc",)),
    "dense": LossGroup("dense", ("loss_cls",), ("loss_box_reg",)),
    "roi": LossGroup("roi", ("loss_cls",), ("loss_box_reg",)),
    "fcos": LossGroup("fcos", ("loss_fcos_cls",), ("loss_fcos_loc",)),
    "dw": LossGroup("dw", ("loss_cls_pos", "loss_cls_neg"), ("loss_loc",)),
}
_STAGE = re.compile(r"loss_cls_stage(\d+)")


def find_groups(wanted: Sequence[str], losses: Iterable[str]) -> List[LossGroup]:
    """The groups that a configuration asks for, among a model's losses.

    Args:
        wanted: "auto", "all", known names ("rpn", "dense", "roi", "fcos", "dw") or definitions
            "name=class_loss+class_loss/box_loss".
        losses: names of the losses the model gave.

    Raises:
        KeyError: if a group's losses are not all there; the message lists those that are.
        ValueError: for a definition that cannot be read, or a loss in two groups.
    """
    names = list(losses)
    groups: List[LossGroup] = []
    for word in wanted:
        for group in _expand(word, names):
            if group not in groups:
                groups.append(group)
    _check_disjoint(groups)
    return groups


def _expand(word: str, names: List[str]) -> List[LossGroup]:
    if word in ("auto", "all"):
        found = _all_groups(names)
        if not found:
            raise KeyError(
                f"SOLVER.ALWA.GROUPS is '{word}', but no known pair of class and box loss is among "
                f"the model's losses ({', '.join(names)}); define one as "
                "'name=class_loss/box_loss'."
            )
        return found[:1] if word == "auto" else found
    if "=" in word:
        group = _parse(word)
    elif word == "roi":
        stages = _stages(names)
        if stages:
            return stages
        group = _KNOWN["roi"]
    elif word in _KNOWN:
        group = _KNOWN[word]
    else:
        raise ValueError(
            f"SOLVER.ALWA.GROUPS names '{word}', which is not one of auto, all, "
            f"{', '.join(_KNOWN)}; define a group of your own as 'name=class_loss/box_loss'."
        )
    missing = [n for n in (*group.cls, *group.box) if n not in names]
    if missing:
        raise KeyError(
            f"SOLVER.ALWA.GROUPS asks for '{word}', but the model has no loss {missing[0]}; its "
            f"losses are {', '.join(names)}."
        )
    return [group]


def _all_groups(names: List[str]) -> List[LossGroup]:
    """Every known pair; first the one that the authors' code weights: the RPN, or the only head."""
    second_stage = "loss_rpn_cls" in names
    order = ["rpn", "roi" if second_stage else "dense", "fcos", "dw"]
    found = [_KNOWN[key] for key in order if _present(_KNOWN[key], names)]
    return found + _stages(names)


def _present(group: LossGroup, names: List[str]) -> bool:
    return all(n in names for n in (*group.cls, *group.box))


def _stages(names: List[str]) -> List[LossGroup]:
    """A group for each stage of a cascade."""
    stages = sorted(int(m.group(1)) for m in map(_STAGE.fullmatch, names) if m)
    return [
        LossGroup(f"roi_stage{k}", (f"loss_cls_stage{k}",), (f"loss_box_reg_stage{k}",))
        for k in stages
        if f"loss_box_reg_stage{k}" in names
    ]


def _parse(word: str) -> LossGroup:
    name, _, body = (part.strip() for part in word.partition("="))
    cls, slash, box = body.partition("/")
    sides = [tuple(n.strip() for n in side.split("+")) for side in (cls, box)]
    if not (name and slash and all(sides[0]) and all(sides[1])) or "/" in box:
        raise ValueError(
            f"SOLVER.ALWA.GROUPS has '{word}'; a group is written "
            "'name=class_loss+class_loss/box_loss', with at least one loss on each side."
        )
    return LossGroup(name, *sides)


def _check_disjoint(groups: List[LossGroup]) -> None:
    owner: Dict[str, str] = {}
    for group in groups:
        for loss in (*group.cls, *group.box):
            if loss in owner:
                raise ValueError(
                    f"SOLVER.ALWA.GROUPS puts {loss} both into '{owner[loss]}' and into "
                    f"'{group.name}'; remove one of the two."
                )
            owner[loss] = group.name
    names = [group.name for group in groups]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(f"SOLVER.ALWA.GROUPS has two groups '{name}'; rename one of them.")


def static_weights(
    patterns: Mapping[str, float], losses: Iterable[str], *, strict: bool = True
) -> Dict[str, float]:
    """Weight of each loss that a pattern fits: the product over patterns.

    Args:
        patterns: weights by shell pattern (``loss_box_reg*``).
        losses: names of the losses the model gave.
        strict: refuse a pattern that fits no loss.

    Raises:
        KeyError: if a pattern fits no loss; the message lists the losses.
    """
    names = list(losses)
    weights: Dict[str, float] = {}
    for pattern, weight in patterns.items():
        fitting = [name for name in names if fnmatchcase(name, pattern)]
        if strict and not fitting:
            raise KeyError(
                f"SOLVER.LOSS_WEIGHTS has '{pattern}', which fits no loss of the model; its losses "
                f"are {', '.join(names)}."
            )
        for name in fitting:
            weights[name] = weights.get(name, 1.0) * weight
    return weights


def check_static_weights(patterns: Mapping[str, float]) -> None:
    """Refuse weights that are not non-negative numbers, before there is a model."""
    for pattern, weight in patterns.items():
        number = isinstance(weight, (int, float)) and not isinstance(weight, bool)
        if not number or not 0 <= weight < math.inf:
            raise ValueError(
                f"SOLVER.LOSS_WEIGHTS gives '{pattern}' the weight {weight!r}; it must be a number "
                "of at least 0."
            )
