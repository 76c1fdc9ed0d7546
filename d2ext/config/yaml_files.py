"""Reading config files: plain YAML with ``_BASE_``, which runs no code."""

import copy
import functools
import os
from typing import Any, Dict, List, Tuple, Union

import yaml

from .arithmetic import evaluate_literal

__all__ = ["SafeLoader", "load_yaml", "read_yaml", "read_yaml_with_base"]


class SafeLoader(yaml.SafeLoader):
    """PyYAML's safe loader, which also knows the literal arithmetic of Detectron2's model zoo."""


def _arithmetic(loader: SafeLoader, node: yaml.Node) -> Any:
    words = loader.construct_sequence(node, deep=True) if _is_sequence(node) else []
    try:
        if len(words) != 1:
            raise ValueError("it takes one text")
        return evaluate_literal(words[0])
    except ValueError as error:
        raise yaml.constructor.ConstructorError(
            None, None, f"{node.tag.rsplit(':', 1)[-1]} is refused: {error}", node.start_mark
        ) from error


def _is_sequence(node: yaml.Node) -> bool:
    return isinstance(node, yaml.SequenceNode)


SafeLoader.add_constructor("tag:yaml.org,2002:python/object/apply:eval", _arithmetic)


def load_yaml(stream: Any) -> Any:
    """What YAML text, or an open file of it, holds; no tag of it runs code."""
    return yaml.load(stream, SafeLoader)


@functools.lru_cache(maxsize=256)
def _parsed(text: str) -> Any:
    """Most files of a process have the same few bases, and parsing takes long."""
    return load_yaml(text)


def read_yaml(filename: str) -> Dict[str, Any]:
    """The keys that one file sets itself, with ``_BASE_`` if it has one.

    Raises:
        ValueError: it is not plain YAML, or no mapping
    """
    from iopath.common.file_io import g_pathmgr

    with g_pathmgr.open(filename, "r") as stream:
        try:
            config = copy.deepcopy(_parsed(stream.read()))
        except UnicodeDecodeError as error:
            raise ValueError(f"Config file '{filename}' is not text, so it is not YAML.") from error
        except yaml.YAMLError as error:
            reason = getattr(error, "problem", None) or str(error).splitlines()[0]
            raise ValueError(
                f"Config file '{filename}' is not plain YAML: {reason}; Python tags are refused "
                "because they would run code."
            ) from error
    if not isinstance(config, dict):
        raise ValueError(f"Config file '{filename}' holds no mapping of keys to values.")
    return config


def read_yaml_with_base(filename: str, _seen: Tuple[str, ...] = ()) -> Dict[str, Any]:
    """The keys of a file over those of the files it names in ``_BASE_``, in order."""
    if filename in _seen:
        raise ValueError(f"Config file '{filename}' names itself in _BASE_; remove the loop.")
    config = read_yaml(filename)
    bases: Union[str, List[str]] = config.pop("_BASE_", None) or []
    merged: Dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        base = os.path.expanduser(base)
        if not os.path.isabs(base) and "://" not in base:
            base = os.path.join(os.path.dirname(filename), base)
        _merge_dicts(read_yaml_with_base(base, (*_seen, filename)), merged)
    _merge_dicts(config, merged)
    return merged


def _merge_dicts(source: Dict[str, Any], target: Dict[str, Any]) -> None:
    """Merge ``source`` into ``target``, nested dicts key by key."""
    for key, value in source.items():
        if isinstance(value, dict) and isinstance(target.get(key), dict):
            _merge_dicts(value, target[key])
        else:
            target[key] = value
