"""Refuses a method that is switched on where no part of the model would use it.

Each place of our detectors reads its own keys, so a key of another place, or of ours on a foreign
detector, would be ignored silently, and the training would be called by the name of a method that
it does not use.
"""

from typing import Any, Set

from torch import nn

from d2ext.combinations import CHOICES, PLACES, SECTIONS, value_of
from d2ext.losses import ClsLoss, Criterion

__all__ = ["check_methods_in_use"]

_BUILT_BY = "ExtRetinaNet, ExtFCOS, ATSS, YOLOX, ExtRPN or the Ext ROI heads"


def check_methods_in_use(cfg: Any, model: nn.Module) -> None:
    """Raise if ``cfg`` chooses a loss, normaliser or method that ``model`` has no use for.

    Args:
        cfg: the config of the model.
        model: what was built from it. Its places are found by their criteria and class losses, so
            a detector of your own counts if it gets them from :mod:`d2ext.modeling.losses.build`.
    """
    places = _places(model)
    name = type(model).__name__
    for choice in CHOICES:
        if choice.is_made(cfg) and not places.intersection(choice.places):
            set_other = choice.instead and places
            other = f"set {choice.instead}" if set_other else f"choose {_BUILT_BY}"
            readers = " or ".join(PLACES[place] for place in choice.places)
            raise ValueError(
                f"{choice.key} is {value_of(cfg, choice.key)!r}, but {name} has no {readers} that "
                f"reads it; {other}, or leave {choice.key} at {choice.default!r}."
            )
    # A user's head may train without sampling and have none of d2ext's criteria.
    own_sampling = any(hasattr(module, "sampling_free") for module in model.modules())
    for section in SECTIONS:
        if section != "MODEL.SAMPLING_FREE" or places or not own_sampling:
            _check_section(section, value_of(cfg, section), places, name)


def _check_section(section: str, node: Any, places: Set[str], name: str) -> None:
    if node.ENABLED and not places:
        raise ValueError(
            f"{section}.ENABLED is True, but {name} has no part that can use it; choose "
            f"{_BUILT_BY}, or set it to False."
        )
    if node.ENABLED and not any(node[f"ON_{place.upper()}"] for place in places):
        missing = " or ".join(f"{section}.ON_{place.upper()}" for place in sorted(places))
        raise ValueError(
            f"{section}.ENABLED is True, but it is off at every place that {name} has; set "
            f"{missing} to True."
        )


def _places(model: nn.Module) -> Set[str]:
    parts = (m for m in model.modules() if isinstance(m, (ClsLoss, Criterion)))
    return {part.place for part in parts if part.place}
