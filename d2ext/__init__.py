"""Five ideas for training detectors, each a part that works on any Detectron2 model.

Importing this needs only Python, and `d2ext.ops` and `d2ext.losses` need only torch. The
other parts come with Detectron2, and register with it when they are first asked for.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import model_zoo
    from .config import add_d2ext_config, get_cfg
    from .predictor import Predictor

__all__ = ["Predictor", "__version__", "add_d2ext_config", "get_cfg", "model_zoo", "register_all"]

__version__ = "0.1.0"

_HOMES = {"Predictor": "predictor", "add_d2ext_config": "config", "get_cfg": "config"}


def register_all() -> None:
    """Register every model, part and built-in data set with Detectron2.

    What this package offers by name calls it, and so does each config that gets d2ext's keys.

    Raises:
        ImportError: in one sentence, if torch, torchvision or Detectron2 is missing.
    """
    from . import data, evaluation, modeling  # noqa: F401


def __getattr__(name: str) -> Any:
    """Import a part of the package when it is first named."""
    if name in _HOMES:
        register_all()
        found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    elif name in ("config", "data", "engine", "evaluation", "export", "modeling", "model_zoo"):
        found = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    globals()[name] = found
    return found
