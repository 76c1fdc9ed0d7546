"""Eight-bit integers for OpenVINO, by post-training quantisation of the convolutions' part."""

import logging
from typing import Any, Callable, Iterable, List, Set

import numpy as np

__all__ = ["quantize", "untouched"]

# Where numbers are learnt features again, whatever they were before.
_LAYERS = ("Convolution", "GroupConvolution", "MatMul")
# What comes into these inputs are boxes and scores, not features.
_GEOMETRY = {"NonMaxSuppression": (0, 1), "TopK": (0,), "ROIAlign": (1, 2), "Result": (0,)}


def quantize(model: Any, images: Iterable[np.ndarray]) -> Any:
    """An OpenVINO model with weights and activations of its layers in eight bits.

    Resizing and normalising before the first layer, and boxes, scores and their selection after
    the last one, stay in float32: a pixel in eight bits would be a step of several pixels.

    Args:
        model: an ``openvino.Model``.
        images: the batches that ranges of activations are measured on, as the model takes them.
    """
    from .formats import need

    batches = list(images)
    if not batches:
        raise ValueError("int8 needs images to measure activations on; give calibration images.")
    nncf = need("nncf", "openvino")
    logging.getLogger("nncf").setLevel(logging.WARNING)
    return nncf.quantize(
        model,
        nncf.Dataset(batches),
        preset=nncf.QuantizationPreset.MIXED,  # activations need not be symmetric around 0
        subset_size=len(batches),
        ignored_scope=nncf.IgnoredScope(names=untouched(model), validate=False),
    )


def untouched(model: Any) -> List[str]:
    """Names of the operators before the first layers, and of those that make boxes and scores."""
    ops = model.get_ops()
    before = _reached(model.get_parameters(), _consumers)
    start = [
        op.input_value(port).get_node()
        for op in ops
        for port in _GEOMETRY.get(op.get_type_name(), ())
    ]
    after = _reached([op for op in start if op.get_type_name() not in _LAYERS], _producers)
    return sorted(before | after)


def _consumers(op: Any) -> List[Any]:
    return [port.get_node() for out in op.outputs() for port in out.get_target_inputs()]


def _producers(op: Any) -> List[Any]:
    return [port.get_node() for port in op.input_values()]


def _reached(start: Iterable[Any], step: Callable[[Any], List[Any]]) -> Set[str]:
    """Names of operators up to, but without, the next layers.

    A resize is a product of two matrices that are computed: only a product with a constant is a
    layer.
    """
    found, waiting = set(), list(start)
    while waiting:
        op = waiting.pop()
        name = op.get_friendly_name()
        if name in found or op.get_type_name() == "Constant":
            continue
        found.add(name)
        waiting += [other for other in step(op) if not _is_layer(other)]
    return found


def _is_layer(op: Any) -> bool:
    if op.get_type_name() not in _LAYERS:
        return False
    weights = [op]
    for _ in range(4):  # through conversions and reshapes of weights
        weights = [p for w in weights for p in _producers(w)[-1:]]
        if any(w.get_type_name() == "Constant" for w in weights):
            return True
    return False
