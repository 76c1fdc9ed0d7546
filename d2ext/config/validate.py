"""Refuse a config with impossible values before anything is built from it."""

from functools import cache
from typing import Any, Dict, Iterator, List, Tuple

from yacs.config import CfgNode as _YacsCfgNode

from .keys import all_relations, all_sections
from .rules import Relation, Rule, shown
from .upstream import RELATIONS as UPSTREAM_RELATIONS
from .upstream import SECTIONS, Section, type_rule

__all__ = ["OWN_RULES", "rule_of", "validate", "violations"]

OWN_RULES: Dict[str, Rule] = {
    key: rule for section in all_sections() for key, rule in section.rules().items()
}
"""The rule of every key of d2ext; a last word ``*`` stands for all keys of a section."""

_RELATIONS: List[Relation] = [*all_relations(), *UPSTREAM_RELATIONS]
_OWN = Section(lambda cfg: True, OWN_RULES)
_MISSING = object()


def validate(cfg: Any, *sections: str, skip: Tuple[str, ...] = ()) -> None:
    """Raise ValueError for the first impossible value, in a sentence that says what is allowed.

    Args:
        cfg: the config.
        sections: only these, such as "MODEL" or "MODEL.EFL"; all if none is given.
        skip: keys that may have any value, because your own code reads them.
    """
    found = violations(cfg, *sections, skip=skip)
    if found:
        raise ValueError(found[0])


def violations(cfg: Any, *sections: str, skip: Tuple[str, ...] = ()) -> List[str]:
    """A sentence for every impossible value; see :func:`validate`.

    How values go together is looked at when every single one is possible.
    """
    found: List[str] = []
    for key, rule in _rules(cfg, sections):
        if key not in skip:
            found += _single(cfg, key, rule)
    found += [
        _sentence(key, value, known.words())
        for key, value in _leaves(cfg)
        if _concerns(key, sections)
        and key not in skip
        and (known := _upstream_types().get(key)) is not None
        and not known.accepts(value)
    ]
    found = list(dict.fromkeys(found))
    named = [sentence.split(" ", 1)[0] for sentence in found]
    found += [
        _sentence(key, value, "a number of 64 bits, a text, True, False, None or a list of these")
        for key, value in _leaves(cfg)
        if _concerns(key, sections) and key not in named and not _storable(value)
    ]
    if found or sections:
        return found
    return [
        _pair(cfg, relation)
        for relation in _RELATIONS
        if all(_value(cfg, key)[1] is not _MISSING for key in relation.keys)
        and not set(skip).intersection(relation.keys)
        and relation.when(cfg)
        and not relation.holds(cfg)
    ]


def rule_of(key: str) -> Any:
    """The rule of a key, wherever it is used, or None."""
    for rules in (OWN_RULES, *(section.rules for section in SECTIONS)):
        for name in (key, f"{key.rpartition('.')[0]}.*"):
            if name in rules:
                return rules[name]
    return None


@cache
def _upstream_types() -> Dict[str, Rule]:
    """What the keys of Detectron2's that have no rule of their own may be, by their defaults."""
    from detectron2.config import get_cfg

    leaves = _leaves(get_cfg())
    return {key: type_rule(value) for key, value in leaves if rule_of(key) is None}


def _rules(cfg: Any, sections: Tuple[str, ...]) -> Iterator[Tuple[str, Rule]]:
    """Every rule that this config has to keep."""
    for used, rules in (_OWN, *SECTIONS):
        concerned = [(key, rule) for key, rule in rules.items() if _concerns(key, sections)]
        # In this order: a part that validates its own section is not to read other keys, which
        # the doctor would take for keys that the part needs.
        if concerned and used(cfg):
            yield from concerned


def _leaves(node: Any, prefix: str = "") -> Iterator[Tuple[str, Any]]:
    for key, value in dict.items(node):
        if isinstance(value, _YacsCfgNode):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _storable(value: Any) -> bool:
    """Whether YAML holds it: a checkpoint holds the config, unread keys included."""
    if isinstance(value, (list, tuple)):
        return type(value) in (list, tuple) and all(_storable(item) for item in value)
    if type(value) is int:
        return -(2**63) <= value < 2**63  # what tensors hold
    return value is None or type(value) in (bool, float, str)


def _concerns(key: str, sections: Tuple[str, ...]) -> bool:
    return not sections or any(key == s or key.startswith(f"{s}.") for s in sections)


def _single(cfg: Any, key: str, rule: Rule) -> List[str]:
    if key.endswith(".*"):
        name, node = _value(cfg, key[:-2])
        if node is _MISSING:
            return []
        if not isinstance(node, _YacsCfgNode):
            return [_sentence(name, node, "a section of keys")]
        values = [(f"{name}.{leaf}", value) for leaf, value in dict.items(node)]
        return [_sentence(k, v, rule.words()) for k, v in values if not rule.accepts(v)]
    name, value = _value(cfg, key)
    if value is _MISSING:
        return []
    if name != key:
        return [_sentence(name, value, "a section of keys")]
    return [] if rule.accepts(value) else [_sentence(key, value, rule.words())]


def _value(cfg: Any, key: str) -> Tuple[str, Any]:
    """The key and its value, or what stands for a section above it, or a mark if missing."""
    node, words = cfg, key.split(".")
    for depth, word in enumerate(words):
        if not isinstance(node, _YacsCfgNode):
            return ".".join(words[:depth]), node
        if word not in node:
            return key, _MISSING
        node = dict.__getitem__(node, word)  # not counted as a key that a part reads
    return key, node


def _sentence(key: str, value: Any, allowed: str) -> str:
    return f"{key} is {shown(value)}; it must be {allowed}."


def _pair(cfg: Any, relation: Relation) -> str:
    values = [f"{key} is {shown(_value(cfg, key)[1])}" for key in relation.keys]
    return f"{' and '.join(values)}; {relation.allowed}."
