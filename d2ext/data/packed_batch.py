"""A batch whose tensors are in one block of memory.

Image, boxes, classes and masks of a sample are tensors of their own. Left so, each of them crosses
from a worker process on its own (an open file each), is pinned on its own, and is copied to the GPU
on its own, several times a sample. In one block they cross, are pinned and are copied once a batch.
Nothing is padded: the model pads, as it always did, where the images already are.
"""

import copy
from dataclasses import dataclass
from typing import Any, Callable, List, Tuple, Union

import torch
from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, RotatedBoxes
from torch.utils.data import get_worker_info

__all__ = ["PackedBatch", "batch_on"]

_ALIGNMENT = 64  # bytes; a view of any number format may begin there
_STRUCTURES = (Boxes, RotatedBoxes, BitMasks, Keypoints)  # each holds one tensor


@dataclass(frozen=True)
class _Place:
    """Where a tensor is in the block, in bytes."""

    start: int
    stop: int
    dtype: torch.dtype
    shape: Tuple[int, ...]

    def of(self, block: torch.Tensor) -> torch.Tensor:
        return block[self.start : self.stop].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class _Structure:
    """An object of Detectron2 with places instead of tensors."""

    kind: type
    content: Any


class PackedBatch(list):
    """A list of samples, as every Detectron2 model takes it, whose tensors are views of a block.

    Args:
        block: bytes.
        layout: the samples with places instead of tensors; see :meth:`pack`.
    """

    def __init__(self, block: torch.Tensor, layout: List[Any]):
        self.block, self._layout = block, layout
        super().__init__(_fill(layout, lambda place: place.of(block)))

    @classmethod
    def pack(cls, samples: List[Any]) -> "PackedBatch":
        """Copy the tensors of samples into a new block.

        Tensors are found in dicts, lists and tuples, in ``Instances``, and in boxes, bit masks and
        keypoints. Everything else stays unchanged.
        """
        tensors: List[torch.Tensor] = []
        places: List[_Place] = []
        layout = [_take_out(sample, tensors, places) for sample in samples]
        block = _new_block(places[-1].stop if places else 0)
        for tensor, place in zip(tensors, places):
            place.of(block).copy_(tensor)
        return cls(block, layout)

    def pin_memory(self) -> "PackedBatch":
        """Called by PyTorch's loader: the same batch in memory a GPU can copy from by itself."""
        if not len(self.block):
            return self
        return PackedBatch(self.block.pin_memory(), self._layout)

    def to(self, device: Union[str, torch.device]) -> "PackedBatch":
        """The same batch on a device: one copy, which does not wait if the block is pinned."""
        return PackedBatch(self.block.to(device, non_blocking=True), self._layout)

    def unpack(self) -> List[Any]:
        """The samples as they are now, each tensor in memory of its own.

        ``torch.save`` needs it: it refuses views of one block in different number formats.
        """
        tensors: List[torch.Tensor] = []
        places: List[_Place] = []
        layout = [_take_out(sample, tensors, places) for sample in self]
        own = {place: tensor.clone() for place, tensor in zip(places, tensors)}
        return _fill(layout, own.__getitem__)

    def __reduce__(self) -> Tuple[Any, ...]:
        return PackedBatch, (self.block, self._layout)

    def __deepcopy__(self, memo: Any) -> List[Any]:
        return copy.deepcopy(self.unpack(), memo)


def batch_on(batch: Any, device: torch.device) -> Any:
    """A batch as a model on a device is to get it: a packed one there, any other unchanged."""
    if isinstance(batch, PackedBatch) and device.type != "cpu":
        return batch.to(device)
    return batch


def _new_block(size: int) -> torch.Tensor:
    block = torch.empty(size if get_worker_info() is None else 0, dtype=torch.uint8)
    if get_worker_info() is not None:
        # In shared memory from the start, as PyTorch's own collation does it: sending the block
        # would otherwise copy it there, which costs as much as packing.
        block.set_(torch.UntypedStorage._new_shared(size))
    return block


def _take_out(value: Any, tensors: List[torch.Tensor], places: List[_Place]) -> Any:
    kind = type(value)
    if kind is torch.Tensor and value.layout is torch.strided and not value.requires_grad:
        start = -(-places[-1].stop // _ALIGNMENT) * _ALIGNMENT if places else 0
        stop = start + value.numel() * value.element_size()
        tensors.append(value)
        places.append(_Place(start, stop, value.dtype, tuple(value.shape)))
        return places[-1]
    if kind is dict:
        return {k: _take_out(v, tensors, places) for k, v in value.items()}
    if kind in (list, tuple):
        return kind(_take_out(v, tensors, places) for v in value)
    if kind in _STRUCTURES:
        return _Structure(kind, _take_out(value.tensor, tensors, places))
    if kind is Instances:
        fields = _take_out(value.get_fields(), tensors, places)
        return _Structure(kind, (value.image_size, fields))
    return value


def _fill(value: Any, find: Callable[[_Place], torch.Tensor]) -> Any:
    kind = type(value)
    if kind is _Place:
        return find(value)
    if kind is dict:
        return {k: _fill(v, find) for k, v in value.items()}
    if kind in (list, tuple):
        return kind(_fill(v, find) for v in value)
    if kind is not _Structure:
        return value
    if value.kind is Instances:
        size, fields = value.content
        instances = Instances(size)
        for name, field in fields.items():
            instances.set(name, _fill(field, find))
        return instances
    return value.kind(_fill(value.content, find))
