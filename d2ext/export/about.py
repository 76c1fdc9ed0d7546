"""What an exported detector says about itself."""

import dataclasses
import hashlib
import os
from typing import Any, Dict

__all__ = ["describe"]


def describe(predictor: Any) -> Dict[str, Any]:
    """Class names, config, thresholds and where a detector comes from.

    Args:
        predictor: a :class:`~d2ext.predictor.Predictor`.

    Returns:
        ``class_names``, ``detector``, ``config`` (YAML), ``version``, and where they are known
        ``checkpoint_sha256``, ``thresholds`` (the lowest score worth showing, by class),
        ``chosen_on`` (their source) and ``calibration``, a
        :class:`~d2ext.evaluation.recalibration.Recalibration`.
    """
    from d2ext import __version__
    from d2ext._files import RunError
    from d2ext.engine.description import describe_run
    from d2ext.evaluation.recalibration import Recalibration
    from d2ext.evaluation.thresholds import thresholds_of

    about: Dict[str, Any] = {
        "version": __version__,
        "detector": predictor.cfg.MODEL.META_ARCHITECTURE,
        "class_names": list(predictor.class_names),
        "config": describe_run(predictor.cfg)["config"],
    }
    weights = predictor.weights
    if not os.path.isfile(weights):
        return about
    with open(weights, "rb") as stream:
        digest = hashlib.sha256()
        for block in iter(lambda: stream.read(1 << 20), b""):
            digest.update(block)
    about["checkpoint_sha256"] = digest.hexdigest()
    calibration = Recalibration.of(weights, predictor.about)
    if calibration is not None:
        about["calibration"] = dataclasses.asdict(calibration)
    try:
        found = thresholds_of(weights, predictor.about, about["class_names"])
    except (RunError, OSError, ValueError):
        return about  # none were chosen
    about["thresholds"], about["chosen_on"] = found.of(about["class_names"]), found.source
    return about
