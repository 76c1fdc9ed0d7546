"""Labelled photographs of any common form, read as one registered data set.

:mod:`.read` finds the form and settles classes, splits, sizes and boxes for all of them; a form is
a small module with ``find_*`` (which files are its labels) and ``read_*`` (records of them).
"""

from .read import FORMS, OwnData, parse_shares, read_data

__all__ = ["FORMS", "OwnData", "parse_shares", "read_data"]
