"""Refuses a method that is switched on where no part of the model would use it.

Each place of our detectors reads its own keys, so a key of another place, or of ours on a detector
of somebody else, would be passed over without a word, and the training would be called by a
method's name without having it.
"""

from typing import Any, Set

from torch import nn

from d2ext.losses import ClsLoss, Criterion

__all__ = ["check_methods_in_use"]

_PLACES = {"dense": "dense head", "rpn": "RPN", "roi": "ROI head"}
_BUILT_BY = "ExtRetinaNet, ExtFCOS, ATSS, ExtRPN or the Ext ROI heads"


def check_methods_in_use(cfg: Any, model: nn.Module) -> None:
    """Raise if ``cfg`` chooses a loss, normaliser or method that ``model`` has no use for.

    Args:
        cfg: the config of the model.
        model: what was built from it. Its places are found by their criteria and class losses, so
            a detector of your own counts if it gets them from :mod:`d2ext.modeling.losses.build`.
    """
    places = _places(model)
    name = type(model).__name__
    _check_losses(cfg, places, name)
    for method in ("HARMONIC", "SAMPLING_FREE"):
        node = cfg.MODEL[method]
        wanted = {place for place in _PLACES if node[f"ON_{place.upper()}"]}
        # A head of your own may train without sampling and have no criterion of ours.
        own = method == "SAMPLING_FREE" and any(
            hasattr(module, "sampling_free") for module in model.modules()
        )
        if node.ENABLED and not places and not own:
            raise ValueError(
                f"MODEL.{method}.ENABLED is True, but {name} has no part that can use it; choose "
                f"{_BUILT_BY}, or set it to False."
            )
        if node.ENABLED and places and not wanted & places:
            missing = " or ".join(f"MODEL.{method}.ON_{place.upper()}" for place in sorted(places))
            raise ValueError(
                f"MODEL.{method}.ENABLED is True, but it is off at every place that {name} has; "
                f"set {missing} to True."
            )


def _places(model: nn.Module) -> Set[str]:
    parts = (m for m in model.modules() if isinstance(m, (ClsLoss, Criterion)))
    return {part.place for part in parts if part.place}


def _check_losses(cfg: Any, places: Set[str], name: str) -> None:
    keys = (
        ("dense", "MODEL.DENSE.CLS_LOSS", cfg.MODEL.DENSE.CLS_LOSS, "focal"),
        ("dense", "MODEL.DENSE.BOX_LOSS", cfg.MODEL.DENSE.BOX_LOSS, ""),
        ("dense", "MODEL.DENSE.ASSIGNER", cfg.MODEL.DENSE.ASSIGNER, "auto"),
        ("dense", "MODEL.DENSE.NORMALIZER", cfg.MODEL.DENSE.NORMALIZER, ""),
        ("dense", "MODEL.DENSE.NORMALIZER_SYNC", cfg.MODEL.DENSE.NORMALIZER_SYNC, "auto"),
        ("roi", "MODEL.ROI_BOX_HEAD.CLS_LOSS", cfg.MODEL.ROI_BOX_HEAD.CLS_LOSS, "softmax"),
        ("roi", "MODEL.OHEM.ON_ROI", cfg.MODEL.OHEM.ON_ROI, False),
        ("rpn", "MODEL.OHEM.ON_RPN", cfg.MODEL.OHEM.ON_RPN, False),
    )
    for place, key, value, default in keys:
        if value != default and place not in places:
            instead = {
                "MODEL.DENSE.CLS_LOSS": "MODEL.ROI_BOX_HEAD.CLS_LOSS",
                "MODEL.DENSE.BOX_LOSS": "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE",
                "MODEL.ROI_BOX_HEAD.CLS_LOSS": "MODEL.DENSE.CLS_LOSS",
            }.get(key)
            other = f"set {instead}" if instead and places else f"choose {_BUILT_BY}"
            raise ValueError(
                f"{key} is {value!r}, but {name} has no {_PLACES[place]} that reads it; {other}, "
                f"or leave {key} at {default!r}."
            )
