"""Comparison of an exported detector with the detector itself, on images of several sizes."""

import copy
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import torch
from torch import nn

from .graphs import InferenceGraph, graph_of

__all__ = ["CHECK_SIZES", "Difference", "ExactDetector", "compare", "match"]

CHECK_SIZES = ((160, 224), (256, 256), (193, 151), (135, 258))

Arrays = Tuple[np.ndarray, ...]


class Difference(Dict[str, float]):
    """Largest differences: ``box`` in pixels, ``score``, and detections one side lacks.

    Compared with an :class:`ExactDetector`, too, ``pytorch_box``, ``pytorch_score``, ``file_box``
    and ``file_score`` are the distances of either side from it.
    """

    def acceptable(self, box: float = 1e-3, score: float = 1e-5) -> bool:
        """Whether both sides say the same.

        Where the detector's own float32 is further from the exact values than the bound allows,
        nothing that also computes in float32 can keep it: up to ten times the bound is accepted
        of a file that is at most twice as far from the exact values as PyTorch.
        """
        bounds = {"box": box, "score": score}
        return self["missing"] == 0 and all(self._close(k, bound) for k, bound in bounds.items())

    def _close(self, key: str, bound: float) -> bool:
        if self[key] <= bound or f"file_{key}" not in self:
            return self[key] <= bound
        return self[key] <= 10 * bound and self[f"file_{key}"] <= 2 * self[f"pytorch_{key}"]

    def add(self, other: Dict[str, float]) -> None:
        """Take in the differences of other images."""
        for key, value in other.items():
            summed = key in ("missing", "detections")
            self[key] = self.get(key, 0.0) + value if summed else max(self.get(key, 0.0), value)


class ExactDetector(nn.Module):
    """A detector in float64: what the rounding of both sides is measured with.

    It takes what the detector takes and gives arrays of boxes, scores and classes. Detectron2
    decodes boxes in float32 whatever it is given, so boxes are known to about 2e-5 px.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.graph = graph_of(copy.deepcopy(model)).double()

    def forward(self, batch: List[Dict[str, Any]]) -> List[Arrays]:
        found: List[Arrays] = []
        for item in batch:
            image = item["image"].to(self.graph.prepare.pixel_mean)
            boxes, scores, classes, count = (
                x[0].cpu().numpy() for x in self.graph(image[None])[:4]
            )
            scale = np.divide((item["width"], item["height"]), image.shape[:0:-1])
            found.append((boxes[:count] * np.tile(scale, 2), scores[:count], classes[:count]))
        return found


def compare(
    model: nn.Module,
    graph: InferenceGraph,
    run: Callable[[np.ndarray], Arrays],
    *,
    sizes: Sequence[Tuple[int, int]] = CHECK_SIZES,
    batch: int = 1,
    seed: int = 0,
    exact: Optional[nn.Module] = None,
) -> Difference:
    """How far an exported detector is from the detector in PyTorch.

    Args:
        model: the detector.
        graph: what :func:`~d2ext.export.export` returned.
        run: the exported one, as :func:`~d2ext.export.load_exported` gives it.
        sizes: heights and widths of the images, which are noise of several scales.
        batch: images at a time.
        exact: an :class:`ExactDetector`, to also measure both sides' own rounding; with NMS only.
    """
    generator = torch.Generator().manual_seed(seed)
    total = Difference(box=0.0, score=0.0, missing=0.0, detections=0.0)
    for size in sizes:
        images = torch.stack([noise_image(size, generator) for _ in range(batch)])
        if graph.with_nms:
            total.add(_selected(model, graph, run, images, exact))
        else:
            total.add(_raw(graph, run, images))
    return total


def noise_image(size: Tuple[int, int], generator: torch.Generator) -> torch.Tensor:
    """Noise with structure at several scales, so that a detector has something to see."""
    image = torch.zeros(1, 3, *size)
    for cells in (3, 9, 27):
        noise = torch.rand(1, 3, cells, cells, generator=generator)
        image += torch.nn.functional.interpolate(noise, size, mode="bilinear")
    return (image[0] * 85).round()


@torch.no_grad()
def _raw(graph: InferenceGraph, run: Any, images: torch.Tensor) -> Dict[str, float]:
    device = graph.prepare.pixel_mean.device
    expected = [x.cpu().numpy() for x in graph(images.to(device))]
    actual = run(images.numpy())
    if any(a.shape != e.shape for a, e in zip(actual, expected)):
        return {"box": 0.0, "score": 0.0, "missing": 1.0, "detections": 0.0}
    return {
        "box": float(np.abs(actual[0] - expected[0]).max()),
        "score": float(np.abs(actual[1] - expected[1]).max()),
        "missing": 0.0,
        "detections": float(np.prod(expected[0].shape[:2])),
    }


@torch.no_grad()
def _selected(
    model: nn.Module,
    graph: InferenceGraph,
    run: Any,
    images: torch.Tensor,
    exact: Optional[nn.Module],
) -> Difference:
    """Image by image in PyTorch, together in the exported detector."""
    device, training = next(model.parameters()).device, model.training
    prepare = graph.prepare
    given = images
    if prepare.inputs == "pixels":
        given = images.permute(0, 2, 3, 1).to(torch.uint8)
        planes = given.permute(0, 3, 1, 2).float()
        planes = planes.flip(1) if prepare.flip else planes
        images = prepare._resize(planes, *map(torch.tensor, planes.shape[-2:]))
    height, width = given.shape[1:3] if prepare.inputs == "pixels" else given.shape[2:]
    values = run(np.ascontiguousarray(given.numpy()))
    total = Difference()
    model.eval()
    for k, image in enumerate(images.to(device)):
        item = {"image": image, "height": height, "width": width}
        found = model([item])[0]["instances"].to("cpu")
        expected = [x.numpy() for x in (found.pred_boxes.tensor, found.scores, found.pred_classes)]
        actual = [v[k][: int(values[3][k])] for v in values[:3]]
        total.add(match(expected, actual))
        if exact is not None:
            (true,) = exact([item])
            for side, detections in (("pytorch", expected), ("file", actual)):
                pairs = match(true, detections)
                total.add({f"{side}_{key}": pairs[key] for key in ("box", "score")})
    model.train(training)
    return total


def match(expected: Sequence[np.ndarray], actual: Sequence[np.ndarray]) -> Dict[str, float]:
    """Differences of two sets of boxes (D, 4), scores and classes, in any order of equal scores.

    Which of several equals is the last one above a limit is open: a detection with the lowest score
    is not missed.
    """
    box, score = 0.0, 0.0
    free = np.ones(len(actual[0]), dtype=bool)
    lonely: List[float] = []
    for b, s, c in zip(*expected):
        same = np.flatnonzero(free & (actual[2] == c) & (np.abs(actual[1] - s) < 1e-3))
        if not len(same):
            lonely.append(float(s))
            continue
        distance = np.abs(actual[0][same] - b).max(axis=1)
        best = int(distance.argmin())
        free[same[best]] = False
        box = max(box, float(distance[best]))
        score = max(score, abs(float(actual[1][same[best]] - s)))
    lonely += actual[1][free].tolist()
    lowest = float(min(map(np.min, (expected[1], actual[1])))) if len(expected[1]) else -1.0
    equal = len(expected[0]) == len(actual[0])
    return {
        "box": box,
        "score": score,
        "missing": float(sum(not equal or s > lowest + 1e-5 for s in lonely)),
        "detections": float(len(expected[0])),
    }
