"""The stratified split: shares of every class, groups together, nothing drawn."""

import numpy as np
import pytest

from d2ext.data.sources.splits import stratified_split


def data(seed, images=300, classes=12):
    """Counts with a long tail: the last class is in about one image of a hundred."""
    rng = np.random.RandomState(seed)
    rates = np.geomspace(1.5, 0.01, classes)
    return rng.poisson(rates, (images, classes)), [f"{k:04}.jpg" for k in range(images)]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shares", [(0.8, 0.2), (0.7, 0.2, 0.1)])
def test_every_class_has_its_share(seed, shares):
    counts, keys = data(seed)
    chosen = stratified_split(counts, shares, keys=keys)
    images = np.bincount(chosen, minlength=len(shares)) / len(counts)
    assert np.abs(images - shares).max() < 0.03
    for k in range(counts.shape[1]):
        total = counts[:, k].sum()
        parts = [counts[chosen == s, k].sum() for s in range(len(shares))]
        assert np.abs(np.array(parts) - np.array(shares) * total).max() <= max(2, 0.06 * total)
        if (counts[:, k] > 0).sum() >= 2:
            assert parts[0] > 0


def test_the_order_of_the_files_does_not_matter():
    counts, keys = data(0)
    order = np.random.RandomState(1).permutation(len(keys))
    first = stratified_split(counts, (0.8, 0.2), keys=keys)
    again = stratified_split(counts[order], (0.8, 0.2), keys=[keys[k] for k in order])
    assert (first[order] == again).all()


def test_groups_stay_together():
    counts, keys = data(2)
    groups = np.arange(len(keys)) // 7
    chosen = stratified_split(counts, (0.6, 0.4), keys=keys, groups=groups)
    for group in np.unique(groups):
        assert len(set(chosen[groups == group])) == 1
    assert abs((chosen == 0).mean() - 0.6) < 0.05


def test_images_without_objects_are_split_too():
    chosen = stratified_split(np.zeros((50, 2)), (0.8, 0.2), keys=[str(k) for k in range(50)])
    assert (chosen == 0).sum() == 40
