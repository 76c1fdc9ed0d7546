"""A batch on disk, to look at or to run again."""

import logging
from typing import Any, Dict, List

import torch
from detectron2.structures import (
    BitMasks,
    Boxes,
    Instances,
    Keypoints,
    PolygonMasks,
    RotatedBoxes,
)

from d2ext.data import PackedBatch
from d2ext.safe_load import load_tensors

from .checkpoint import atomic_write, plain

__all__ = ["batch_file_names", "load_batch", "save_batch"]

logger = logging.getLogger(__name__)

_TENSOR_FIELDS = {kind.__name__: kind for kind in (Boxes, RotatedBoxes, BitMasks, Keypoints)}


def batch_file_names(batch: Any) -> List[str]:
    """The image files of a batch; "?" where a sample does not name one."""
    if not isinstance(batch, (list, tuple)):
        return ["?"]
    return [str(x.get("file_name", "?")) if isinstance(x, dict) else "?" for x in batch]


def save_batch(path: str, batch: List[Dict[str, Any]], **extra: Any) -> None:
    """Write a batch, as tensors and plain values; read it with :func:`load_batch`."""
    if isinstance(batch, PackedBatch):
        batch = batch.unpack()
    samples = (
        [{key: _encode(value) for key, value in sample.items()} for sample in batch]
        if all(isinstance(sample, dict) for sample in batch)
        else list(batch)
    )
    with atomic_write(path) as stream:
        torch.save(plain({"batch": samples, **extra}, "batch"), stream)


def load_batch(path: str) -> Dict[str, Any]:
    """What :func:`save_batch` wrote; ``["batch"]`` can be given to the model directly."""
    data = load_tensors(path)
    data["batch"] = [
        {key: _decode(value) for key, value in sample.items()}
        if isinstance(sample, dict)
        else sample
        for sample in data["batch"]
    ]
    return data


def _encode(value: Any) -> Any:
    if isinstance(value, Instances):
        fields = {key: _encode_field(field) for key, field in value.get_fields().items()}
        return {"__instances__": list(value.image_size), "fields": fields}
    try:
        return plain(value)
    except TypeError:
        return f"<{type(value).__name__}>"  # not needed to run the model again


def _encode_field(field: Any) -> Any:
    if isinstance(field, PolygonMasks):
        return {"__kind__": "PolygonMasks", "value": plain(field.polygons)}
    if type(field).__name__ in _TENSOR_FIELDS:
        return {"__kind__": type(field).__name__, "value": field.tensor.cpu()}
    return _encode(field.cpu() if isinstance(field, torch.Tensor) else field)


def _decode(value: Any) -> Any:
    if not (isinstance(value, dict) and "__instances__" in value):
        return value
    instances = Instances(tuple(value["__instances__"]))
    for key, field in value["fields"].items():
        instances.set(key, _decode_field(field))
    return instances


def _decode_field(field: Any) -> Any:
    if not (isinstance(field, dict) and "__kind__" in field):
        return field
    if field["__kind__"] == "PolygonMasks":
        return PolygonMasks([[p.numpy() for p in polygons] for polygons in field["value"]])
    return _TENSOR_FIELDS[field["__kind__"]](field["value"])
