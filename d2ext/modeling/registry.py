"""A registry whose names are the words of the YAML files."""

import difflib
from typing import Any, Callable, Dict, List

__all__ = ["Registry"]


class Registry:
    """Names to classes. Unlike fvcore's, a name need not be the class' own (``smooth_l1``).

    Args:
        kind: what is registered, for messages, e.g. ``"class loss"``.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: Dict[str, Any] = {}

    def register(self, name: str) -> Callable[[Any], Any]:
        """A decorator that registers what it decorates under ``name``."""

        def add(entry):
            if name in self._entries:
                raise KeyError(f"A {self.kind} named '{name}' is registered already.")
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str) -> Any:
        """The entry called ``name``; an unknown name is refused with the names there are."""
        if name not in self._entries:
            near = difflib.get_close_matches(str(name), self.names(), n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise KeyError(
                f"There is no {self.kind} '{name}'; choose one of {', '.join(self.names())}.{hint}"
            )
        return self._entries[name]

    def names(self) -> List[str]:
        """All names, sorted."""
        return sorted(self._entries)

    def __contains__(self, name: str) -> bool:
        return name in self._entries
