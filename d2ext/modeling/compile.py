"""``torch.compile`` for the parts of a detector that are plain tensor arithmetic.

Backbone, neck and heads are compiled in place (``Module.compile``), so that state-dict keys stay
what they are. Assignment, losses and post-processing stay as they are: their sizes depend on the
objects, and they are few operations already.
"""

import contextlib
from typing import Any, Dict, Iterator

from torch import nn

__all__ = ["compilable_parts", "compile_from_config", "compile_parts", "uncompiled"]

_NAMES = ("backbone", "head", "proposal_generator.rpn_head", "roi_heads.box_head")


def compilable_parts(model: nn.Module) -> Dict[str, nn.Module]:
    """The parts of a Detectron2 model that are compiled, by name; each one stage of a cascade."""
    modules = dict(model.named_modules())
    parts = {name: modules[name] for name in _NAMES if name in modules}
    cascade = parts.get("roi_heads.box_head")
    if isinstance(cascade, nn.ModuleList):
        del parts["roi_heads.box_head"]
        parts.update({f"roi_heads.box_head.{i}": stage for i, stage in enumerate(cascade)})
    return parts


def compile_parts(
    model: nn.Module, *, backend: Any = "inductor", mode: str = "", dynamic: bool = True
) -> nn.Module:
    """Compile backbone, neck and heads of a model, in place; returns the model.

    Args:
        model: any Detectron2 model with a part of the usual name.
        backend: a backend of ``torch.compile``.
        mode: a mode of the backend inductor; "": its default.
        dynamic: compile for images of any size at once. Otherwise every new size is compiled
            again, until torch gives up and runs without compiling.
    """
    parts = compilable_parts(model)
    if not parts:
        raise ValueError(
            f"MODEL.COMPILE knows no part of {type(model).__name__}: it compiles the modules "
            f"{', '.join(_NAMES)}; set MODEL.COMPILE.ENABLED to False."
        )
    for part in parts.values():
        if not hasattr(part, "compile"):
            raise RuntimeError(
                "MODEL.COMPILE.ENABLED needs a newer PyTorch (2.2 or later); set it to False."
            )
        part.compile(backend=backend, dynamic=dynamic, **({"mode": mode} if mode else {}))
    return model


def compile_from_config(cfg: Any, model: nn.Module) -> nn.Module:
    """:func:`compile_parts` as ``cfg.MODEL.COMPILE`` says, or nothing."""
    node = cfg.MODEL.COMPILE
    if not node.ENABLED:
        return model
    return compile_parts(model, backend=node.BACKEND, mode=node.MODE, dynamic=node.DYNAMIC)


@contextlib.contextmanager
def uncompiled(model: nn.Module) -> Iterator[nn.Module]:
    """Within it, no module of ``model`` runs compiled: exporters trace the original ones."""
    name = "_compiled_call_impl"
    kept = [(m, vars(m)[name]) for m in model.modules() if vars(m).get(name) is not None]
    for module, _ in kept:
        setattr(module, name, None)
    try:
        yield model
    finally:
        for module, call in kept:
            setattr(module, name, call)
