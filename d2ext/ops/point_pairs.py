"""All pairs of a point and a box that holds it, found without a (points x boxes) matrix.

Shapes: P points of an image (all levels), G boxes of the whole batch, B blocks of points (levels),
K pairs found.

The points of a detector are a few regular grids, one after the other. There the points inside a
box are one rectangle of grid cells for each grid, so two binary searches for each (box, grid) give
every pair, and memory grows with the number of pairs. The grids are recognised from the
coordinates alone, on the device, and the result is the same as comparing every point with every
box, to the last bit: the searches compare the very coordinates. Points that are no grids are
compared with all boxes, a bounded number of boxes at a time.
"""

from typing import NamedTuple, Tuple

import torch

__all__ = ["PointPairs", "points_in_boxes"]

# More grids than any feature pyramid has; each costs one row of the two search tables.
MAX_BLOCKS = 8
# Comparisons made at a time when the points are no grids: 4 MiB of booleans.
CHUNK_ELEMENTS = 1 << 22


class PointPairs(NamedTuple):
    """Pairs sorted by box, then by point.

    Attributes:
        point: (K,) int64, index into the points.
        box: (K,) int64, index into the boxes.
    """

    point: torch.Tensor
    box: torch.Tensor


class _Blocks(NamedTuple):
    """Runs of points that are regular grids if ``regular`` says so. All (B,) unless noted."""

    start: torch.Tensor  # first point of the block
    width: torch.Tensor  # points in a row
    xs: torch.Tensor  # (B, P): x of the first row, -inf before it, +inf after it
    ys: torch.Tensor  # (B, P): y of the block's points, -inf before them, +inf after them
    regular: torch.Tensor  # () bool


def points_in_boxes(points: torch.Tensor, strides: torch.Tensor, boxes: torch.Tensor) -> PointPairs:
    """Find every pair of a point strictly inside a box.

    One host-device sync (the number of pairs) when the points are at most ``MAX_BLOCKS``
    grids, each in row-major order; a new grid begins where the stride changes or y goes back.

    Args:
        points: (P, 2), x and y.
        strides: (P,), stride of each point's level; only tells where a new grid may begin.
        boxes: (G, 4), of the same type as ``points``. One with a NaN holds no point, as no
            comparison with NaN is true; infinite sides are valid.

    Returns:
        the pairs, sorted by box and then by point.
    """
    if len(points) == 0:
        nothing = torch.zeros(0, dtype=torch.int64, device=points.device)
        return PointPairs(nothing, nothing)
    blocks = _find_blocks(points, strides)
    first, rows, columns = _rectangles(blocks, boxes)
    counts = (rows * columns).reshape(-1)  # (G B)
    # One number carries both answers: one host-device sync.
    total = int(torch.where(blocks.regular, counts.sum(), counts.new_full((), -1)))
    if total < 0:
        return _compare_all(points, boxes)
    # Cell (row, column) of a rectangle is first + row * width + column; its rank in the rectangle
    # is row * columns + column.
    begin = counts.cumsum(0) - counts
    skip = (blocks.width - columns).reshape(-1)
    rectangle = torch.repeat_interleave(counts, output_size=total)  # (K,)
    rank = torch.arange(total, device=points.device) - begin[rectangle]
    row = torch.div(rank, columns.reshape(-1)[rectangle], rounding_mode="floor")
    point = first.reshape(-1)[rectangle] + rank + row * skip[rectangle]
    box = torch.div(rectangle, MAX_BLOCKS, rounding_mode="floor")
    return PointPairs(point, box)


def _find_blocks(points: torch.Tensor, strides: torch.Tensor) -> _Blocks:
    """Cut the points into runs and check that each run is a grid."""
    num_points = len(points)
    x, y = points.unbind(dim=1)
    index = torch.arange(num_points, device=points.device)
    begins = torch.ones_like(x, dtype=torch.bool)
    begins[1:] = (strides[1:] != strides[:-1]) | (y[1:] < y[:-1])
    block = begins.cumsum(0) - 1  # (P,)
    few = block[-1] < MAX_BLOCKS
    block = block.clamp(max=MAX_BLOCKS - 1)

    ids = torch.arange(MAX_BLOCKS, device=points.device)
    start = torch.searchsorted(block, ids)
    end = torch.searchsorted(block, ids, right=True)
    first_row = y == y[start[block]]
    width = torch.zeros_like(start).index_add_(0, block, first_row.to(start.dtype)).clamp(min=1)

    offset = index - start[block]
    column = offset % width[block]
    steps = torch.ones_like(begins)
    new_row = column[1:] == 0
    steps[1:] = begins[1:] | torch.where(new_row, y[1:] > y[:-1], x[1:] > x[:-1])
    same_x = x == x[start[block] + column]
    same_y = y == y[index - column]
    full = (end - start) % width == 0
    regular = few & steps.all() & same_x.all() & same_y.all() & full.all()

    before = index < start[:, None]  # (B, P)
    inside = block == ids[:, None]
    low, high = (x.new_full((), v) for v in (-float("inf"), float("inf")))
    outside = torch.where(before, low, high)
    xs = torch.where(inside & first_row, x, outside)
    ys = torch.where(inside, y, outside)
    return _Blocks(start, width, xs, ys, regular)


def _rectangles(
    blocks: _Blocks, boxes: torch.Tensor
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """First point, number of rows and of columns of each box in each block, all (G, B)."""
    x1, y1, x2, y2 = (
        v.expand(MAX_BLOCKS, -1).contiguous() for v in boxes.t().contiguous().unbind(0)
    )
    # right=True: the first coordinate > the edge; right=False: the first one >= the edge.
    left = torch.searchsorted(blocks.xs, x1, right=True) - blocks.start[:, None]
    right = torch.searchsorted(blocks.xs, x2) - blocks.start[:, None]
    top = torch.searchsorted(blocks.ys, y1, right=True) - blocks.start[:, None]
    bottom = torch.searchsorted(blocks.ys, y2) - blocks.start[:, None]
    # The search over y counts points; rows have `width` of them.
    width = blocks.width[:, None]
    top = torch.div(top, width, rounding_mode="floor")
    bottom = torch.div(bottom, width, rounding_mode="floor")
    first = blocks.start[:, None] + top * width + left
    # The search puts NaN behind every coordinate, which would make a right edge of NaN reach beyond
    # the row, and pairs of points that do not exist.
    height = (bottom - top).masked_fill_(boxes.isnan().any(dim=1), 0)
    rows, columns = height.clamp_(min=0), (right - left).clamp(min=0)
    return first.t(), rows.t(), columns.t()


def _compare_all(points: torch.Tensor, boxes: torch.Tensor) -> PointPairs:
    """Compare all points with all boxes, so many boxes at a time that memory stays bounded."""
    x, y = points.unbind(dim=1)
    step = max(1, CHUNK_ELEMENTS // max(1, len(points)))
    found = [boxes.new_zeros((0, 2), dtype=torch.int64)]
    for begin in range(0, len(boxes), step):
        x1, y1, x2, y2 = boxes[begin : begin + step, :, None].unbind(dim=1)
        inside = (x > x1) & (x < x2) & (y > y1) & (y < y2)  # (step, P)
        pairs = inside.nonzero()
        pairs[:, 0] += begin
        found.append(pairs)
    box, point = torch.cat(found).unbind(dim=1)
    return PointPairs(point, box)
