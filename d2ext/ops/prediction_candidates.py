"""The steps that assigners which look at predictions share: candidates, choice, conflicts.

Such an assigner lets each object choose its best priors by some measure, and then settles for each
prior who gets it. Only priors near an object can be chosen, so those of each image are packed into
V columns first, and (object, column) pairs are measured in blocks of bounded size. One host-device
sync in all: for the numbers of objects and of candidates.

Shapes: N images, R priors, C classes, G objects of the whole batch, V columns (the most candidates
of an image), n images and K ranks of a block, S priors that an object may choose at most.
"""

from typing import Any, Callable, List, NamedTuple, Optional, Tuple

import torch

from . import host
from .object_blocks import BestObject, ObjectBlock, ObjectBlocks
from .precision import full_precision

__all__ = ["Candidates", "Choice", "PredictionBatch", "choose", "widened"]

# Pairs measured at a time on a CPU: some twenty temporaries, which must stay in its caches.
_CPU_PAIRS = 1 << 19
_GPU_PAIRS = 1 << 23


class PredictionBatch(NamedTuple):
    """The arguments of an assigner, checked, in one floating-point type."""

    scores: torch.Tensor  # (N, R, C), probabilities or logits
    boxes: torch.Tensor  # (N, R, 4)
    points: torch.Tensor  # (R, 2)
    gt_boxes: torch.Tensor  # (G, 4)
    gt_classes: torch.Tensor  # (G,), within 0 ... C - 1
    gt_image: torch.Tensor  # (G,), ascending

    @classmethod
    def make(
        cls,
        scores: torch.Tensor,
        boxes: torch.Tensor,
        points: torch.Tensor,
        gt_boxes: torch.Tensor,
        gt_classes: torch.Tensor,
        gt_image: torch.Tensor,
    ) -> "PredictionBatch":
        """Takes what :func:`d2ext.ops.prediction_assignment.task_aligned_assignment` takes."""
        if scores.dim() != 3 or boxes.shape != (*scores.shape[:2], 4):
            raise ValueError(
                "An assigner that sees predictions takes scores (N, R, C) and boxes (N, R, 4), "
                f"not {tuple(scores.shape)} and {tuple(boxes.shape)}."
            )
        num_classes = scores.shape[2]
        classes = gt_classes.long().clamp(0, num_classes - 1)
        # Any other label would read the score of a neighbouring prior.
        if host.asking_is_free(classes) and not torch.equal(classes, gt_classes.long()):
            raise ValueError(
                f"An object has the label {int(gt_classes[classes != gt_classes][0])}, but the "
                f"detector has {num_classes} classes, 0 to {num_classes - 1}; set its NUM_CLASSES "
                "to the number of the data set, or correct the label."
            )
        scores = full_precision(scores)
        boxes, points, gt_boxes = (x.to(scores.dtype) for x in (boxes, points, gt_boxes))
        return cls(scores, boxes, points, gt_boxes.reshape(-1, 4), classes, gt_image.long())

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to assign."""
        return len(self.gt_boxes) == 0 or self.num_priors == 0

    @property
    def num_images(self) -> int:
        return self.scores.shape[0]

    @property
    def num_priors(self) -> int:
        return self.scores.shape[1]


class Candidates(NamedTuple):
    """The priors of each image that objects choose from, in columns.

    Attributes:
        prior: (N, V) int64, ascending in a row; R where an image has fewer candidates.
        counts: objects of each image, N numbers.
        everything: whether column v is prior v.
    """

    prior: torch.Tensor
    counts: List[int]
    everything: bool = False

    @classmethod
    def all_of(cls, batch: PredictionBatch) -> "Candidates":
        """Every prior; the sync is for the objects of each image."""
        index = torch.arange(batch.num_priors, device=batch.points.device)
        prior = index.expand(batch.num_images, -1)
        return cls(prior, _objects_of_images(batch).tolist(), everything=True)

    @classmethod
    def near(cls, batch: PredictionBatch, test: Callable[[slice], torch.Tensor]) -> "Candidates":
        """Priors that pass a test with any object of their image.

        Args:
            batch: the batch.
            test: gives (g, R) bool for a slice of g objects.
        """
        num_objects, num_priors = len(batch.gt_boxes), batch.num_priors
        hits = batch.points.new_zeros((batch.num_images, num_priors), dtype=torch.float32)
        step = max(1, _block_pairs(hits.device) // max(num_priors, 1))
        for start in range(0, num_objects, step):
            rows = slice(start, start + step)
            hits.index_add_(0, batch.gt_image[rows], test(rows).to(hits.dtype))
        near = hits > 0
        table = torch.stack([near.sum(dim=1), _objects_of_images(batch)])
        found, counts = table.tolist()
        columns = max(found, default=0)
        # Written by rank; what is not near goes into one more column, which is cut off.
        rank = (near.cumsum(dim=1) - 1).masked_fill_(~near, columns)
        index = torch.arange(num_priors, device=rank.device).expand_as(rank)
        prior = rank.new_full((len(rank), columns + 1), num_priors).scatter_(1, rank, index)
        return cls(prior[:, :columns], counts)

    def rows(self, batch: PredictionBatch) -> torch.Tensor:
        """(N, V), the candidates in the flattened (N, R); padding is the image's last prior."""
        image = torch.arange(len(self.prior), device=self.prior.device)[:, None]
        return self.prior.clamp(max=batch.num_priors - 1) + image * batch.num_priors


