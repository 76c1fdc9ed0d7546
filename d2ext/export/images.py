"""What happens to images inside an exported detector: resize, normalisation, padding.

Shapes: N images of H x W pixels, looked at as h x w.
"""

from typing import Any, List, NamedTuple, Sequence, Tuple

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["INPUTS", "Prepared", "PrepareImages"]

#: "images": floats as the detector sees them. "pixels": bytes of any size, RGB, colours last.
INPUTS = ("images", "pixels")


class Prepared(NamedTuple):
    """A batch as the backbone takes it.

    Attributes:
        tensor: normalised and padded.
        height, width: before padding, h and w.
        scale: (4,), what boxes are multiplied by for the images as they came.
        size: (height, width) of the images as they came.
    """

    tensor: torch.Tensor
    height: torch.Tensor
    width: torch.Tensor
    scale: torch.Tensor
    size: Tuple[torch.Tensor, torch.Tensor]


class PrepareImages(nn.Module):
    """Input of an exported detector to what its backbone takes.

    Args:
        model: a detector, for its normalisation and padding.
        inputs: one of :data:`INPUTS`.
        channel_order: "RGB" or "BGR", what the detector sees.
        sizes: the shortest side to resize to and the most the longest may have, for "pixels".
    """

    pixel_mean: torch.Tensor
    pixel_std: torch.Tensor

    def __init__(
        self,
        model: Any,
        inputs: str = "images",
        *,
        channel_order: str = "BGR",
        sizes: Sequence[int] = (800, 1333),
    ):
        super().__init__()
        if inputs not in INPUTS:
            raise ValueError(f"inputs must be one of {', '.join(INPUTS)}, not {inputs!r}.")
        if model.backbone.padding_constraints.get("square_size", 0):
            raise ValueError(
                "A backbone that pads images to a square cannot be exported for every size; set "
                "MODEL.FPN.SQUARE_PAD to 0."
            )
        self.register_buffer("pixel_mean", model.pixel_mean.clone())
        self.register_buffer("pixel_std", model.pixel_std.clone())
        self.divisor = max(model.backbone.size_divisibility, 1)
        self.inputs = inputs
        self.flip = channel_order == "BGR"
        self.short, self.long = (float(size) for size in sizes)

    def forward(self, images: torch.Tensor) -> Prepared:
        """
        Args:
            images: (N, 3, H, W) float32, 0 to 255, in the detector's channel order, or
                (N, H, W, 3) bytes in RGB.
        """
        if self.inputs == "pixels":
            planes = images.permute(0, 3, 1, 2).float()
            planes = planes.flip(1) if self.flip else planes
            size = _size(planes)
            x = self._resize(planes, *size)
        else:
            x, size = images, _size(images)
        height, width = _size(x)
        factors = torch.stack((size[1] / width, size[0] / height)).float()
        x = (x - self.pixel_mean) / self.pixel_std
        x = F.pad(x, (0, self._missing(x.shape[-1]), 0, self._missing(x.shape[-2])))
        return Prepared(x, height, width, factors.repeat(2), size)

    def _missing(self, side: Any) -> Any:
        """Pixels up to a multiple of the divisor, in operators that every runtime has."""
        above = side + self.divisor - 1
        if isinstance(above, torch.Tensor):  # a tracer's
            return torch.div(above, self.divisor, rounding_mode="trunc") * self.divisor - side
        return above // self.divisor * self.divisor - side

    def _resize(
        self, planes: torch.Tensor, height: torch.Tensor, width: torch.Tensor
    ) -> torch.Tensor:
        """As Detectron2's ResizeShortestEdge with Pillow's bilinear filter, but for its rounding.

        ONNX has no resize that widens its filter as the image shrinks in the operator sets that
        are in use, so it is two products with matrices of weights.
        """
        h, w = height.to(torch.float64), width.to(torch.float64)
        scale = self.short / torch.minimum(h, w)
        scale = torch.minimum(scale, self.long / torch.maximum(h, w))
        new_h, new_w = ((side * scale + 0.5).floor() for side in (h, w))
        rows, columns = _weights(h, new_h), _weights(w, new_w)
        return rows @ (planes @ columns.t())


def _size(x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
    # A tracer follows sizes that are tensors, and takes numbers for constants.
    tracing = torch.jit.is_tracing()
    shape = torch._shape_as_tensor(x) if tracing else torch.tensor(x.shape)
    shape = shape.to(x.device)
    return shape[-2], shape[-1]


def _weights(old: torch.Tensor, new: torch.Tensor) -> torch.Tensor:
    """(new, old) weights of the old pixels of a line in the new ones: a triangle, widened when it
    shrinks."""
    ratio = old / new
    wide = ratio.clamp(min=1.0)
    ends: List[Any] = [new.to(torch.int64), old.to(torch.int64)]  # tensors, for a tracer
    centers = (torch.arange(ends[0], device=old.device) + 0.5) * ratio
    places = torch.arange(ends[1], device=old.device) + 0.5
    weights = (1 - ((places[None] - centers[:, None]) / wide).abs()).clamp(min=0.0)
    return (weights / weights.sum(dim=1, keepdim=True)).float()
