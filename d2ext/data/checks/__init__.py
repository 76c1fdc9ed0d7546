"""Bad input: what is known about each kind, found where data are read, refused or counted.

The training, the evaluation and ``d2ext data check`` use the same rules: :mod:`.json_file` for
annotation files, :mod:`.voc_files` for VOC, :mod:`.dicts` for data sets of any form and
:mod:`.images` for image files. ``docs/reliability_data.md`` lists all kinds.
"""

from .catalog import is_voc, load_checked
from .images import check_sample, explain
from .kinds import KINDS, BadDataError, Problem

__all__ = [
    "KINDS",
    "BadDataError",
    "Problem",
    "check_sample",
    "explain",
    "is_voc",
    "load_checked",
]
