"""Pickles of arrays, read without letting the file choose an address, a size or a call.

NumPy trusts a pickle of an array: one whose type has objects takes bytes of the file for
pointers and follows them. So NumPy's own ``ndarray`` and ``dtype`` are not what is called here. A
type is kept as its name and byte order, and an array is made of bytes whose number fits its shape,
or of a list of objects that the same reader has read.
"""

import collections
import io
import math
import pickle
import re
from typing import Any, Dict, List, Literal, Optional, Tuple

import numpy as np

__all__ = ["RefusedError", "read_array_pickle"]

_Order = Literal["C", "F"]
_ByteOrder = Literal["<", ">", "|", "="]


class RefusedError(ValueError):
    """A pickle with something else in it than arrays; completes the sentence "The file ..."."""


def read_array_pickle(content: bytes) -> Any:
    """A pickle of numpy arrays, numbers, strings and plain containers.

    Raises:
        RefusedError: if it holds anything else.
        pickle.UnpicklingError: if it is damaged.
    """
    # Detectron's files come from Python 2, whose strings are bytes.
    return _finish(_Unpickler(io.BytesIO(content), encoding="latin1").load(), {})


def _damaged(what: str) -> pickle.UnpicklingError:
    return pickle.UnpicklingError(f"an array {what}")


class _Type:
    """Stands for a dtype: what it is called, and the order of its bytes."""

    __slots__ = ("is_object", "name", "order")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, name: str):
        self.name = name
        self.order: _ByteOrder = "="
        self.is_object = name.startswith("O")

    def __setstate__(self, state: Any) -> None:
        # Version, byte order, subarray, names, fields, size, alignment, flags and maybe metadata.
        # The name has the size, too; flags would tell NumPy whether there are pointers.
        if type(state) is not tuple or len(state) not in (8, 9):
            raise _damaged("has a type that says too little")
        if any(part is not None for part in state[2:5]):
            raise RefusedError("holds an array with fields, which this reader does not know")
        known: bool = type(state[1]) is str and state[1] in ("<", ">", "|", "=")
        if not known:
            raise _damaged("has an unknown byte order")
        self.order = state[1]

    def dtype(self) -> np.dtype:
        return np.dtype(object) if self.is_object else np.dtype(self.name).newbyteorder(self.order)


class _Array:
    """Stands for an array until it is known what is in it."""

    __slots__ = ("items", "value")
    __hash__ = None  # type: ignore[assignment]

    def __init__(self) -> None:
        self.value: Optional[np.ndarray] = None
        self.items: List[Any] = []  # if it is one of objects

    def __setstate__(self, state: Any) -> None:
        if type(state) is not tuple or len(state) != 5:
            raise _damaged("says too little")
        _, shape, kind, is_fortran, data = state
        order: _Order = "F" if is_fortran else "C"
        if not (isinstance(kind, _Type) and kind.is_object):
            self.value = _from_bytes(data, kind, shape, order)
            return
        if type(data) is not list or len(data) != _count(shape):
            raise _damaged("has another number of objects than its shape")
        # Filled at the end: arrays among the objects may be unknown yet.
        self.value, self.items = np.empty(shape, dtype=object, order=order), data


def _count(shape: Any) -> int:
    if type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape):
        raise _damaged("has no shape")
    return math.prod(shape)


def _from_bytes(data: Any, kind: Any, shape: Any, order: _Order) -> np.ndarray:
    """A new array in the machine's byte order, which is the one that PyTorch takes."""
    if not isinstance(kind, _Type):
        raise _damaged("has no type")
    if kind.is_object:
        raise RefusedError("holds an array of objects that are given as bytes")
    if type(data) is str:  # bytes of Python 2
        data = data.encode("latin1")
    dtype = kind.dtype()
    if type(data) not in (bytes, bytearray) or len(data) != _count(shape) * dtype.itemsize:
        raise _damaged("has another number of bytes than its shape")
    array = np.frombuffer(data, dtype=dtype).reshape(shape, order=order).copy(order="K")
    return array if dtype.isnative else array.astype(dtype.newbyteorder("="))


# Stand-ins for NumPy's functions. They are instances of classes, because those, unlike functions
# and classes, have no attribute that a pickle could set.


class _ArrayClass:
    """``numpy.ndarray``, as an argument."""

    __slots__ = ()

    def __call__(self, *_: Any) -> Any:
        raise RefusedError("makes an array in a way that NumPy's files do not")


