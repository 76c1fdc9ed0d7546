"""Deterministic splits: every class in its share, near-duplicates on one side.

Shapes: N photographs, C classes, S splits.
"""

import hashlib
from typing import Dict, List, Optional, Sequence

import numpy as np

__all__ = ["stratified_split"]


def stratified_split(
    counts: np.ndarray,
    shares: Sequence[float],
    *,
    keys: Sequence[str],
    groups: Optional[Sequence[int]] = None,
) -> np.ndarray:
    """Distribute photographs among splits, the rarest class first.

    This is the iterative stratification of Sechidis et al. (2011), over groups of photographs
    that have to stay together. Nothing is drawn: the order of equals is that of a hash of their
    keys, so that neighbours in time don't land on one side together.

    Args:
        counts: (N, C) objects of each class in each photograph.
        shares: of the splits, which add up to 1.
        keys: a name of each photograph that stays the same when the folder moves.
        groups: a number for each photograph; those of one number stay together. Each by itself
            if not given.

    Returns:
        (N,) the number of each photograph's split
    """
    members = _members(len(counts), groups)
    order = sorted(range(len(members)), key=lambda g: _hash(min(keys[k] for k in members[g])))
    # (G, C + 1): the objects of a group, and its photographs.
    content = np.asarray(
        [[*counts[members[g]].sum(0), len(members[g])] for g in order], dtype=np.float64
    ).reshape(len(order), -1)
    wanted = np.outer(shares, content.sum(0))  # (S, C + 1), what each split still lacks
    chosen = np.full(len(order), -1)
    while (chosen < 0).any():
        free = np.flatnonzero(chosen < 0)
        left = (content[free, :-1] > 0).sum(0)
        if left.any():
            column = int(np.where(left > 0, left, left.max() + 1).argmin())
            free = free[content[free, column] > 0]
            # Large groups first: they are the hardest to place.
            free = free[np.argsort(-content[free, column], kind="stable")]
        else:
            column = content.shape[1] - 1
        for g in free:
            # What is lacked most of this class; then of photographs; then the first split.
            lack = wanted[:, column]
            ties = np.flatnonzero(lack >= lack.max() - 1e-9)
            best = ties[np.argmax(wanted[ties, -1])]
            chosen[g] = best
            wanted[best] -= content[g]
    result = np.zeros(len(counts), dtype=np.int64)
    for place, group in enumerate(order):
        result[members[group]] = chosen[place]
    return result


def _members(count: int, groups: Optional[Sequence[int]]) -> List[List[int]]:
    if groups is None:
        return [[k] for k in range(count)]
    found: Dict[int, List[int]] = {}
    for k, group in enumerate(groups):
        found.setdefault(int(group), []).append(k)
    return list(found.values())


def _hash(key: str) -> str:
    return hashlib.sha1(key.encode("utf-8", "surrogateescape")).hexdigest()
