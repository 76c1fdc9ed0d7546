"""What a value of a config key may be: the words that the tables of rules are made of.

A rule is a test and the words that say what passes it. Tables of rules stand beside the keys, in
the files of this folder; :mod:`d2ext.config.validate` applies them.
"""

import importlib
import math
from typing import Any, Callable, Iterable, List, NamedTuple, Optional, Sequence, Tuple

__all__ = [
    "ANY",
    "BOOLEAN",
    "COUNT",
    "FEATURES",
    "NAME",
    "NORM",
    "PROBABILITY",
    "SHARE",
    "TEXT",
    "Relation",
    "Rule",
    "integer",
    "listing",
    "number",
    "one_of",
    "registered",
    "shown",
    "torch_device",
]


class Rule(NamedTuple):
    """What one value may be.

    Attributes:
        allowed: completes the sentence "it must be ...".
        accepts: the test.
        extent: what ``allowed`` cannot know before it is needed, such as the names in a registry.
    """

    allowed: str
    accepts: Callable[[Any], bool]
    extent: Optional[Callable[[], str]] = None

    def __or__(self, other: "Rule") -> "Rule":
        return Rule(
            f"{self.words()}, or {other.allowed}", lambda v: self.accepts(v) or other.accepts(v)
        )

    def words(self) -> str:
        return self.allowed if self.extent is None else self.extent()


class Relation(NamedTuple):
    """What values of several keys must be to each other.

    Attributes:
        keys: the keys, the one to complain of first.
        allowed: completes the sentence "...; ``allowed``.".
        holds: called with the config, after every single key has passed its rule.
        when: called with the config; the relation is looked at only where this is true.
    """

    keys: Tuple[str, ...]
    allowed: str
    holds: Callable[[Any], bool]
    when: Callable[[Any], bool] = lambda cfg: True


def shown(value: Any) -> str:
    """A value in a message: on one line, and not longer than that."""
    text = repr(value).replace("\n", " ")
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def integer(low: Optional[int] = None, high: Optional[int] = None) -> Rule:
    """An integer within limits; True and False do not count."""
    if low is not None and high is not None:
        allowed = f"an integer from {low} to {high}"
    elif low is not None:
        allowed = f"an integer of at least {low}"
    else:
        allowed = "an integer" if high is None else f"an integer of at most {high}"
    least, most = -math.inf if low is None else low, math.inf if high is None else high
    return Rule(allowed, lambda v: _is_integer(v) and least <= v <= most)


def number(
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above: float = -math.inf,
    below: float = math.inf,
    infinite: bool = False,
) -> Rule:
    """A number within limits, ``low`` and ``high`` included, ``above`` and ``below`` not.

    NaN never is one, infinity only where it is asked for.
    """
    limits = [f"of at least {low}"] if low > -math.inf else []
    limits += [f"above {above}"] if above > -math.inf else []
    limits += [f"of at most {high}"] if high < math.inf else []
    limits += [f"below {below}"] if below < math.inf else []
    kind = "a number" if limits or infinite else "a finite number"

    def accepts(value: Any) -> bool:
        if not _is_number(value) or not (low <= value <= high):
            return False
        if math.isinf(value):
            return infinite and value >= above
        return bool(above < value < below)

    return Rule(" ".join([kind, " and ".join(limits)]).strip(), accepts)


def one_of(*choices: Any) -> Rule:
    """One of a few values."""

    def accepts(value: Any) -> bool:
        # 1 == True == 1.0, and only one of them is meant.
        return any(type(value) is type(choice) and value == choice for choice in choices)

    return Rule(_either(choices), accepts)


def _either(choices: Sequence[Any]) -> str:
    words = [repr(choice) for choice in choices]
    return words[0] if len(words) == 1 else f"one of {', '.join(words[:-1])} and {words[-1]}"


def registered(where: str, *extra: str, advice: str = "") -> Rule:
    """A name in a registry, which is looked up when it is needed: keys know no models.

    Args:
        where: "module:attribute" of a registry or a dictionary.
        extra: further names that are allowed.
        advice: where other names come from.
    """

    def names() -> List[str]:
        module, attribute = where.split(":")
        registry = getattr(importlib.import_module(module), attribute)
        if hasattr(registry, "names"):
            found: Iterable[str] = registry.names()
        else:  # fvcore's registry gives pairs, a dictionary its keys
            found = (item[0] if isinstance(item, tuple) else item for item in registry)
        return [*extra, *sorted(found)]

    def words() -> str:
        known = names()
        choice = _either(known) if known else "a registered name, and there is none yet"
        return f"{choice}{advice}"

    return Rule("a registered name", lambda v: isinstance(v, str) and v in names(), words)


def listing(
    item: Rule,
    *,
    least: int = 0,
    length: Optional[int] = None,
    ascending: bool = False,
    strictly: bool = False,
    distinct: bool = False,
) -> Rule:
    """A list or a tuple.

    Args:
        item: what each of its items may be.
        least: its least length.
        length: its length.
        ascending, strictly: in ascending order, without equal neighbours.
        distinct: without repetition.
    """
    words = f" of {length} items" if length is not None else f" of at least {least}" * bool(least)
    order = ", in ascending order" if ascending or strictly else ""
    order += ", none twice" if strictly or distinct else ""

    def accepts(value: Any) -> bool:
        if not isinstance(value, (list, tuple)) or len(value) < least:
            return False
        if length is not None and len(value) != length:
            return False
        if not all(item.accepts(entry) for entry in value):
            return False
        pairs = list(zip(value, value[1:]))
        if strictly:
            return all(a < b for a, b in pairs)
        if ascending:
            return all(a <= b for a, b in pairs)
        return not distinct or len(set(value)) == len(value)

    def extent() -> str:
        return f"a list{words}, each {item.words()}{order}"

    return Rule(f"a list{words}", accepts, extent)


def torch_device() -> Rule:
    """A name that PyTorch knows as a device; whether the machine has one is another question."""

    def accepts(value: Any) -> bool:
        import torch

        if not isinstance(value, str):
            return False
        try:
            torch.device(value)
        except RuntimeError:
            return False
        return True

    return Rule("a device such as 'cpu', 'cuda' or 'cuda:1'", accepts)


ANY = Rule("anything", lambda v: True)
BOOLEAN = Rule("True or False", lambda v: isinstance(v, bool))
TEXT = Rule("a text", lambda v: isinstance(v, str))
NAME = Rule("a text that is not empty", lambda v: isinstance(v, str) and bool(v))
COUNT = integer(1)
SHARE = number(0, 1)
PROBABILITY = number(above=0, below=1)
FEATURES = listing(NAME, least=1, distinct=True)
NORM = one_of("", "GN", "BN", "SyncBN", "FrozenBN", "LN", "nnSyncBN", "naiveSyncBN",
              "naiveSyncBN_N")  # fmt: skip
