"""Exported detectors, run as Detectron2's models are.

Shapes: N images of H x W pixels, D detections of an image at the most.
"""

import functools
import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple, Union

import numpy as np
import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import nn

from .formats import ABOUT, SUFFIXES, need

__all__ = ["ExportedModel", "as_input", "is_exported", "load_exported"]

Arrays = Tuple[np.ndarray, ...]


def is_exported(path: Union[str, Path]) -> bool:
    """Whether a file is named like an exported detector."""
    return Path(path).suffix in SUFFIXES.values()


def load_exported(path: Union[str, Path]) -> Tuple[Callable[[np.ndarray], Arrays], Dict[str, Any]]:
    """A function from a batch to the outputs of an exported detector, and what the file says.

    Args:
        path: a file that :func:`~d2ext.export.export` wrote.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no exported detector '{path}'.")
    loaders = {".onnx": _onnx, ".xml": _openvino, ".pt2": _program, ".ts": _torchscript}
    if Path(path).suffix not in loaders:
        raise ValueError(
            f"'{path}' is not an exported detector; those end in {', '.join(sorted(loaders))}."
        )
    run, text = loaders[Path(path).suffix](str(path))
    about = json.loads(text or "{}")
    if "outputs" not in about:
        raise ValueError(f"'{path}' was not exported by d2ext: it does not say what it gives.")
    return run, about


def _onnx(path: str) -> Tuple[Callable[[np.ndarray], Arrays], str]:
    runtime = need("onnxruntime", "export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    text = session.get_modelmeta().custom_metadata_map.get(ABOUT, "")
    return lambda images: tuple(session.run(None, {name: images})), text


@functools.cache
def openvino_core() -> Any:
    """The one core of this process, which is never freed.

    Compiling sets the stack that signals are handled on, and freeing a core sets back the one it
    found. Of two cores the second brings back the stack of the first, which is gone; the next
    signal (a child that ends, Ctrl-C) then kills the process without a word.
    """
    return need("openvino", "openvino").Core()


def _openvino(path: str) -> Tuple[Callable[[np.ndarray], Arrays], str]:
    core = openvino_core()
    model = core.read_model(path)
    text = model.get_rt_info([ABOUT]).astype(str) if model.has_rt_info([ABOUT]) else ""
    settings: Dict[str, Any] = {"INFERENCE_NUM_THREADS": torch.get_num_threads()}
    # Whole float32: the rounding of smaller formats, which it would choose itself, moves boxes.
    settings["INFERENCE_PRECISION_HINT"] = "f32"
    compiled = core.compile_model(model, "CPU", settings)
    return lambda images: tuple(compiled(images).values()), text


def _program(path: str) -> Tuple[Callable[[np.ndarray], Arrays], str]:
    extra = {ABOUT: ""}
    module = torch.export.load(path, extra_files=extra).module()
    return _torch_function(module), extra[ABOUT]


def _torchscript(path: str) -> Tuple[Callable[[np.ndarray], Arrays], str]:
    extra = {ABOUT: ""}
    module = torch.jit.load(path, map_location="cpu", _extra_files=extra)
    text = extra[ABOUT]
    return _torch_function(module), text.decode() if isinstance(text, bytes) else text


def _torch_function(module: Any) -> Callable[[np.ndarray], Arrays]:
    def run(images: np.ndarray) -> Arrays:
        with torch.no_grad():
            return tuple(x.numpy() for x in module(torch.from_numpy(images)))

    return run


class ExportedModel(nn.Module):
    """An exported detector in the place of the model it was made from.

    It takes what Detectron2's data loaders give and returns what its models return. Images of one
    size that follow each other go through it together.

    Args:
        path: a file with NMS inside.
    """

    def __init__(self, path: Union[str, Path]):
        super().__init__()
        self.run, self.about = load_exported(path)
        if not self.about["nms"]:
            raise ValueError(f"'{path}' selects no detections; export it without --no-nms.")
        self.eval()

    def forward(self, batch: Sequence[Dict[str, Any]]) -> List[Dict[str, Instances]]:
        outputs: List[Dict[str, Instances]] = []
        start = 0
        for stop in range(1, len(batch) + 1):
            sizes = [item["image"].shape for item in batch[start : stop + 1]]
            if stop == len(batch) or sizes[-1] != sizes[0]:
                outputs += self._run(batch[start:stop])
                start = stop
        return outputs

    def _run(self, batch: Sequence[Dict[str, Any]]) -> List[Dict[str, Instances]]:
        images = torch.stack([item["image"] for item in batch])
        values = self.run(
            as_input(images, **{k: self.about[k] for k in ("inputs", "channel_order")})
        )
        found = dict(zip(self.about["outputs"], map(torch.from_numpy, values)))
        size = tuple(batch[0]["image"].shape[-2:])
        return [{"instances": _instances(found, k, size, item)} for k, item in enumerate(batch)]


def as_input(images: torch.Tensor, *, inputs: str, channel_order: str) -> np.ndarray:
    """Images (N, 3, H, W) of a data loader in the form that an exported detector takes.

    Args:
        images: as the detector in PyTorch sees them.
        inputs, channel_order: see :func:`~d2ext.export.export`.
    """
    images = images.cpu().float()
    if inputs == "pixels":
        images = images.flip(1) if channel_order == "BGR" else images
        images = images.permute(0, 2, 3, 1).clamp(0, 255).round().to(torch.uint8)
    return np.ascontiguousarray(images.numpy())


def _instances(
    found: Dict[str, torch.Tensor], k: int, size: Tuple[int, int], item: Dict[str, Any]
) -> Instances:
    count = int(found["count"][k])
    result = Instances(size)
    result.pred_boxes = Boxes(found["boxes"][k, :count])
    result.scores = found["scores"][k, :count]
    result.pred_classes = found["classes"][k, :count]
    if "masks" in found:
        result.pred_masks = found["masks"][k, :count, None]
    return detector_postprocess(result, item.get("height", size[0]), item.get("width", size[1]))
