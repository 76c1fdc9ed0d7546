"""Five ideas for training detectors, each a part that works on any Detectron2 model."""

from . import _environment

__version__ = "0.1.0"

_problem = _environment.requirement_problem()
if _problem is None:
    _environment.import_detectron2_quietly()
    from . import data, evaluation, model_zoo, modeling  # noqa: F401  (registers everything)
    from .config import add_d2ext_config, get_cfg
    from .predictor import Predictor
elif not _environment.started_as_command():
    raise ImportError(_problem)

__all__ = ["Predictor", "__version__", "add_d2ext_config", "get_cfg", "model_zoo"]