class Choice(NamedTuple):
    """What objects chose, and who would get each candidate. Slots count (N, V) row by row.

    Attributes:
        slot: (G, S) int64, chosen candidates, best first.
        kept: (G, S) bool, whether the object keeps that one.
        value: (G, S), their measure.
        favourite: (N V,) int64, the object of the highest claim to each candidate, if any claimed.
    """

    slot: torch.Tensor
    kept: torch.Tensor
    value: torch.Tensor
    favourite: torch.Tensor


class Pairs(NamedTuple):
    """What a measure may look at: n images with K ranks of objects and V columns, broadcasting.

    Attributes:
        boxes, point: columns of the candidates, (4, n, 1, V) and (2, n, 1, V).
        gt: columns of the objects, (4, n, K, 1).
        score: (n, K, V), the candidates' scores of the objects' classes.
        others: (n, 1, V), see ``choose``.
        prior: (n, 1, V) int64, index of the candidate.
        exists: (n, 1, V) bool, False in padding.
    """

    boxes: torch.Tensor
    point: torch.Tensor
    gt: torch.Tensor
    score: torch.Tensor
    others: Any  # a tensor wherever the measure reads it
    prior: torch.Tensor
    exists: torch.Tensor


# (pairs) -> measure (n, K, V), the larger the better; how many an object may have, (n, K), or None
# for S; and the claim to a prior (n, K, V) that decides conflicts, or None if nobody asks.
Measured = Tuple[torch.Tensor, Optional[torch.Tensor], Optional[torch.Tensor]]
Measure = Callable[[Pairs], Measured]
# (scores (n, V, C)) -> loss of each as that of a negative.
Negative = Callable[[torch.Tensor], torch.Tensor]


def choose(
    batch: PredictionBatch,
    candidates: Candidates,
    most: int,
    floor: float,
    measure: Measure,
    negative: Optional[Negative] = None,
) -> Choice:
    """Let each object choose its best candidates.

    Of candidates with equal measures the one with the lower index is chosen, of objects with equal
    claims the first one is the favourite.

    Args:
        batch: the batch, with at least one object and one candidate.
        candidates: what there is to choose from.
        most: S, if there are as many candidates.
        floor: only measures above it count.
        measure: see above.
        negative: loss of a score as that of a negative; its sum over the classes is the ``others``
            that a measure sees.
    """
    prior, counts = candidates.prior, candidates.counts
    num_objects, columns = len(batch.gt_boxes), prior.shape[1]
    most = min(most, columns)
    limit = _block_pairs(prior.device)
    blocks = ObjectBlocks(batch.gt_boxes, counts, columns, limit)
    best = BestObject(blocks, floor=-float("inf"))
    # One row more than objects: what the padding of a block writes to.
    slot = prior.new_zeros((num_objects + 1, most))
    kept = torch.zeros_like(slot, dtype=torch.bool)
    value = batch.boxes.new_zeros(slot.shape)
    order = range(len(counts)) if blocks.order is None else blocks.order
    image = torch.tensor(list(order)).to(prior.device, non_blocking=True)
    views = _Views(batch, candidates, None if blocks.order is None else image, negative)
    for block in blocks:
        measured, number, claim = measure(views.pairs(batch, block))
        measured = measured.nan_to_num_(nan=floor)
        if not candidates.everything:
            measured.masked_fill_(~views.exists[: len(measured), None], floor)
        top = _top(measured, most, negative_too=floor < 0)
        top_value = measured.gather(2, top)
        wanted = top_value > floor
        if number is not None:
            wanted &= torch.arange(most, device=top.device) < number[:, :, None]
        rows = torch.where(block.valid, block.index, num_objects).flatten()
        begin = image[: len(top), None, None] * columns
        slot[rows] = (top + begin).flatten(0, 1)
        kept[rows] = wanted.flatten(0, 1)
        value[rows] = top_value.flatten(0, 1)
        if claim is not None:
            claim = claim.nan_to_num(nan=-float("inf"))
            claim.masked_fill_(~block.valid[:, :, None], -float("inf"))
            best.update(block, claim, block.buffers[0])
    favourite = best.result()[1].flatten()
    return Choice(slot[:-1], kept[:-1], value[:-1], favourite)


