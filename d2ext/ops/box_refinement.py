"""Box refinement of DW: each side's distance is read again at a learned point near that side.

Shapes: N images, h and w the size of one level's map.
"""

import torch
from torch.nn import functional as F

__all__ = ["refine_boxes"]


def refine_boxes(ltrb: torch.Tensor, offsets: torch.Tensor, stride: float) -> torch.Tensor:
    """Read the four distances of every location again, each at a point near its side.

    A location far from an object's left edge is a poor judge of where that edge is. So the head
    predicts, beside a coarse box, a shift of four points that start in the middle of the coarse
    box's sides (and at the location itself along the other axis). At each point the map of coarse
    boxes is sampled bilinearly, and one coordinate of the sampled box becomes the refined side.

    Nothing is detached: gradients reach the distances through the sampled values and, like the
    offsets, through the positions of the samples. Outside the map a coordinate counts as 0, so a
    right or bottom point beyond the map collapses its side; the authors' 1x1 deformable
    convolution does the same.

    Args:
        ltrb: (N, 4, h, w) coarse distances to left, top, right, bottom, in pixels.
        offsets: (N, 8, h, w) four (dy, dx) shifts in cells, in the order of the sides.
        stride: pixels in a cell.

    Returns:
        (N, 4, h, w) refined distances in pixels, not negative; float32 for smaller types.
    """
    with torch.autocast(device_type=ltrb.device.type, enabled=False):
        dtype = torch.promote_types(torch.promote_types(ltrb.dtype, offsets.dtype), torch.float32)
        return _refine(ltrb.to(dtype), offsets.to(dtype), float(stride))


def _refine(ltrb: torch.Tensor, offsets: torch.Tensor, stride: float) -> torch.Tensor:
    n, _, h, w = ltrb.shape
    column = torch.arange(w, device=ltrb.device, dtype=ltrb.dtype)
    row = torch.arange(h, device=ltrb.device, dtype=ltrb.dtype)[:, None]
    px, py = (column + 0.5) * stride, (row + 0.5) * stride
    left, top, right, bottom = ltrb.unbind(dim=1)
    coarse = torch.stack((px - left, py - top, px + right, py + bottom), dim=1)

    dy, dx = offsets[:, 0::2], offsets[:, 1::2]  # (N, 4, h, w) each
    none = torch.zeros_like(left)
    dy = dy + torch.stack((none, -top, none, bottom), dim=1) / stride
    dx = dx + torch.stack((-left, none, right, none), dim=1) / stride
    # A border of zeros and aligned corners: position 0 of the unpadded map is 1 of the padded
    # one, whose last position, w + 1, is never 0 - so a map of one cell divides by nothing.
    grid = torch.stack(
        ((column + dx + 1) * (2 / (w + 1)) - 1, (row + dy + 1) * (2 / (h + 1)) - 1), dim=-1
    )
    sampled = F.grid_sample(
        F.pad(coarse, (1, 1, 1, 1)).reshape(n * 4, 1, h + 2, w + 2),
        grid.reshape(n * 4, h, w, 2),
        mode="bilinear",
        padding_mode="zeros",
        align_corners=True,
    ).reshape(n, 4, h, w)
    x1, y1, x2, y2 = sampled.unbind(dim=1)
    return torch.stack((px - x1, py - y1, x2 - px, y2 - py), dim=1).relu()
