"""Random samples of a batch of label vectors, the same that Detectron2 draws image by image.

Shapes: N images, R anchors, M = N * R, K of them sampled positives.
"""

from typing import List

import torch

__all__ = ["SampledLabels", "index_of_true", "subsample_rows"]


class SampledLabels(list):
    """Labels of N images as Detectron2 passes them on, and what is already known about them.

    Without it, the losses would have to ask the device again how many samples there are and where.

    Attributes:
        positives: (K,) the positive entries of all labels in a row, ascending.
        num_negatives: how many entries are 0.
    """

    def __init__(self, labels: torch.Tensor, positives: torch.Tensor, num_negatives: int):
        super().__init__(labels.unbind())
        self.positives = positives
        self.num_negatives = num_negatives


def subsample_rows(labels: torch.Tensor, num_samples: int, positive_fraction: float):
    """Keep a random sample of each row and set the rest to -1, in place.

    The random numbers are those of Detectron2's ``subsample_labels``, called for one row after the
    other: as many permutations, of the same lengths, in the same order. They are what is left of
    the loop over images. What they permute is never listed: the j-th positive of a row is looked up
    in a running count: one host-device sync, for the counts, and not four an image.

    Args:
        labels: (N, R), 1 object, 0 background, -1 ignored.
        num_samples: samples of a row.
        positive_fraction: the most of them that are positive.
    """
    num_images, num_anchors = labels.shape
    flat = labels.flatten()
    running = torch.stack([flat == 1, flat == 0]).cumsum(dim=1)  # (2, M)
    ends = running[:, num_anchors - 1 :: num_anchors].tolist()
    ranks: List[List[torch.Tensor]] = [[], []]
    before = [0, 0]
    for positive_end, negative_end in zip(*ends):
        num_pos, num_neg = positive_end - before[0], negative_end - before[1]
        take_pos = min(num_pos, int(num_samples * positive_fraction))
        take_neg = min(num_neg, num_samples - take_pos)
        for kind, (total, take) in enumerate(((num_pos, take_pos), (num_neg, take_neg))):
            rank = torch.randperm(total, device=labels.device)[:take]
            ranks[kind].append(rank + (before[kind] + 1))
        before = [positive_end, negative_end]
    positives, negatives = (
        torch.searchsorted(row, torch.cat(rank)) for row, rank in zip(running, ranks)
    )
    labels.fill_(-1)
    flat = labels.view(-1)
    flat.index_fill_(0, positives, 1).index_fill_(0, negatives, 0)
    return SampledLabels(labels, positives.sort().values, len(negatives))


def index_of_true(mask: torch.Tensor, count: int) -> torch.Tensor:
    """(count,) indices of the true entries of a vector that is known to have ``count`` of them.

    Unlike ``nonzero`` it needs no host-device sync for the number.
    """
    ranks = torch.arange(1, count + 1, device=mask.device)
    return torch.searchsorted(mask.cumsum(dim=0), ranks)
