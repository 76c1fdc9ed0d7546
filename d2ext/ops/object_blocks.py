"""Dense (object, prior) matrices in blocks of bounded size.

A matrix over all objects and priors needs gigabytes on a crowded image, and on a CPU fresh memory
costs more than the arithmetic done in it. So objects are taken a few ranks at a time (the first
objects of all images, then the next ones, ...), always against all priors, in buffers that every
block reuses. A block sees each of its objects complete, so that the best prior of an object needs
no second pass. How many blocks there are depends on the size of the matrix alone: one if it is
small.

Shapes: N images, n images of a block, K ranks of a block, G objects, R priors.
"""

from itertools import accumulate
from typing import Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch

__all__ = ["BestObject", "ObjectBlock", "ObjectBlocks", "pairs_of_a_block"]

# Entries of a buffer. On a CPU, 8 MB: larger ones are up to three times slower, because the system
# maps them again in every step. On a GPU, 64 MB, so that a block keeps it busy.
_CPU_PAIRS = 1 << 21
_GPU_PAIRS = 1 << 24


def pairs_of_a_block(device: torch.device, block_pairs: Optional[int]) -> int:
    """How many (object, prior) pairs a block may have: as given, else by the device."""
    if block_pairs is not None:
        return block_pairs
    return _CPU_PAIRS if device.type == "cpu" else _GPU_PAIRS


class ObjectBlock(NamedTuple):
    """The objects of ranks [first, first + K) in the first n images of an order.

    Attributes:
        boxes: (n, K, 4); zeros where an image has fewer objects.
        valid: (n, K) bool, whether there is such an object. One whose box has a NaN is not: its IoU
            of 0 with every prior would make each of them its low-quality match.
        index: (n, K) int64, the object counted over the batch, a valid index everywhere.
        buffers: three tensors (n, K, R) to compute in; their content is undefined.
    """

    boxes: torch.Tensor
    valid: torch.Tensor
    index: torch.Tensor  # type: ignore[assignment]  # hides the method of tuples
    buffers: Tuple[torch.Tensor, ...]


class ObjectBlocks:
    """The objects of a batch that has at least one, block after block.

    If several blocks are needed, images are ordered by their number of objects, so that those that
    take part in a block come first and crowded images do not make the others pay for padding.
    """

    def __init__(
        self,
        boxes: torch.Tensor,
        counts: Sequence[int],
        num_priors: int,
        block_pairs: Optional[int] = None,
    ):
        """
        Args:
            boxes: (G, 4), image after image.
            counts: objects of each image, N numbers.
            num_priors: R.
            block_pairs: the most pairs of a block, unless N * R is more already. By default what
                suits the device.
        """
        max_pairs = pairs_of_a_block(boxes.device, block_pairs)
        self.order: Optional[List[int]] = None
        self.plan = [(len(counts), 0, max(counts))]
        if len(counts) * max(counts) * num_priors > max_pairs:
            self.order = sorted(range(len(counts)), key=lambda i: -counts[i])
            self.plan = _plan([counts[i] for i in self.order], num_priors, max_pairs)
        self.boxes = boxes
        self.num_priors = num_priors
        order = self.order or range(len(counts))
        starts = list(accumulate(counts, initial=0))
        table = torch.tensor([[starts[i] for i in order], [counts[i] for i in order]])
        self.starts, self.counts = table.to(boxes.device, non_blocking=True).unsqueeze(2)

    def __iter__(self) -> Iterator[ObjectBlock]:
        boxes, num_priors = self.boxes, self.num_priors
        undefined = boxes.isnan().any(dim=1)
        size = max(images * ranks for images, _, ranks in self.plan)
        buffers = boxes.new_empty((3, size * num_priors))
        for images, first, ranks in self.plan:
            rank = torch.arange(first, first + ranks, device=boxes.device)
            index = (self.starts[:images] + rank).clamp_(max=len(boxes) - 1)
            valid = (rank < self.counts[:images]) & ~undefined[index]
            shape = (images, ranks, num_priors)
            yield ObjectBlock(
                boxes=boxes[index].masked_fill_(~valid[:, :, None], 0.0),
                valid=valid,
                index=index,
                buffers=tuple(b[: images * ranks * num_priors].view(shape) for b in buffers),
            )

    def in_batch_order(self, rows: torch.Tensor) -> torch.Tensor:
        """Rows of images as the blocks order them, put back into the order of the batch."""
        if self.order is None:
            return rows
        result = torch.empty_like(rows)
        result[torch.tensor(self.order).to(rows.device, non_blocking=True)] = rows
        return result


def _plan(counts: List[int], num_priors: int, max_pairs: int) -> List[Tuple[int, int, int]]:
    """Blocks as (images, first rank, ranks), for counts in descending order."""
    plan, first, images = [], 0, len(counts)
    while first < counts[0]:
        while counts[images - 1] <= first:
            images -= 1
        ranks = max(1, min(max_pairs // (images * num_priors), counts[0] - first))
        plan.append((images, first, ranks))
        first += ranks
    return plan


class BestObject:
    """For each prior the object with the highest score so far, the first one of equals."""

    def __init__(self, blocks: ObjectBlocks, floor: float):
        """
        Args:
            blocks: the objects.
            floor: only a score above it counts; elsewhere the image's first object stays.
        """
        boxes = blocks.boxes
        shape = (len(blocks.starts), blocks.num_priors)
        self.blocks = blocks
        self.score = boxes.new_full(shape, floor)
        # An image without objects may start after the last one.
        self.index = blocks.starts.clamp(max=len(boxes) - 1).expand(shape).contiguous()

    def update(self, block: ObjectBlock, score: torch.Tensor, spare: torch.Tensor) -> None:
        """Take in the scores (n, K, R) of a block; ``spare`` is another buffer of that shape.

        On a CPU ``max`` with indices over a middle dimension is some ten times slower than without;
        hence the highest weight, K for the first object to 1 for the last, among the equals.
        """
        images, ranks = block.index.shape
        top = score.amax(dim=1)
        torch.eq(score, top[:, None], out=spare)
        weights = torch.arange(ranks, 0, -1, dtype=score.dtype, device=score.device)
        first = ranks - spare.mul_(weights[:, None]).amax(dim=1).long()
        best, index = self.score[:images], self.index[:images]
        torch.where(top > best, block.index[:, :1] + first, index, out=index)
        torch.maximum(best, top, out=best)

    def result(self) -> Tuple[torch.Tensor, torch.Tensor]:
        """Scores and objects counted over the batch, (N, R) each, in the order of the batch."""
        return self.blocks.in_batch_order(self.score), self.blocks.in_batch_order(self.index)
