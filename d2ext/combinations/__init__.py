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
from typing import Any, Iterable, Iterator, List, Optional, Tuple

from .parts import (
    BOX_LOSS_KEYS,
    CHOICES,
    CLS_LOSS_KEYS,
    DETECTORS,
    PARTS,
    PLACES,
    SECTIONS,
    Choice,
    Detector,
    Part,
    value_of,
)
from .rules import RULES, UNREAD, Rule

__all__ = [
    "BOX_LOSS_KEYS",
    "CLS_LOSS_KEYS",
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


def changed(cfg: Any, place: str) -> List[str]:
    """The keys by which a config changes the parts of a place."""
    keys = [c.key for c in CHOICES if place in c.places and c.is_made(cfg)]
    for section in SECTIONS:
        node = value_of(cfg, section)
        if node["ENABLED"] and node[f"ON_{place.upper()}"]:
            keys.append(f"{section}.ENABLED")
    return keys
