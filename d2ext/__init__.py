"""Five ideas for training detectors, each a part that works on any Detectron2 model."""

import importlib.util as _importlib_util

__version__ = "0.1.0"

_REMEDIES = {
    "torch": "pip install torch torchvision",
    "torchvision": "pip install torchvision",
    "detectron2": "python tools/install_detectron2.py",
}
for _module, _remedy in _REMEDIES.items():
    if _importlib_util.find_spec(_module) is None:
        raise ImportError(
            f"d2ext needs {_module}, which is not installed; run '{_remedy}' and try again."
        )

from . import data, evaluation, modeling  # noqa: E402, F401  (importing registers everything)
from .config import add_d2ext_config, get_cfg  # noqa: E402

__all__ = ["__version__", "add_d2ext_config", "get_cfg"]