class _Views:
    """Candidates of the images in the order of the blocks, as columns that broadcast."""

    def __init__(
        self,
        batch: PredictionBatch,
        candidates: Candidates,
        order: Optional[torch.Tensor],
        negative: Optional[Negative],
    ):
        prior, row, scores = candidates.prior, candidates.rows(batch), batch.scores
        if order is not None:
            prior, row = prior[order], row[order]
        if order is not None or not candidates.everything:
            scores = scores.reshape(-1, scores.shape[2])[row]
        self.exists = prior < batch.num_priors
        self.prior = prior.clamp(max=batch.num_priors - 1)
        self.scores = scores
        self.others = None if negative is None else negative(scores).sum(dim=2)
        boxes = batch.boxes.reshape(-1, 4)[row]
        self.boxes = boxes.permute(2, 0, 1).contiguous()[:, :, None]
        self.point = batch.points[self.prior].permute(2, 0, 1).contiguous()[:, :, None]

    def pairs(self, batch: PredictionBatch, block: ObjectBlock) -> Pairs:
        n, ranks = block.index.shape
        classes = batch.gt_classes[block.index][:, None].expand(-1, self.scores.shape[1], ranks)
        return Pairs(
            boxes=self.boxes[:, :n],
            point=self.point[:, :n],
            gt=block.boxes.permute(2, 0, 1)[..., None],
            # Candidate by candidate, whose scores lie together in memory.
            score=self.scores[:n].gather(2, classes).transpose(1, 2).contiguous(),
            others=None if self.others is None else self.others[:n, None],
            prior=self.prior[:n, None],
            exists=self.exists[:n, None],
        )


def _top(measured: torch.Tensor, most: int, *, negative_too: bool) -> torch.Tensor:
    """(n, K, S), columns of the largest entries of (n, K, V), best first.

    ``topk`` takes any of several equals. So the index is made part of the key: floats compare as
    their bits do, once those of negative ones are turned over, and these go above the index in one
    64 bit integer. A double loses its last digits to the index.
    """
    columns = measured.shape[-1]
    single = measured.dtype == torch.float32
    bits = measured.view(torch.int32 if single else torch.int64)
    if negative_too:
        sign, rest = (31, (1 << 31) - 1) if single else (63, (1 << 63) - 1)
        bits = (bits >> sign).bitwise_and_(rest).bitwise_xor_(bits)
    low = (1 << (32 if single else columns.bit_length())) - 1
    key = bits.to(torch.int64).bitwise_left_shift_(32) if single else bits.bitwise_and(~low)
    key.bitwise_or_(torch.arange(low, low - columns, -1, device=bits.device))
    return low - (key.topk(most, dim=-1).values & low)


def widened(boxes: torch.Tensor, min_side: float) -> torch.Tensor:
    """Boxes (G, 4) whose sides are at least ``min_side``, grown about their centres."""
    centre, size = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    small = size < min_side
    low = torch.where(small, centre - min_side / 2, boxes[:, :2])
    return torch.cat([low, torch.where(small, centre + min_side / 2, boxes[:, 2:])], dim=1)


def _objects_of_images(batch: PredictionBatch) -> torch.Tensor:
    """(N,) int64. Not ``bincount``, which would ask for the largest entry."""
    counts = batch.gt_image.new_zeros(batch.num_images)
    return counts.index_add_(0, batch.gt_image, torch.ones_like(batch.gt_image))


def _block_pairs(device: torch.device) -> int:
    return _CPU_PAIRS if device.type == "cpu" else _GPU_PAIRS
