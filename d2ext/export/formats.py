"""Writing detectors as TorchScript, ONNX and ``torch.export`` programs."""

import contextlib
import logging
import os
import warnings
from pathlib import Path
from typing import Any, Iterator, List, Tuple, Union

import torch
from torch import nn

from d2ext.modeling.compile import uncompiled

from .detector import InferenceDetector

__all__ = [
    "export_onnx",
    "export_program",
    "export_torchscript",
    "trace_two_stage",
]

logger = logging.getLogger(__name__)

OPSET = 17  # grid_sample, which box refinement needs, came with 16


def export_torchscript(
    model: nn.Module, path: Union[str, Path], *, with_nms: bool = True
) -> torch.jit.ScriptModule:
    """Write a detector for ``torch.jit.load``; see `InferenceDetector` for inputs and outputs."""
    with _quietly(), uncompiled(model):
        detector = InferenceDetector(model, with_nms=with_nms)
        with torch.no_grad():
            traced = torch.jit.trace(detector, (example_image(detector),), check_trace=False)
            traced = torch.jit.freeze(traced)
        torch.jit.save(traced, str(path))
    return traced


def export_onnx(
    model: nn.Module, path: Union[str, Path], *, with_nms: bool = True, opset: int = OPSET
) -> None:
    """Write a detector as ONNX with an image of any size.

    The one input is ``image``. The outputs are ``boxes``, ``scores`` and ``classes``, or without
    NMS ``boxes`` and ``scores``.
    """
    _need("onnx")
    detector = InferenceDetector(model, with_nms=with_nms)
    names = ["boxes", "scores", "classes"] if with_nms else ["boxes", "scores"]
    axes = {name: {0: "detections" if with_nms else "priors"} for name in names}
    options: dict = {}
    if "dynamo" in _parameters(torch.onnx.export):
        # The newer exporter proves sizes equal before it allows them to vary, and cannot do that
        # for a pyramid on an image of any size.
        options["dynamo"] = False
    aside = f"{path}.{os.getpid()}.part"
    try:
        with _quietly(), uncompiled(model), torch.no_grad():
            torch.onnx.export(
                detector,
                (example_image(detector),),
                aside,
                input_names=["image"],
                output_names=names,
                dynamic_axes={"image": {1: "height", 2: "width"}, **axes},
                opset_version=opset,
                **options,
            )
        os.replace(aside, str(path))
    finally:
        with contextlib.suppress(OSError):
            os.remove(aside)


def export_program(
    model: nn.Module, path: Union[str, Path], *, size: Tuple[int, int] = (256, 256)
) -> Any:
    """Write a detector without NMS for ``torch.export.load``, for images of one size.

    Args:
        size: height and width.
    """
    if not hasattr(torch, "export"):
        raise RuntimeError("torch.export needs PyTorch 2.1 or newer; export TorchScript instead.")
    detector = InferenceDetector(model, with_nms=False)
    with _quietly(), uncompiled(model), torch.no_grad():
        program = torch.export.export(detector, (example_image(detector, size),), strict=False)
        torch.export.save(program, str(path))
    return program


def trace_two_stage(
    model: nn.Module, path: Union[str, Path], image: torch.Tensor
) -> Tuple[torch.jit.ScriptModule, Any]:
    """Write a two-stage model as TorchScript through Detectron2's exporter.

    Args:
        image: (3, H, W), an image on which the model finds something: tracing follows it.

    Returns:
        the traced module, which gives a tuple of tensors, and a function from such a tuple to
        Detectron2's ``Instances``
    """
    from detectron2.export import TracingAdapter

    def inference(network: nn.Module, inputs: List[dict]) -> List[dict]:
        return [{"instances": i} for i in network.inference(inputs, do_postprocess=False)]

    model.eval()
    with _quietly(), uncompiled(model), torch.no_grad():
        adapter = TracingAdapter(model, [{"image": image}], inference)
        traced = torch.jit.trace(adapter, (image,), check_trace=False)
        torch.jit.save(traced, str(path))
    return traced, adapter.outputs_schema


def example_image(detector: nn.Module, size: Tuple[int, int] = (160, 224)) -> torch.Tensor:
    """Some image on the detector's device; no output depends on it."""
    return torch.full((3, *size), 127.0, device=detector.pixel_mean.device)


def _parameters(function: Any) -> List[str]:
    import inspect

    return list(inspect.signature(function).parameters)


def _need(package: str) -> None:
    try:
        __import__(package)
    except ImportError as error:
        raise RuntimeError(
            f"This export needs the package {package}; run \"pip install 'd2ext[export]'\"."
        ) from error


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Without the tracer's warnings about constants, which the comparison afterwards checks."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
