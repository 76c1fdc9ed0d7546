"""Reading files of unknown origin without running anything that they say.

A pickle is a program: its author decides what is called while it is read. Checkpoints are
read by PyTorch's reader of plain values, arrays in pickles (Detectron2's model zoo, proposal
files) by one that can rebuild arrays and nothing else, and XML without entities.
"""

import logging
import os
import pickle
import xml.etree.ElementTree as ElementTree
import zipfile
from typing import Any, BinaryIO, Dict, Optional
from xml.parsers import expat

import torch

from ._array_pickle import RefusedError, read_array_pickle
from ._files import open_regular, reason_of

__all__ = [
    "UnsafeFileError",
    "load_arrays",
    "load_tensors",
    "parse_xml",
    "safetensors_description",
    "weights_file",
]

logger = logging.getLogger(__name__)

# A folder of ``d2ext export --format safetensors``, and the entry of the metadata that describes.
WEIGHTS, CONFIG, ABOUT = "model.safetensors", "config.yaml", "d2ext"

_ADVICE = "if you trust it, add --allow-pickle on the command line or allow_pickle=True in Python"


class UnsafeFileError(ValueError):
    """A file that could run code if it were read in full, or that is to expand entities."""


def load_tensors(path: str, *, allow_pickle: bool = False) -> Any:
    """What ``torch.save`` wrote, if it is tensors, numbers, strings and plain containers.

    Args:
        path: the file.
        allow_pickle: read other Python objects, too, which may run any code; a warning says so.
    """
    open_regular(path).close()  # which refuses pipes and devices
    if str(path).endswith(".safetensors"):
        return _load_safetensors(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        if isinstance(error, EOFError) or "PytorchStreamReader" in str(error):
            reason = reason_of(error).split(". ")[0]
            raise ValueError(
                f"{path} is cut off or damaged ({reason}); copy it again, or name another."
            ) from error
        if "weights_only" not in str(error) and "Weights only" not in str(error):
            raise
        if not _is_torch_file(path):
            raise ValueError(f"{path} is not a file that torch.save wrote.") from error
        if not allow_pickle:
            raise UnsafeFileError(
                f"{path} holds Python objects, and reading it could run any code; {_ADVICE}."
            ) from error
    _warn(path)
    return torch.load(path, map_location="cpu", weights_only=False)


def weights_file(path: Any) -> str:
    """The weights of a folder that ``d2ext export --format safetensors`` wrote; else the path."""
    inside = os.path.join(str(path), WEIGHTS)
    return inside if str(path) and os.path.isfile(inside) else str(path)


def safetensors_description(path: str) -> Dict[str, Any]:
    """What d2ext has written into a safetensors file, with the config beside it; else empty."""
    import json

    with open_regular(path) as stream:
        size = int.from_bytes(stream.read(8), "little")
        try:
            header = json.loads(stream.read(min(size, 1 << 27)))
            about = json.loads(header["__metadata__"][ABOUT])
        except (ValueError, KeyError, TypeError, RecursionError):
            return {}
    config = os.path.join(os.path.dirname(path), CONFIG)
    if isinstance(about, dict) and os.path.isfile(config):
        with open_regular(config) as stream:
            about["config"] = stream.read().decode("utf-8", "replace")
    return about if isinstance(about, dict) else {}


def _load_safetensors(path: str) -> Any:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise ValueError(
            f"{path} needs the package safetensors; install it with 'pip install safetensors'."
        ) from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is not a complete safetensors file ({error}); copy it again."
        ) from (error)


def _is_torch_file(path: str) -> bool:
    """Whether it is an archive, or begins as the pickles of older versions do."""
    if zipfile.is_zipfile(path):
        return True
    with open_regular(path) as stream:
        return stream.read(1) == pickle.PROTO


def load_arrays(stream: BinaryIO, path: str, *, allow_pickle: bool = False) -> Any:
    """A pickle of numpy arrays, numbers, strings and plain containers.

    Args:
        stream: its content.
        path: its name, for the message.
        allow_pickle: read other Python objects, too, which may run any code; a warning says so.
    """
    content = stream.read()
    try:
        return read_array_pickle(content)
    except RefusedError as error:
        if not allow_pickle:
            raise UnsafeFileError(
                f"{path} {error}, and reading it could run any code; {_ADVICE}."
            ) from None
    except (pickle.UnpicklingError, EOFError) as error:
        raise ValueError(f"{path} is not a complete pickle ({error}); copy it again.") from error
    _warn(path)
    return pickle.loads(content, encoding="latin1")


def _warn(path: str) -> None:
    logger.warning(f"Reading {path} with all its Python objects, which may run any code.")


def parse_xml(path: Any, content: Optional[bytes] = None) -> ElementTree.ElementTree:
    """An XML file without a document type.

    A document type may define entities: short names for long texts, and for each other, which grow
    without limit (the "billion laughs"), or for the content of other files. Annotations need none.

    Args:
        path: the file.
        content: what is in it, if it is known already.
    """
    if content is None:
        with open_regular(path) as stream:
            content = stream.read()
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler = builder.start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_: Any) -> None:
        raise UnsafeFileError(
            f"{path} has a document type (<!DOCTYPE ...>), which could expand entities or read "
            "other files; remove it."
        )

    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise ElementTree.ParseError(f"{path} is not XML: {error}.") from error
    return ElementTree.ElementTree(builder.close())
