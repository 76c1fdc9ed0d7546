"""LVIS' groups of classes by how many training images show them."""

from typing import Dict, List, Sequence

__all__ = ["FREQUENCY_GROUPS", "frequency_group", "frequency_groups"]

#: Group -> the largest number of images of its classes.
FREQUENCY_GROUPS = {"rare": 10, "common": 100, "frequent": float("inf")}


def frequency_group(image_count: float) -> str:
    """The group of a class that is in so many training images."""
    return next(name for name, most in FREQUENCY_GROUPS.items() if image_count <= most)


def frequency_groups(image_counts: Sequence[float]) -> Dict[str, List[int]]:
    """Class indices by group, for all groups.

    Args:
        image_counts: number of training images with each class.
    """
    groups: Dict[str, List[int]] = {name: [] for name in FREQUENCY_GROUPS}
    for index, count in enumerate(image_counts):
        groups[frequency_group(count)].append(index)
    return groups
