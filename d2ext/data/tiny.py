"""Tiny data sets for tests and examples, drawn in a moment and gone afterwards."""

import contextlib
import os
import tempfile
import uuid
from typing import Iterator, Optional

from detectron2.data import DatasetCatalog, MetadataCatalog

from .builtin import register_shapes
from .shapes import (
    SceneConfig,
    ShapesSpec,
    common_classes,
    long_tail_classes,
    write_dataset,
)
from .store import publish

__all__ = ["tiny_dataset"]


@contextlib.contextmanager
def tiny_dataset(
    form: str = "coco",
    num_images: int = 6,
    image_size: int = 96,
    num_classes: int = 3,
    root: Optional[str] = None,
    seed: int = 0,
) -> Iterator[str]:
    """Draw a tiny data set of shapes and register it while the context lasts.

    In the LVIS form the classes belong to the groups "r", "c", "f" in turn, whatever the number
    of their images, so that every group is measured.

    Example:

    .. code-block:: python

        with tiny_dataset("coco") as name:
            cfg.DATASETS.TRAIN = (name,)

    Args:
        form: "coco", "lvis" or "voc".
        num_images: number of images, at least 2.
        image_size: their width and height; a multiple of 16 keeps it exact.
        num_classes: number of classes, at most 60.
        root: an existing folder to draw into; a temporary one if not given. What is drawn is
            deleted at the end either way.
        seed: another seed gives other images.

    Yields:
        str: the name of the data set in Detectron2's catalogs, different each time.
    """
    if form not in ("coco", "lvis", "voc"):
        raise ValueError(f"Unknown form '{form}'; choose coco, lvis or voc.")
    if num_images < 2:
        raise ValueError("A tiny data set needs at least 2 images; raise num_images.")
    pool = common_classes() if num_classes <= 20 else long_tail_classes()
    if not 1 <= num_classes <= len(pool):
        raise ValueError(f"num_classes must be 1 to {len(pool)}, but is {num_classes}.")
    classes = tuple(pool[:: len(pool) // num_classes][:num_classes])
    name = f"d2ext_tiny_{form}_{uuid.uuid4().hex[:12]}"
    spec = ShapesSpec(
        folder=name,
        form=form,
        classes=classes,
        splits=(("train", num_images),),
        scene=SceneConfig(mean_objects=4.0, num_objects=(2, 8)).for_image_size(image_size),
        groups=tuple("rcf"[i % 3] for i in range(num_classes)) if form == "lvis" else (),
        seed=seed,
    )
    with tempfile.TemporaryDirectory(prefix="d2ext_", dir=root) as parent:
        folder = os.path.join(parent, name)
        publish(folder, spec.stamp(), lambda path: write_dataset(spec, path, progress=False))
        register_shapes(spec, "train", name, folder)
        if form == "lvis":
            typical = {"r": 5, "c": 50, "f": 500}
            MetadataCatalog.get(name).class_image_count = [
                {"id": i + 1, "image_count": typical[g]} for i, g in enumerate(spec.groups)
            ]
        try:
            yield name
        finally:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
