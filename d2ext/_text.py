"""Names that come from other people's files, made safe to show, and values fit for JSON."""

import math
import unicodedata
from typing import Any

__all__ = ["as_json", "plain", "printable", "printable_lines"]

# Control and format characters, surrogates, private ones, and separators of lines.
_HIDDEN = ("Cc", "Cf", "Cs", "Co", "Zl", "Zp")


def printable(text: object, limit: int = 200) -> str:
    """A name for a terminal or a log: on one line, without control characters, not too long.

    A class may be called "\\x1b[2J" and a file "a\\nERROR": printed raw they would clear the screen
    or forge a line of the log.
    """
    shown = "".join(
        ch.encode("unicode_escape").decode() if unicodedata.category(ch) in _HIDDEN else ch
        for ch in str(text)
    )
    return shown if len(shown) <= limit else f"{shown[: limit - 3]}..."


def printable_lines(text: object, limit: int = 2000) -> str:
    """A message, which may quote such names, for a terminal: its lines stay lines."""
    return "\n".join(printable(line, limit) for line in str(text).split("\n"))


def plain(text: object, limit: int = 48) -> str:
    """A name for matplotlib, which would set what stands between two "$" as mathematics."""
    return printable(text, limit).replace("$", r"\$")


def as_json(value: Any) -> Any:
    """A value as JSON can hold it: arrays as lists, NaN and infinity as null."""
    if isinstance(value, dict):
        return {str(k): as_json(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(v) for v in value]
    if hasattr(value, "tolist"):
        return as_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
