"""Which config keys are read, and which are changed but never read."""

import copy
from typing import Any, Dict, List, Optional, Set

from yacs.config import CfgNode as _YacsCfgNode

from d2ext.config import CfgNode

__all__ = ["RecordingNode", "changed_keys", "flatten", "keys_of_file", "recording"]


class RecordingNode(CfgNode):
    """A config node that keeps the dotted names of the values that are read from it."""

    def __getitem__(self, key: str) -> Any:
        return self._note(key, dict.__getitem__(self, key))

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if dict.__contains__(self, key) else default

    def items(self):
        return [(key, self[key]) for key in self._keys()]

    def values(self):
        return [self[key] for key in self._keys()]

    def __deepcopy__(self, memo: Any) -> "RecordingNode":
        """A copy (``clone``) reads every value without using it."""
        copied = RecordingNode(new_allowed=self.is_new_allowed())
        for key in self._keys():
            dict.__setitem__(copied, key, copy.deepcopy(dict.__getitem__(self, key), memo))
        copied.__dict__.update(self.__dict__)
        return copied

    def _keys(self) -> List[str]:
        return list(dict.keys(self))

    def _note(self, key: str, value: Any) -> Any:
        seen = self.__dict__.get("_seen_keys")
        if seen is not None and not isinstance(value, _YacsCfgNode):
            seen.add(self.__dict__["_prefix"] + key)
        return value


def recording(cfg: Any) -> RecordingNode:
    """A copy of a config whose attribute ``seen`` grows with each value that is read."""
    seen: Set[str] = set()
    node = _record(cfg, "", seen)
    node.__dict__["seen"] = seen
    return node


def _record(cfg: Any, prefix: str, seen: Set[str]) -> RecordingNode:
    node = RecordingNode(new_allowed=cfg.is_new_allowed())
    for key in dict.keys(cfg):
        value = dict.__getitem__(cfg, key)
        if isinstance(value, _YacsCfgNode):
            value = _record(value, f"{prefix}{key}.", seen)
        dict.__setitem__(node, key, value)
    node.__dict__.update(_seen_keys=seen, _prefix=prefix)
    return node


def flatten(values: Dict[str, Any], prefix: str = "") -> Dict[str, Any]:
    """Nested dictionaries as one, by dotted names."""
    flat: Dict[str, Any] = {}
    for key in dict.keys(values):
        value = dict.__getitem__(values, key)
        if isinstance(value, dict):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def changed_keys(cfg: Any, default: Optional[Any] = None) -> List[str]:
    """Dotted names of the keys that differ from the defaults, sorted."""
    if default is None:
        from d2ext.config import get_cfg

        default = get_cfg()
    base = flatten(default)
    return sorted(
        k for k, v in flatten(cfg).items() if k not in base or _plain(base[k]) != _plain(v)
    )


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def keys_of_file(path: str) -> List[str]:
    """Dotted names of the keys that a YAML file sets itself, not in those it builds upon."""
    from d2ext.config.yaml_files import read_yaml

    values = read_yaml(path)
    values.pop("_BASE_", None)
    return sorted(flatten(values))
