"""Augmentation beyond Detectron2's: presets, colours, mosaic, mixup, copy-paste, Albumentations.

:mod:`.mapper` turns dataset dicts into samples with them; everything is drawn from NumPy's state,
which the loader seeds for each sample, so that a resumed run sees the same pictures.
"""

from .mapper import AugmentingMapper, Mixing, augmentation_of

__all__ = ["AugmentingMapper", "Mixing", "augmentation_of"]
