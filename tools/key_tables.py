#!/usr/bin/env python
"""Write the tables of config keys into the documentation, from their declarations.

A page has ``<!-- keys: MODEL.EFL MODEL.EQLV2 -->``, a table and ``<!-- end of keys -->``; what
stands between the two comments is written again. ``--check`` changes nothing, and fails if a page
says something else than the declarations.
"""

import argparse
import re
import sys
from pathlib import Path
from typing import Any, Dict, List

from d2ext.config.keys import Key, all_sections

DOCS = Path(__file__).resolve().parents[1] / "docs"
MARK = re.compile(r"<!-- keys: ([A-Z0-9_. ]+) -->\n(.*?)<!-- end of keys -->", re.S)


def value(default: Any) -> str:
    """A default as YAML would have it, on one line."""
    if isinstance(default, (list, tuple)):
        return f"[{', '.join(map(value, default))}]"
    return '""' if default == "" else str(default)


def row(section: str, key: Key) -> str:
    default = "{}" if key.name.endswith("*") else value(key.default)
    name = f"{section}.{key.name}".replace(".*", "")
    return f"| `{name}` | `{default}` | {key.rule.allowed} | {key.meaning} |"


def table(names: List[str]) -> str:
    """The rows of some sections, in the order of their declaration."""
    sections = [s for name in names for s in all_sections() if s.name == name]
    missing = set(names) - {s.name for s in sections}
    if missing:
        raise SystemExit(f"No section {min(missing)} is declared in d2ext/config.")
    rows = [row(section.name, key) for section in sections for key in section.keys]
    return "\n".join(["| key | default | may be | meaning |", "|---|---|---|---|", *rows, ""])


def pages(folder: Path) -> Dict[Path, str]:
    """The text that each page with tables should have."""
    found = {}
    for page in sorted(folder.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        if MARK.search(text):
            found[page] = MARK.sub(
                lambda m: f"<!-- keys: {m[1]} -->\n\n{table(m[1].split())}\n<!-- end of keys -->",
                text,
            )
    return found


def main(argv: Any = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only say which pages are out of date")
    args = parser.parse_args(argv)
    stale = [page for page, text in pages(DOCS).items() if page.read_text(encoding="utf-8") != text]
    for page in stale:
        print(f"{page.name} is out of date" if args.check else f"{page.name} written")
        if not args.check:
            page.write_text(pages(DOCS)[page], encoding="utf-8")
    return int(args.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
