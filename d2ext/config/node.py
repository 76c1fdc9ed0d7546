"""A config node that names the nearest keys when one is misspelt, and never runs code from YAML."""

import difflib
import os
import re
from typing import Any, Dict, Iterator, List, Sequence, Tuple, Union

from detectron2.config import CfgNode as _UpstreamCfgNode
from iopath.common.file_io import g_pathmgr
from yacs.config import CfgNode as _YacsCfgNode

from .keys import add_keys
from .rules import shown
from .yaml_files import load_yaml, read_yaml_with_base

__all__ = ["CfgNode", "get_cfg", "nearest_keys", "override_pairs"]


def get_cfg() -> "CfgNode":
    """Detectron2's default config with every key of d2ext added."""
    from detectron2.config import get_cfg as get_upstream_cfg

    cfg = CfgNode(get_upstream_cfg())
    add_keys(cfg)
    return cfg


def override_pairs(words: Sequence[Any]) -> List[Tuple[Any, Any]]:
    """Keys and values of a command line: ``KEY VALUE`` words, or ``KEY=VALUE`` in one."""
    pairs: List[Tuple[Any, Any]] = []
    rest = list(words)
    while rest:
        key = rest.pop(0)
        if isinstance(key, str) and key.startswith("--"):
            raise ValueError(f"{key} is a flag, and flags stand before overrides of config keys.")
        both = re.fullmatch(r"([A-Za-z_][\w.]*)=(.*)", key, re.S) if isinstance(key, str) else None
        if both:
            pairs.append((both[1], both[2]))
        elif rest:
            pairs.append((key, rest.pop(0)))
        else:
            raise ValueError(
                f"Overrides come as KEY VALUE pairs or as KEY=VALUE, but {key} has no value in "
                f"'{' '.join(map(str, words))}'."
            )
    return pairs


def nearest_keys(key: str, known: List[str], count: int = 3) -> List[str]:
    """The known dotted keys most like ``key``, or the section that was meant.

    A key is often right but stands in the wrong section (``BASE_LR`` for ``SOLVER.BASE_LR``), so
    an equal last word counts before a path that is like it. A misspelt section is looked for among
    sections.
    """
    wanted = key.upper()
    corrected = _corrected(wanted, known)
    if corrected and corrected not in known:
        return [corrected]
    last = wanted.rsplit(".", 1)[-1]
    same_leaf = [k for k in known if k.rsplit(".", 1)[-1] == last]
    same_leaf.sort(key=lambda k: -difflib.SequenceMatcher(None, wanted, k).ratio())
    close = difflib.get_close_matches(wanted, known, n=count, cutoff=0.6)
    leaves = {k.rsplit(".", 1)[-1]: k for k in known}
    close_leaf = [leaves[m] for m in difflib.get_close_matches(last, list(leaves), n=count)]
    ranked = dict.fromkeys([*same_leaf[:count], *filter(None, [corrected]), *close, *close_leaf])
    ranked.pop(key, None)
    return list(ranked)[:count]


def _corrected(key: str, known: List[str]) -> str:
    """The key with each word replaced by the nearest one that stands there, or ""."""
    path = ""
    for word in key.split("."):
        here = {k[len(path) :].split(".", 1)[0] for k in known if k.startswith(path)}
        near = [word] if word in here else difflib.get_close_matches(word, sorted(here), n=1)
        if not near:
            return ""
        path += f"{near[0]}."
    return path[:-1]


class CfgNode(_UpstreamCfgNode):
    """Detectron2's ``CfgNode`` with two differences.

    * An unknown key is refused with the nearest keys that do exist.
    * YAML is only ever read with the safe loader, also through ``_BASE_``. Detectron2 falls back
      to ``yaml.unsafe_load``, which lets a config file run any code.
    """

    @classmethod
    def load_yaml_with_base(cls, filename: str, allow_unsafe: bool = False) -> Dict[str, Any]:
        """Read a YAML file and the files it names in ``_BASE_``; ``allow_unsafe`` is ignored."""
        values = read_yaml_with_base(str(filename))
        if not isinstance(values.get("VERSION", 0), int):
            raise ValueError(f"VERSION is {shown(values['VERSION'])}; it must be an integer.")
        return values

    @classmethod
    def load_cfg(cls, cfg_file_obj_or_str: Any) -> "CfgNode":
        """A config from YAML text or an open YAML file. yacs would run a Python file."""
        text = cfg_file_obj_or_str
        return cls(load_yaml(text if isinstance(text, str) else text.read()))

    @classmethod
    def _decode_cfg_value(cls, value: Any) -> Any:
        """yacs' reading of a text as a literal; what cannot be one stays a text."""
        try:
            return super()._decode_cfg_value(value)
        except (TypeError, MemoryError, RecursionError):
            return value

    def __setattr__(self, name: str, value: Any) -> None:
        """Set a key; a section made with Detectron2's or yacs' class becomes one of this class.

        Otherwise a section that a user adds would refuse what YAML files say about it, because yacs
        compares types.
        """
        super().__setattr__(name, _converted(value, type(self)))

    def merge_from_file(
        self, cfg_filename: Union[str, Sequence[str]], allow_unsafe: bool = False
    ) -> None:
        """Merge a YAML file, or several in order; ``allow_unsafe`` is accepted and ignored."""
        files = [cfg_filename] if isinstance(cfg_filename, (str, os.PathLike)) else cfg_filename
        for file in map(os.fspath, files):
            if not g_pathmgr.isfile(file):
                raise FileNotFoundError(f"Config file '{file}' does not exist.")
            super().merge_from_file(file, allow_unsafe=False)

    def merge_from_other_cfg(self, cfg_other: _YacsCfgNode) -> None:
        unknown = _unknown_keys(self, cfg_other)
        if unknown:
            raise KeyError(_unknown_message(unknown[0], self))
        super().merge_from_other_cfg(_fitted(cfg_other, self))

    def merge_from_list(self, cfg_list: List[Any]) -> None:
        known = set(self.dotted_keys())
        rest: List[Any] = []
        for key, value in override_pairs(cfg_list):
            if key not in known and not _is_free_form(self, key):
                raise KeyError(_unknown_message(key, self))
            if not _set_free_form(self, key, value):
                rest += [key, _fitted_value(value, _value_of(self, key), key, self)]
        super().merge_from_list(rest)

    def dotted_keys(self) -> List[str]:
        """All leaf keys as dotted paths."""
        return list(_leaves(self))


