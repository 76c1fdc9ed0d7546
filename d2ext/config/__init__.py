"""Every configuration key that d2ext adds to Detectron2's, one file an area.

A key is declared once, see :mod:`d2ext.config.keys`. Declarations, rules and checks need yacs and
PyYAML only; the names that come with Detectron2, `CfgNode` and `get_cfg`, are imported when they
are asked for.
"""

from typing import Any

from .keys import add_keys as add_d2ext_config
from .keys import arguments, construct, names_keys
from .validate import validate, violations

__all__ = [
    "CfgNode",
    "add_d2ext_config",
    "arguments",
    "construct",
    "get_cfg",
    "names_keys",
    "validate",
    "violations",
]


def __getattr__(name: str) -> Any:
    if name in ("CfgNode", "get_cfg"):
        from .. import _detectron2, register_all  # noqa: F401  (which says what is missing)

        if name == "get_cfg":  # what its values name
            register_all()
        from . import node

        return getattr(node, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
