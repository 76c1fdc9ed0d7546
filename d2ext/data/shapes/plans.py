"""Which classes are in which image: Zipf's law for training, a flatter one for validation.

Shape letters: N images, C classes.
"""

from typing import Dict, List, Sequence

import numpy as np

__all__ = ["balanced_image_counts", "plan_images", "zipf_image_counts"]

# Zipf's law in Mandelbrot's form, (rank + offset)^-exponent: with these, sixty classes in 1500
# images spread over all three groups of LVIS (12 frequent, 30 common, 18 rare).
_OFFSET, _EXPONENT = 8.0, 2.6


def zipf_image_counts(num_classes: int, num_images: int) -> List[int]:
    """Number of training images of each class, the most frequent class first, at least 2."""
    rank = np.arange(num_classes)
    share = 0.6 * ((1 + _OFFSET) / (rank + 1 + _OFFSET)) ** _EXPONENT
    return np.maximum(np.round(share * num_images), 2).astype(int).tolist()


def balanced_image_counts(num_classes: int, num_images: int) -> List[int]:
    """Number of validation images of each class: the same order, far flatter.

    A rare class needs enough objects to measure its AP; in 500 images it has 16 or more.
    """
    zipf = np.array(zipf_image_counts(num_classes, num_images), dtype=np.float64)
    return np.maximum(np.round(0.2 * num_images * (zipf / zipf[0]) ** 0.35), 1).astype(int).tolist()


def plan_images(
    rng: np.random.Generator,
    image_counts: Sequence[int],
    num_images: int,
    num_objects: Sequence[int],
) -> List[List[int]]:
    """Spread the classes over the images.

    Args:
        rng: the source of randomness.
        image_counts: (C,) number of images that each class must be in.
        num_images: N.
        num_objects: least and largest number of objects in an image.

    Returns:
        list[list[int]]: N lists of class indices, one entry an object.
    """
    low, high = num_objects
    images: List[Dict[int, int]] = [{} for _ in range(num_images)]
    load = np.zeros(num_images)
    for category in np.argsort(-np.asarray(image_counts), kind="stable").tolist():
        # Emptier images first, with some luck: neither empty nor overfull images come out.
        luck = load + rng.exponential(2.5, num_images) + np.where(load >= high, np.inf, 0.0)
        for index in np.argsort(luck, kind="stable")[: image_counts[category]]:
            images[index][category] = 1
            load[index] += 1
    plans = []
    for counts in images:
        chosen = list(counts) or [0]
        extra = rng.geometric(0.72, len(chosen)) - 1
        objects = np.repeat(chosen, 1 + np.minimum(extra, 3)).tolist()
        objects += [chosen[0]] * (low - len(objects))
        # One of each first, so that the limit only costs repetitions.
        plans.append((chosen + _without(objects, chosen))[:high])
    return plans


def _without(objects: List[int], taken: List[int]) -> List[int]:
    rest = list(objects)
    for item in taken:
        rest.remove(item)
    return rest
