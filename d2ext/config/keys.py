"""How config keys are declared: once, each with default, rule, meaning and the argument it feeds.

Everything else follows from the declarations: the defaults (`add_keys`), the rules
(:mod:`d2ext.config.validate`), the arguments of constructors (`arguments`), what a constructor's
refusal says to somebody who wrote a config (`construct`, `names_keys`), and the tables of the
documentation (``tools/key_tables.py``).

To add a key, add a line to its section in this folder. To add a section, add a `Section` to the
``SECTIONS`` of a file here, whose name stands in `AREAS`, and name it on a page of the
documentation (``<!-- keys: ... -->``). Then run ``tools/key_tables.py``.
"""

import functools
import importlib
import re
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple, TypeVar

from .rules import Relation, Rule

__all__ = [
    "AREAS",
    "Key",
    "Section",
    "add_keys",
    "all_relations",
    "all_sections",
    "arguments",
    "construct",
    "names_keys",
]

#: The files of this folder that declare keys, in the order of the defaults.
AREAS = (
    "dense",
    "csp_darknet",
    "roi_heads",
    "backbones",
    "dual_weighting",
    "equalized_focal",
    "class_weights",
    "sampling_free",
    "harmonic",
    "loss_weights",
    "rivals",
    "engine",
    "own_data",
)

T = TypeVar("T")


class Key(NamedTuple):
    """One key.

    Attributes:
        name: below its section. With a dot it is in a section of its own; a last word ``*`` stands
            for any name, in a section that is empty by default.
        default: its value unless it is set.
        rule: what it may be.
        meaning: one line, for the documentation.
        argument: the constructor argument that it feeds. None: the name in lower case, with an
            underscore for a dot; "": none.
        part: which of several parts takes it, where a section feeds more than one; or several,
            with spaces between.
    """

    name: str
    default: Any
    rule: Rule
    meaning: str
    argument: Optional[str] = None
    part: str = ""

    @property
    def feeds(self) -> str:
        """The constructor argument, or ""."""
        if self.argument is not None:
            return self.argument
        return "" if self.name.endswith("*") else self.name.lower().replace(".", "_")


class Section:
    """The keys of d2ext in one section of the config.

    Args:
        name: such as ``MODEL.EFL``; it may be one of Detectron2's.
        keys: those that d2ext adds to it.
    """

    def __init__(self, name: str, *keys: Key):
        self.name = name
        self.keys = keys
        names = [key.name for key in keys]
        twice = {n for n in names if names.count(n) > 1}
        if twice:
            raise ValueError(f"{name}.{min(twice)} is declared twice; keep one of them.")

    def rules(self) -> Dict[str, Rule]:
        """The rule of each key, by its full name."""
        return {f"{self.name}.{key.name}": key.rule for key in self.keys}

    def feeding(self, part: str) -> Iterator[Key]:
        """The keys that one part takes."""
        for key in self.keys:
            if key.feeds and (part == key.part or part in key.part.split()):
                yield key

    def key_of(self, argument: str, part: Optional[str] = None) -> Optional[str]:
        """The full name of the key that feeds an argument, or None."""
        for key in self.keys if part is None else self.feeding(part):
            if key.feeds == argument:
                return f"{self.name}.{key.name}"
        return None


@functools.cache
def all_sections() -> Tuple[Section, ...]:
    """Every section that is declared in this folder."""
    return tuple(section for area in _areas() for section in area.SECTIONS)


def all_relations() -> List[Relation]:
    """What values of several keys of d2ext must be to each other."""
    return [relation for area in _areas() for relation in getattr(area, "RELATIONS", ())]


def _areas() -> Iterator[Any]:
    return (importlib.import_module(f"{__package__}.{area}") for area in AREAS)


def add_keys(cfg: Any) -> None:
    """Add every key with its default, in place. A key that is there already keeps its value."""
    for section in all_sections():
        for key in section.keys:
            *path, leaf = f"{section.name}.{key.name}".split(".")
            node = cfg
            for word in path:
                if word not in node:
                    free = leaf == "*" and word == path[-1]
                    node[word] = type(cfg)(new_allowed=True) if free else type(cfg)()
                node = node[word]
            if leaf != "*" and leaf not in node:
                node[leaf] = list(key.default) if isinstance(key.default, list) else key.default


def arguments(cfg: Any, section: str, part: str = "") -> Dict[str, Any]:
    """Keyword arguments of a constructor from the keys of a section.

    Args:
        cfg: the config.
        section: such as ``"MODEL.EFL"``.
        part: which of the parts that the section feeds.

    Returns:
        ``{"alpha": cfg.MODEL.EFL.ALPHA, ...}``
    """
    found = {}
    for declared in _sections_named(section):
        for key in declared.feeding(part):
            value = cfg
            for word in f"{section}.{key.name}".split("."):
                value = value[word]
            found[key.feeds] = list(value) if isinstance(value, list) else value
    return found


def construct(
    factory: Callable[..., T], cfg: Any, section: str, part: str = "", **others: Any
) -> T:
    """Call ``factory`` with the arguments that a section feeds.

    A value that the factory refuses is refused in the name of the key that it came from.

    Args:
        factory: a class or a function.
        cfg, section, part: see :func:`arguments`.
        others: further arguments; they win over keys.
    """
    given = {**arguments(cfg, section, part), **others}
    try:
        return factory(**given)
    except ValueError as error:
        raise _in_keys(error, (section,), part) from error


def names_keys(*sections: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Decorator of a constructor, outside of ``@configurable``.

    Called with a config, the constructor refuses a value in the name of its key in one of the
    sections; called with arguments of its own, in their names.
    """

    def decorate(init: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(init)
        def wrapped(self: Any, *args: Any, **kwargs: Any) -> None:
            from yacs.config import CfgNode

            first = args[0] if args else kwargs.get("cfg")
            try:
                init(self, *args, **kwargs)
            except ValueError as error:
                if not isinstance(first, CfgNode):
                    raise
                raise _in_keys(error, sections) from error

        return wrapped

    return decorate


def _sections_named(name: str) -> List[Section]:
    found = [section for section in all_sections() if section.name == name]
    if not found:
        raise KeyError(f"No section {name} is declared in d2ext.config.")
    return found


def _in_keys(error: ValueError, sections: Tuple[str, ...], part: Optional[str] = None) -> Exception:
    """The error with names of arguments replaced by those of the keys that fed them.

    A word is taken for an argument if it comes first, stands before "=" or has an underscore: a
    message may use "scale" as a word.
    """
    declared = [section for name in sections for section in _sections_named(name)]

    def key_for(match: "re.Match[str]") -> str:
        word, equals = match.groups()
        key = next(filter(None, (section.key_of(word, part) for section in declared)), None)
        if key is None or not (match.start() == 0 or equals or "_" in word):
            return match.group(0)
        return f"{key} " if equals else key

    text = str(error.args[0]) if error.args else ""
    translated = re.sub(r"(?<![\w.])([a-z]\w*)\b(?!\.\w)(=?)", key_for, text)
    return type(error)(translated, *error.args[1:])
