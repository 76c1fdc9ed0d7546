"""Comparison of an exported detector with the detector itself, on images of several sizes."""

import json
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple, Union

import numpy as np
import torch
from torch import nn

from .detector import InferenceDetector

__all__ = ["CHECK_SIZES", "Difference", "compare", "load_exported"]

CHECK_SIZES = ((160, 224), (256, 256), (193, 151), (135, 258))

Arrays = Tuple[np.ndarray, ...]


class Difference(Dict[str, float]):
    """Largest differences: ``box`` in pixels, ``score``, and detections one side lacks."""

    def acceptable(self, box: float = 1e-3, score: float = 1e-5) -> bool:
        return self["missing"] == 0 and self["box"] <= box and self["score"] <= score


def load_exported(path: Union[str, Path]) -> Callable[[torch.Tensor], Arrays]:
    """A function from an image (3, H, W) to the arrays of an exported detector.

    Args:
        path: a file of `export_onnx` (``.onnx``), `export_torchscript` (``.ts``) or
            `export_program` (``.pt2``).
    """
    suffix = Path(path).suffix
    if suffix == ".onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        return lambda image: tuple(session.run(None, {"image": image.cpu().numpy()}))
    if suffix == ".pt2":
        module: Any = torch.export.load(str(path)).module()
    else:
        module = torch.jit.load(str(path))

    def run(image: torch.Tensor) -> Arrays:
        with torch.no_grad():
            return tuple(x.cpu().numpy() for x in module(image))

    return run


def compare(
    model: nn.Module,
    run: Callable[[torch.Tensor], Arrays],
    *,
    with_nms: bool = True,
    sizes: Sequence[Tuple[int, int]] = CHECK_SIZES,
    seed: int = 0,
) -> Difference:
    """How far an exported detector is from the detector in PyTorch.

    Args:
        model: the detector.
        run: the exported one, as `load_exported` gives it.
        with_nms: whether ``run`` selects detections.
        sizes: heights and widths of the images, which are noise of several scales.
    """
    generator = torch.Generator().manual_seed(seed)
    total = Difference(box=0.0, score=0.0, missing=0.0, detections=0.0)
    for size in sizes:
        image = noise_image(size, generator)
        on_device = image.to(next(model.parameters()).device)
        pairs = _selected(model, run, on_device) if with_nms else _raw(model, run, on_device)
        for key, value in pairs.items():
            total[key] = (
                total[key] + value if key in ("missing", "detections") else max(total[key], value)
            )
    return total


def noise_image(size: Tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Noise with structure at several scales, so that a detector has something to see."""
    image = torch.zeros(1, 3, *size)
    for cells in (3, 9, 27):
        noise = torch.rand(1, 3, cells, cells, generator=generator)
        image += torch.nn.functional.interpolate(noise, size, mode="bilinear")
    return (image[0] * 85).round()


@torch.no_grad()
def _raw(model: nn.Module, run: Any, image: torch.Tensor) -> Dict[str, float]:
    expected = [x.cpu().numpy() for x in InferenceDetector(model, with_nms=False)(image)]
    actual = run(image)
    if any(a.shape != e.shape for a, e in zip(actual, expected)):
        return {"box": 0.0, "score": 0.0, "missing": 1.0, "detections": 0.0}
    return {
        "box": float(np.abs(actual[0] - expected[0]).max()),
        "score": float(np.abs(actual[1] - expected[1]).max()),
        "missing": 0.0,
        "detections": float(len(expected[0])),
    }


@torch.no_grad()
def _selected(model: nn.Module, run: Any, image: torch.Tensor) -> Dict[str, float]:
    training = model.training
    model.eval()
    found = model([{"image": image}])[0]["instances"].to("cpu")
    model.train(training)
    expected = (found.pred_boxes.tensor.numpy(), found.scores.numpy(), found.pred_classes.numpy())
    return match(expected, run(image))


def match(expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> Dict[str, float]:
    """Differences of two sets of boxes (D, 4), scores and classes, in any order of equal scores."""
    box, score, missing = 0.0, 0.0, abs(len(expected[0]) - len(actual[0]))
    free: List[int] = list(range(len(actual[0])))
    for b, s, c in zip(*expected):
        same = [k for k in free if actual[2][k] == c and abs(actual[1][k] - s) < 1e-3]
        if not same:
            missing += 1
            continue
        distance = [float(np.abs(actual[0][k] - b).max()) for k in same]
        best = int(np.argmin(distance))
        free.remove(same[best])
        box = max(box, distance[best])
        score = max(score, abs(float(actual[1][same[best]] - s)))
    return {
        "box": box,
        "score": score,
        "missing": float(missing),
        "detections": float(len(expected[0])),
    }


def write_description(path: Union[str, Path], **about: Any) -> Path:
    """``<path>.json``: what a program that runs the exported detector has to know."""
    file = Path(f"{path}.json")
    file.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return file
