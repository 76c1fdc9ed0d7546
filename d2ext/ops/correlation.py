"""Correlation of scores and overlaps as a loss (Kahraman et al., AAAI 2023).

Shapes: K positive samples.
"""

from typing import List

import torch

from .precision import full_precision

__all__ = ["correlation_loss", "soft_ranks"]

KINDS = ("concordance", "pearson", "spearman")


def correlation_loss(
    scores: torch.Tensor, iou: torch.Tensor, *, kind: str = "concordance", strength: float = 1.0
) -> torch.Tensor:
    """1 - the correlation of the positives' scores with their overlaps.

    0 without gradient for fewer than 2 positives, and where scores or overlaps are all the same.

    Args:
        scores: (K,) scores of the objects' classes, in [0, 1].
        iou: (K,) overlaps of the predicted boxes, which get no gradient.
        kind: "pearson", "concordance" (which also needs equal means and variances), or "spearman",
            Pearson's of the soft ranks.
        strength: regularisation of the soft ranks. At 1 or above the ranks of numbers in [0, 1] are
            these numbers and a constant, so that the loss is Pearson's.

    Returns:
        a scalar.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, not '{kind}'.")
    with torch.autocast(device_type=scores.device.type, enabled=False):
        scores = full_precision(scores)
        iou = iou.detach().to(scores.dtype).clamp(min=1e-6)
        if len(scores) < 2:
            return scores.sum() * 0.0
        plain = scores.detach()
        # Not by the standard deviations: rounding makes those of equal numbers a little noise.
        flat = (plain.amax() == plain.amin()) | (iou.amax() == iou.amin())
        if kind == "spearman" and strength < 1:
            scores, iou = soft_ranks(scores, strength), soft_ranks(iou, strength)
        # Constants have an infinite slope at a deviation of 0: they are kept out of the graph.
        other = torch.arange(len(scores), device=scores.device).to(scores.dtype)
        loss = _correlation_loss(
            torch.where(flat, other, scores), torch.where(flat, other, iou), kind
        )
        return loss.masked_fill(flat, 0.0)


def _correlation_loss(scores: torch.Tensor, iou: torch.Tensor, kind: str) -> torch.Tensor:
    mean_s, mean_u = scores.mean(), iou.mean()
    s, u = scores - mean_s, iou - mean_u
    if kind == "concordance":
        apart = (mean_s - mean_u).square()
        # Of samples, as in the authors' code; Lin's coefficient has those of populations.
        spread = (s.square().sum() + u.square().sum()) / (len(s) - 1)
        return 1 - 2 * (s * u).sum() / (len(s) - 1) / (spread + apart)
    return 1 - (s * u).sum() / (s.square().sum().sqrt() * u.square().sum().sqrt())


def soft_ranks(values: torch.Tensor, strength: float) -> torch.Tensor:
    """Ranks 1 ... K with a gradient (Blondel et al., 2020): ``values / strength`` projected.

    The projection on the permutahedron of (1 ... K) is an isotonic regression, whose pools are
    found one after the other on the host. Neighbours closer than ``strength`` share a pool; only
    there is a gradient.

    Args:
        values: (K,).
        strength: about the gap of values that is to count as a rank, 1 / K or less for real ranks.
    """
    if not strength > 0:
        raise ValueError(f"strength must be above 0, not {strength}.")
    scaled = values / strength
    ordered, order = scaled.sort(descending=True, stable=True)
    ranks = torch.arange(len(values), 0, -1, device=values.device).to(values.dtype)
    gap = ordered - ranks
    pool = torch.tensor(_pools(gap.detach().tolist()), dtype=torch.int64, device=values.device)
    # Means of pools, which never increase, are the regression.
    size = torch.zeros_like(gap).index_add_(0, pool, torch.ones_like(gap)).clamp(min=1)
    means = torch.zeros_like(gap).index_add(0, pool, gap) / size
    return torch.zeros_like(gap).index_add(0, order, ordered - means[pool])


def _pools(values: List[float]) -> List[int]:
    """The pool of each number in the regression by a sequence that never increases."""
    sums, sizes = [], []
    for value in values:
        sums.append(value)
        sizes.append(1)
        while len(sums) > 1 and sums[-1] * sizes[-2] > sums[-2] * sizes[-1]:
            last, size = sums.pop(), sizes.pop()
            sums[-1] += last
            sizes[-1] += size
    return [pool for pool, size in enumerate(sizes) for _ in range(size)]
