"""Writing detectors as ONNX, TorchScript, ``torch.export`` programs and for OpenVINO."""

import contextlib
import json
import os
import warnings
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, Optional, Tuple, Union

import numpy as np
import torch
from torch import nn

from d2ext._files import RunError, atomic_write
from d2ext.modeling.compile import uncompiled

from .graphs import InferenceGraph, graph_of
from .quantize import quantize

__all__ = ["PRECISIONS", "SUFFIXES", "example_images", "export", "format_of", "need"]

#: What a format's files end with.
SUFFIXES = {"onnx": ".onnx", "torchscript": ".ts", "program": ".pt2", "openvino": ".xml"}

#: What OpenVINO's files may hold: whole numbers, halved weights, or layers in eight bits.
PRECISIONS = ("fp32", "fp16", "int8")

#: The entry of a file's metadata that holds d2ext's description, as JSON.
ABOUT = "d2ext"

OPSET = 17  # grid_sample, which box refinement needs, came with 16
_AXES = {"images": {0: "batch", 2: "height", 3: "width"},
         "pixels": {0: "batch", 1: "height", 2: "width"}}  # fmt: skip


def export(
    model: nn.Module,
    path: Union[str, Path],
    *,
    format: Optional[str] = None,
    with_nms: bool = True,
    inputs: str = "images",
    channel_order: str = "BGR",
    sizes: Tuple[int, int] = (800, 1333),
    opset: int = OPSET,
    size: Tuple[int, int] = (256, 256),
    precision: str = "fp32",
    calibration: Iterable[np.ndarray] = (),
    about: Optional[Dict[str, Any]] = None,
) -> InferenceGraph:
    """Write a detector for places without d2ext.

    Args:
        model: a dense detector of d2ext, or a two-stage one on a feature pyramid.
        path: the file.
        format: one of :data:`SUFFIXES`; by default what the name of the file says.
        with_nms: whether detections are selected inside; without, all boxes and scores come out.
        inputs: "images", floats as the detector sees them, or "pixels", bytes of any size that are
            resized inside.
        channel_order: "BGR" or "RGB", what the detector sees.
        sizes: shortest and longest side to resize "pixels" to.
        opset: ONNX operator set.
        size: height and width of the images of a program, which takes one size only.
        precision: one of :data:`PRECISIONS`; others than "fp32" are OpenVINO's.
        calibration: for "int8" the batches, in the form of ``inputs``, that ranges are measured on.
        about: the description that goes into the file, see :func:`~d2ext.export.about.describe`.

    Returns:
        The module whose graph was written.
    """
    format = format or format_of(path)
    if format not in SUFFIXES or Path(path).suffix != SUFFIXES[format]:
        wanted = [SUFFIXES[format]] if format in SUFFIXES else sorted(SUFFIXES.values())
        raise ValueError(f"{path} must end in {' or '.join(wanted)}: readers go by the name.")
    if precision not in PRECISIONS or (precision != "fp32" and format != "openvino"):
        raise ValueError(
            f"The precision {precision} is not one of {', '.join(PRECISIONS)}, of which all but "
            "fp32 need the format openvino."
        )
    options = {"inputs": inputs, "channel_order": channel_order, "sizes": sizes}
    graph = graph_of(model, with_nms=with_nms, **options)
    facts = {"format": format, "precision": precision, "nms": with_nms, "outputs": graph.outputs}
    text = json.dumps({**(about or {}), **facts, **options})
    with _quietly(), uncompiled(model), torch.no_grad():
        if format == "program":
            _write_program(graph, path, size, text)
        elif format == "torchscript":
            traced = torch.jit.freeze(
                torch.jit.trace(graph, (example_images(graph),), check_trace=False)
            )
            with atomic_write(str(path)) as stream:
                torch.jit.save(traced, stream, _extra_files={ABOUT: text})
        elif format == "openvino":
            _write_openvino(graph, path, opset, text, precision, calibration)
        else:
            _write_onnx(graph, str(path), opset, text)
    return graph


def format_of(path: Union[str, Path]) -> str:
    """The format that the name of a file says, or ""."""
    known = {suffix: name for name, suffix in SUFFIXES.items()}
    return known.get(Path(path).suffix, "")


def example_images(graph: InferenceGraph, size: Tuple[int, int] = (160, 224)) -> torch.Tensor:
    """Some images on the detector's device; no output depends on them.

    Two, because a single one would make a tracer believe that there is always one.
    """
    device = graph.prepare.pixel_mean.device
    if graph.prepare.inputs == "pixels":
        return torch.full((2, *size, 3), 127, dtype=torch.uint8, device=device)
    return torch.full((2, 3, *size), 127.0, device=device)


def _write_onnx(graph: InferenceGraph, path: str, opset: int, text: str) -> None:
    onnx = need("onnx", "export")
    aside = f"{path}.{os.getpid()}.part"
    inputs = graph.prepare.inputs
    try:
        torch.onnx.export(
            graph,
            (example_images(graph),),
            aside,
            input_names=[inputs],
            output_names=list(graph.outputs),
            dynamic_axes={inputs: _AXES[inputs], **{name: {0: "batch"} for name in graph.outputs}},
            opset_version=opset,
            # The newer exporter proves sizes equal before it allows them to vary, and cannot do
            # that for a pyramid on images of any size.
            dynamo=False,
        )
        model = onnx.load(aside)
        entry = model.metadata_props.add()
        entry.key, entry.value = ABOUT, text
        onnx.save(model, aside)
        os.replace(aside, path)
    except torch.onnx.errors.UnsupportedOperatorError as error:
        raise RunError(
            f"ONNX cannot hold this detector ({str(error).splitlines()[0]}); export it with "
            "--format torchscript."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            os.remove(aside)


def _write_openvino(
    graph: InferenceGraph,
    path: Union[str, Path],
    opset: int,
    text: str,
    precision: str,
    calibration: Iterable[np.ndarray],
) -> None:
    openvino = need("openvino", "openvino")
    aside = f"{path}.onnx"
    try:
        _write_onnx(graph, aside, opset, text)
        model = openvino.convert_model(aside)
        if precision == "int8":
            model = quantize(model, calibration)
        model.set_rt_info(text, [ABOUT])
        openvino.save_model(model, str(path), compress_to_fp16=precision == "fp16")
    finally:
        with contextlib.suppress(OSError):
            os.remove(aside)


def _write_program(
    graph: InferenceGraph, path: Union[str, Path], size: Tuple[int, int], text: str
) -> None:
    if graph.with_nms:
        raise ValueError(
            "A torch.export program has no NMS, whose result has no fixed size; add --no-nms, or "
            "use --format torchscript."
        )
    if graph.prepare.inputs == "pixels":
        raise ValueError("A torch.export program takes images, not pixels; leave out --pixels.")
    program = torch.export.export(graph, (example_images(graph, size)[:1],), strict=False)
    torch.export.save(program, str(path), extra_files={ABOUT: text})


def need(package: str, extra: str) -> Any:
    """An optional package, or a sentence that says how to get it."""
    import importlib

    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise RunError(
            f"This needs the package {package}; run \"pip install 'd2ext[{extra}]'\"."
        ) from error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the tracer's warnings about constants, which the comparison afterwards checks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
