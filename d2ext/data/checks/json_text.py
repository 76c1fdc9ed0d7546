"""JSON files of users, read with errors that say what is wrong."""

import json
from typing import Any, Dict, List

from d2ext._files import open_regular
from d2ext._text import printable

from .kinds import BadDataError

__all__ = ["read_json"]


def read_json(path: str) -> Any:
    """The content of a JSON file in any Unicode encoding, or an error that names it."""
    with open_regular(path) as file:
        content = file.read()
    try:
        return json.loads(content, object_pairs_hook=_without_doubles)
    except json.JSONDecodeError as error:
        hint = "it seems to be cut off" if error.pos >= len(error.doc.rstrip()) - 1 else error.msg
        raise BadDataError(
            f"{path} is not JSON: line {error.lineno}, column {error.colno}: {hint}; "
            "write or copy the file again."
        ) from None
    except UnicodeDecodeError as error:
        raise BadDataError(f"{path} is not JSON: {error}; save it as UTF-8.") from None
    except _DoubledKey as error:
        raise BadDataError(
            f"{path} has the key {printable(repr(error.args[0]), 60)} twice in one object, so that "
            "one of the values would be lost; remove one."
        ) from None
    except RecursionError:
        raise BadDataError(
            f"{path} is nested too deep to be read; give an annotation file."
        ) from None
    except ValueError:  # Python refuses to convert whole numbers of more than 4300 digits
        raise BadDataError(
            f"{path} has a whole number of thousands of digits; correct it."
        ) from None


class _DoubledKey(Exception):
    """A key that occurs twice in one object."""


def _without_doubles(pairs: List[Any]) -> Dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise _DoubledKey(next(key for key in keys if keys.count(key) > 1))
    return found
