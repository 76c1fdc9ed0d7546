"""Import this before any part of Detectron2: it says what is missing, and imports it quietly."""

import warnings

from ._environment import requirement_problem

__all__ = []

_problem = requirement_problem()
if _problem is not None:
    raise ImportError(_problem)

import torch  # noqa: E402, F401  (outside of the filter: those that torch sets itself have to last)

# Detectron2 and fvcore compile small functions with torch.jit.script on import, of which recent
# versions of torch warn, and which users of d2ext cannot change.
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=r".torch\.jit\.script. is deprecated")
    import detectron2.modeling  # noqa: F401
