"""Tables of studies in a page of text, between markers."""

import re
from typing import Dict, List

__all__ = ["fill_tables", "marked_tables"]

_MARKED = re.compile(r"<!-- begin (\S+) -->\n(.*?)<!-- end \1 -->", re.DOTALL)


def marked_tables(text: str) -> List[str]:
    """The names for which a page has markers: ``<!-- begin NAME -->`` and ``<!-- end NAME -->``."""
    return [match.group(1) for match in _MARKED.finditer(text)]


def fill_tables(text: str, tables: Dict[str, str]) -> str:
    """Put tables between their markers; those of other names stay as they are."""

    def fill(match: "re.Match") -> str:
        name, old = match.groups()
        return f"<!-- begin {name} -->\n{tables.get(name, old)}<!-- end {name} -->"

    return _MARKED.sub(fill, text)
