"""Study files as YAML: what each key may hold, so that nothing is read in another meaning."""

from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Set

import yaml

__all__ = ["read_study_file"]

_KEYS = {"name", "baseline", "seeds", "common", "config", "parts", "runs"}
_KEYS |= {"title", "import", "figures", "measure", "_BASE_"}
_RUN_KEYS = {"config", "overrides", "parts"}


def read_study_file(path: Path) -> Dict[str, Any]:
    """What a study file says, every key there and of its type; ValueError says what is not.

    Without a ``seeds`` there is one, and lists that are absent or empty are empty lists.
    """
    text = _with_base(path)
    if text.get("name") is None or not text.get("runs"):
        raise ValueError(f"{path}: a study needs a name, and under runs a name for each config.")
    read = {
        "name": _text(text["name"], f"{path}: name"),
        "title": _text(text.get("title"), f"{path}: title", optional=True),
        "baseline": _text(text.get("baseline"), f"{path}: baseline", optional=True),
        "config": _text(text.get("config"), f"{path}: config", optional=True),
        "seeds": _seeds(text.get("seeds", [1]), f"{path}"),
        "common": _words(text.get("common"), f"{path}: common"),
        "parts": {
            _text(part, f"{path}: parts"): _words(words, f"{path}: part '{part}'")
            for part, words in _mapping(text.get("parts"), f"{path}: parts").items()
        },
        "runs": {},
    }
    for key, example in (("import", "mydata"), ("figures", "bbox/AP"), ("measure", "consistency")):
        read[key] = _texts(text.get(key), f"{path}: {key}", example)
    for name, entry in _mapping(text["runs"], f"{path}: runs").items():
        read["runs"][_text(name, f"{path}: runs")] = _read_run(entry, f"{path}, run '{name}'")
    return read


def _with_base(path: Path, above: Sequence[Path] = ()) -> Dict[str, Any]:
    """A file as it was written, on top of the one that it names as ``_BASE_``."""
    text = _mapping(_load(path), f"{path}", "{name: ..., runs: ...}")
    _refuse_unknown(text, _KEYS, f"{path}")
    base = _text(text.get("_BASE_"), f"{path}: _BASE_", optional=True)
    if base is None:
        return text
    file = path.parent / base
    if file in (*above, path):
        raise ValueError(f"{path}: _BASE_ leads from {file.name} back to it; name another.")
    below = _with_base(file, (*above, path))
    both = {**below, **text}
    for key in ("name", "title"):  # two studies of one name would share their results
        both[key] = text.get(key)
    levels = ((file, below), (path, text))
    both["common"] = [w for f, one in levels for w in _words(one.get("common"), f"{f}: common")]
    for key in ("parts", "runs"):
        both[key] = {}
        for f, one in levels:
            both[key].update(_mapping(one.get(key), f"{f}: {key}"))
    return both


def _read_run(entry: Any, where: str) -> Dict[str, Any]:
    example = f"{{config: {entry}}}" if isinstance(entry, str) else "{config: my_fcos.yaml}"
    entry = _mapping(entry, where, example)
    _refuse_unknown(entry, _RUN_KEYS, where)
    return {
        "config": _text(entry.get("config"), f"{where}: config", optional=True),
        "parts": _texts(entry.get("parts"), f"{where}: parts", "efl"),
        "overrides": _words(entry.get("overrides"), f"{where}: overrides"),
    }


def _load(path: Path) -> Any:
    """YAML without repeated keys, of which it would keep the last without a word."""
    try:
        loader = yaml.SafeLoader(path.read_text(encoding="utf-8"))
        node = loader.get_single_node()
        if node is None:
            return None
        _refuse_duplicates(node, path, set())
        return loader.construct_document(node)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f", line {mark.line + 1}" if mark is not None else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise ValueError(f"{path}{place} is not YAML: {reason}.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not text in UTF-8; save it as that.") from error


def _refuse_duplicates(node: yaml.Node, path: Path, seen: Set[int]) -> None:
    """Look at nodes as they were written, before merge keys put those of others among them."""
    if id(node) in seen or not isinstance(node, yaml.CollectionNode):
        return
    seen.add(id(node))
    keys = set()
    for item in node.value:
        if isinstance(node, yaml.MappingNode):
            key, item = item
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in keys:
                line = key.start_mark.line + 1
                raise ValueError(f"{path}, line {line}: '{key.value}' occurs twice; keep one.")
            keys.add((key.tag, str(key.value)))
        _refuse_duplicates(item, path, seen)


def _refuse_unknown(entry: Dict[str, Any], known: Set[str], where: str) -> None:
    unknown = sorted(map(str, set(entry) - known))
    if unknown:
        raise ValueError(f"{where}: '{unknown[0]}' is not one of {', '.join(sorted(known))}.")


def _text(value: Any, where: str, optional: bool = False) -> Optional[str]:
    if isinstance(value, str) or (optional and value is None):
        return value
    if isinstance(value, (list, dict)):
        raise ValueError(f"{where} must be one text, not {value!r}.")
    # A run called 1, no or 1e3 would have another name than the one that was written.
    raise ValueError(f"{where} must be a text, and YAML reads {value!r} here; write it in quotes.")


def _mapping(value: Any, where: str, example: str = "{a: ..., b: ...}") -> Dict[Any, Any]:
    if value is not None and not isinstance(value, dict):
        raise ValueError(f"{where} must be a mapping, such as {example}, not {value!r}.")
    return value or {}


def _list(value: Any, where: str, what: str) -> List[Any]:
    """A text is refused too: as a list it would be its letters."""
    if value is not None and not isinstance(value, list):
        raise ValueError(f"{where} must be {what}, not {value!r}.")
    return value or []


def _words(value: Any, where: str) -> List[Any]:
    return _list(value, where, "a list of KEY VALUE words, such as [SOLVER.MAX_ITER, 800]")


def _texts(value: Any, where: str, example: str) -> List[str]:
    words = _list(value, where, f"a list, such as [{example}]")
    return [_text(word, where) for word in words]


def _seeds(value: Any, where: str) -> List[int]:
    numbers = value if isinstance(value, list) else []
    if not numbers or any(type(n) is not int for n in numbers) or len(set(numbers)) < len(numbers):
        raise ValueError(
            f"{where}: seeds must be a list of different whole numbers, such as [1, 2, 3], "
            f"not {value!r}."
        )
    return numbers
