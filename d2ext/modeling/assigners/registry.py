"""Where assigners are found by name, and what they have in common."""

from typing import Any, Dict

from d2ext.config.validate import validate

from ..registry import Registry
from ..targets import Assignment

__all__ = ["ASSIGNER_REGISTRY", "Assigner", "build_assigner", "needs_predictions"]

ASSIGNER_REGISTRY = Registry("assigner")
"""Classes; their instances are called ``assigner(priors, targets, num_classes) -> Assignment``."""


class Assigner:
    """Base class of assigners. Any callable serves a detector; this one says what it may declare.

    Attributes:
        needs_predictions: True if the assigner is to be called with a fourth argument,
            :class:`~d2ext.modeling.targets.Predictions`. It then runs on the outputs of the head,
            without gradient.
        needs_extent: True if it compares the boxes of priors with objects, so that a point, whose
            box is but the stride, has to be given a size worth comparing.
    """

    needs_predictions = False
    needs_extent = False

    @classmethod
    def from_config(cls, cfg: Any, *, num_anchors: int) -> Dict[str, Any]:
        """The constructor's arguments, for a detector with so many anchors a location."""
        return {}

    def __call__(self, *args: Any, **kwargs: Any) -> Assignment:
        """Assign R priors in each of N images.

        Args:
            args: :class:`~d2ext.modeling.targets.Priors`,
                :class:`~d2ext.modeling.targets.PackedTargets`, the number of classes and, with
                ``needs_predictions``, :class:`~d2ext.modeling.targets.Predictions`.
            kwargs: the same by name: ``priors``, ``targets``, ``num_classes``, ``predictions``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define __call__.")


def needs_predictions(assigner: Any) -> bool:
    """Whether an assigner, ours or any callable, asks for the predictions."""
    return getattr(assigner, "needs_predictions", False)


def build_assigner(cfg: Any, *, auto: str, num_anchors: int = 1) -> Any:
    """The assigner that ``cfg.MODEL.DENSE.ASSIGNER`` names.

    Args:
        cfg: the config.
        auto: name of the detector's own, which the key leaves the choice to by default.
        num_anchors: anchors a location.
    """
    validate(cfg, "MODEL.DENSE.ASSIGNER")
    name = cfg.MODEL.DENSE.ASSIGNER
    cls = ASSIGNER_REGISTRY.get(auto if name == "auto" else name)
    from_config = getattr(cls, "from_config", Assigner.from_config)
    return cls(**from_config(cfg, num_anchors=num_anchors))