def _converted(value: Any, cls: type) -> Any:
    """``value``, with config nodes of other classes turned into ``cls`` at every depth."""
    if not isinstance(value, _YacsCfgNode) or isinstance(value, cls):
        return value
    node = cls(new_allowed=value.is_new_allowed())
    for key, item in value.items():
        node[key] = _converted(item, cls)
    return node


def _leaves(node: _YacsCfgNode, prefix: str = "") -> Iterator[str]:
    for key, value in node.items():
        path = f"{prefix}{key}"
        if isinstance(value, _YacsCfgNode):
            yield from _leaves(value, path + ".")
        else:
            yield path


def _is_free_form(cfg: _YacsCfgNode, key: str) -> bool:
    """Whether ``key`` goes into a node that takes new keys (yacs' ``new_allowed``)."""
    node = cfg
    for word in key.split(".")[:-1]:
        node = node.get(word)
        if not isinstance(node, _YacsCfgNode):
            return False
        if node.is_new_allowed():
            return True
    last = node.get(key.split(".")[-1])
    if isinstance(last, _YacsCfgNode) and last.is_new_allowed():
        return True
    return bool(cfg.key_is_deprecated(key) or cfg.key_is_renamed(key))


def _set_free_form(cfg: _YacsCfgNode, key: str, value: Any) -> bool:
    """Set a key of a node that takes new keys, or several by naming the node and giving a dict.

    yacs merges such keys from a file, but not from KEY VALUE pairs.
    """
    node, words = cfg, key.split(".")
    while words and isinstance(node, _YacsCfgNode) and not node.is_new_allowed():
        node = node.get(words.pop(0))
    if not isinstance(node, _YacsCfgNode) or not node.is_new_allowed():
        return False
    value = cfg._decode_cfg_value(value)
    if words:
        value = {".".join(words): value}
    if not isinstance(value, dict):
        raise ValueError(f"{key} takes a dict such as \"{{'name': 1.0}}\", not {value!r}.")
    for name, item in value.items():
        setattr(node, name, item)
    return True


def _value_of(cfg: _YacsCfgNode, path: str) -> Any:
    """The value of a key, or None if it has none: yacs knows keys that were renamed."""
    for word in path.split("."):
        cfg = cfg.get(word) if isinstance(cfg, _YacsCfgNode) else None
    return cfg


def _fitted(new: _YacsCfgNode, cfg: _YacsCfgNode, prefix: str = "") -> _YacsCfgNode:
    """A copy of ``new`` whose values have the types of those in ``cfg``; see `_fitted_value`."""
    fitted = type(new)(new_allowed=new.is_new_allowed())
    for key, value in new.items():
        path = f"{prefix}{key}"
        old = cfg.get(key)
        if isinstance(value, _YacsCfgNode) and isinstance(old, _YacsCfgNode):
            value = _fitted(value, old, f"{path}.")
        elif key in cfg:
            value = _fitted_value(value, old, path, cfg)
        dict.__setitem__(fitted, key, value)
    return fitted


def _fitted_value(value: Any, old: Any, key: str, cfg: _YacsCfgNode) -> Any:
    """The value to replace ``old``: an integer becomes a float where one is expected.

    A value of another type is refused here, where the key is known, and not in yacs' words.
    """
    decoded = cfg._decode_cfg_value(value)
    if old is None or decoded is None or type(decoded) is type(old):
        return value
    if isinstance(old, str) and isinstance(value, str):
        return repr(value)  # yacs would read a text such as "0.8" as a number
    if isinstance(old, float) and type(decoded) is int:
        return float(decoded)
    if isinstance(old, (list, tuple)) and isinstance(decoded, (list, tuple)):
        return value
    if isinstance(old, _YacsCfgNode) and isinstance(decoded, dict):
        return value
    raise ValueError(f"{key} is {shown(decoded)}; it must be {_allowed(key, old)}.")


def _allowed(key: str, old: Any) -> str:
    if isinstance(old, _YacsCfgNode):
        return "a section of keys"
    from .upstream import type_rule
    from .validate import rule_of

    return (rule_of(key) or type_rule(old)).words()


def _unknown_keys(cfg: _YacsCfgNode, other: _YacsCfgNode, prefix: str = "") -> List[str]:
    unknown = []
    for key, value in other.items():
        path = f"{prefix}{key}"
        if key not in cfg:
            if not (cfg.is_new_allowed() or key == "_BASE_"):
                unknown.append(path)
        elif isinstance(value, _YacsCfgNode) and isinstance(cfg[key], _YacsCfgNode):
            unknown += _unknown_keys(cfg[key], value, path + ".")
    return unknown


def _unknown_message(key: str, cfg: _YacsCfgNode) -> str:
    near = nearest_keys(key, list(_leaves(cfg)))
    hint = f" Did you mean {' or '.join(near)}?" if near else ""
    return f"There is no config key {key}.{hint}"