class _MakeType:
    """``numpy.dtype``."""

    __slots__ = ()

    def __call__(self, name: Any, align: Any = False, copy: Any = True) -> _Type:
        if type(name) is str and re.fullmatch("[biufcSU][0-9]{1,9}|O[48]", name):
            try:
                np.dtype(name)
                return _Type(name)
            except (TypeError, ValueError):
                pass
        raise RefusedError(f"holds an array of the type {str(name)[:20]!r}")


class _Reconstruct:
    """``_reconstruct``: an array whose content comes next."""

    __slots__ = ()

    def __call__(self, kind: Any, shape: Any, type_code: Any) -> _Array:
        if kind is not _NDARRAY:
            raise RefusedError("holds an array of another class than NumPy's own")
        return _Array()


class _FromBuffer:
    """``_frombuffer``: an array in protocol 5; with the order of its axes from NumPy 2.3 on."""

    __slots__ = ()

    def __call__(
        self, data: Any, kind: Any, shape: Any, order: Any, axes: Optional[Tuple[int, ...]] = None
    ) -> np.ndarray:
        known: bool = type(order) is str and order in ("C", "F", "K")
        if not known:
            raise _damaged("has an unknown order")
        if order == "K" and axes is not None:
            return _from_bytes(data, kind, shape, "C").transpose(axes)
        return _from_bytes(data, kind, shape, order)


class _NoBytes:
    """``bytes()``: none, in Python's older protocols."""

    __slots__ = ()

    def __call__(self) -> bytes:
        return b""


class _Scalar:
    """``scalar``."""

    __slots__ = ()

    def __call__(self, kind: Any, data: Any) -> Any:
        if isinstance(kind, _Type) and kind.name in ("S0", "U0"):  # an empty text
            return kind.dtype().type()
        return _from_bytes(data, kind, (1,), "C")[0]


_NDARRAY = _ArrayClass()
# Numpy moved its private modules in version 2; files name the one that wrote them.
_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_NUMERIC_MODULES = ("numpy.core.numeric", "numpy._core.numeric")
_ADMITTED: Dict[Tuple[str, str], Any] = {
    ("numpy", "ndarray"): _NDARRAY,
    ("numpy", "dtype"): _MakeType(),
    ("collections", "OrderedDict"): collections.OrderedDict,
    # Bytes in Python's older protocols. This one knows texts only, not zipped ones.
    ("_codecs", "encode"): str.encode,
    **{(module, "bytes"): _NoBytes() for module in ("builtins", "__builtin__")},
    # Proposal files say with it how boxes are meant; the number says the same.
    ("detectron2.structures.boxes", "BoxMode"): int,
    **{(module, "_frombuffer"): _FromBuffer() for module in _NUMERIC_MODULES},
    **{(module, "_reconstruct"): _Reconstruct() for module in _ARRAY_MODULES},
    **{(module, "scalar"): _Scalar() for module in _ARRAY_MODULES},
}


class _Unpickler(pickle.Unpickler):
    """Finds only what arrays are made of, whatever a pickle names."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise RefusedError(f"holds a Python object of {module}.{name}")
        return _ADMITTED[module, name]


def _finish(value: Any, done: Dict[int, Any]) -> Any:
    """``value`` with arrays in place of their stand-ins, in containers as well.

    Args:
        value: what was read.
        done: what became of each object, by its id: files name an object as often as they like.
    """
    if not isinstance(value, (_Array, _Type, list, dict, tuple)):
        return value
    if id(value) in done:
        return done[id(value)]
    if isinstance(value, _Type):
        return value.dtype()
    if isinstance(value, _Array):
        if value.value is None:
            raise _damaged("has no content")
        done[id(value)] = value.value
        if value.items:
            for place, item in zip(np.ndindex(value.value.shape), value.items):
                value.value[place] = _finish(item, done)
        return value.value
    done[id(value)] = value
    if isinstance(value, list):
        value[:] = [_finish(item, done) for item in value]
    elif isinstance(value, dict):
        for key, item in list(dict.items(value)):
            value[key] = _finish(item, done)
    else:
        items = tuple(_finish(item, done) for item in value)
        if any(new is not old for new, old in zip(items, value)):
            done[id(value)] = items
    return done[id(value)]
