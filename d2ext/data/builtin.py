"""The built-in data sets, registered under Detectron2's catalogs and drawn on first use."""

import functools
import os
from typing import Any, Callable, Dict, List

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.pascal_voc import load_voc_instances

from .checks.json_sets import JsonSet
from .shapes import ShapesSpec, common_classes, long_tail_classes, write_dataset
from .store import dataset_folder, publish

__all__ = ["BUILTIN_SHAPES", "register_builtin_shapes", "register_shapes"]

# In alphabetical order, as in LVIS, so that ids say nothing about frequency.
_LONG_TAIL = long_tail_classes()
_RANKS = tuple(sorted(range(len(_LONG_TAIL)), key=lambda rank: _LONG_TAIL[rank].name))

BUILTIN_SHAPES: Dict[str, ShapesSpec] = {
    spec.folder: spec
    for spec in (
        ShapesSpec(
            folder="d2ext_shapes",
            form="coco",
            classes=tuple(common_classes()),
            splits=(("train", 2000), ("val", 500)),
            seed=1,
        ),
        ShapesSpec(
            folder="d2ext_shapes_lt",
            form="lvis",
            classes=tuple(_LONG_TAIL[rank] for rank in _RANKS),
            splits=(("train", 1500), ("val", 500)),
            ranks=_RANKS,
            seed=2,
        ),
        ShapesSpec(
            folder="d2ext_shapes_voc",
            form="voc",
            classes=tuple(common_classes()),
            splits=(("train", 1000), ("val", 400)),
            seed=3,
        ),
    )
}


def register_shapes(spec: ShapesSpec, split: str, name: str, folder: str) -> None:
    """Register one split of a generated data set, with the metadata that evaluators need.

    Args:
        spec: what it contains.
        split: name of the split.
        name: name to register.
        folder: the folder that holds it, or will.
    """
    metadata: Dict[str, Any] = {"thing_classes": [cls.name for cls in spec.classes]}
    if spec.form == "voc":
        # The year selects how AP is measured: that of 2012 is the area under the curve.
        metadata.update(evaluator_type="pascal_voc", dirname=folder, split=split, year=2012)
    elif spec.form == "coco":
        metadata.update(
            evaluator_type="coco",
            json_file=os.path.join(folder, "annotations", f"instances_{split}.json"),
            image_root=os.path.join(folder, split),
        )
    else:
        metadata.update(
            evaluator_type="lvis",
            json_file=os.path.join(folder, "annotations", f"lvis_v1_{split}.json"),
            image_root=os.path.join(folder, ""),
        )
        if spec.ranks:
            counts = spec.image_counts(spec.splits[0][0])
            metadata["class_image_count"] = [
                {"id": i + 1, "image_count": count} for i, count in enumerate(counts)
            ]
    draw = functools.partial(publish, folder, spec.stamp(), functools.partial(write_dataset, spec))
    if spec.form == "voc":
        load: Any = functools.partial(_load_voc, draw, folder, split, name)
    else:
        # LVIS without a name: with one, Detectron2 would look for the classes of LVIS itself.
        load = JsonSet(
            metadata["json_file"],
            metadata["image_root"],
            spec.form,
            name if spec.form == "coco" else None,
            prepare=draw,
        )
    DatasetCatalog.register(name, load)
    MetadataCatalog.get(name).set(**metadata)


def _load_voc(draw: Callable[[], None], folder: str, split: str, name: str) -> List[dict]:
    draw()
    return load_voc_instances(folder, split, MetadataCatalog.get(name).thing_classes)


def register_builtin_shapes() -> None:
    """Register ``d2ext_shapes[_lt|_voc]_{train,val}``.

    Cheap: nothing is drawn. As Detectron2 does with ``DETECTRON2_DATASETS``, the environment
    variables that say where data sets live are read now, once.
    """
    for spec in BUILTIN_SHAPES.values():
        folder = dataset_folder(spec.folder, spec.stamp())
        for split, _ in spec.splits:
            name = f"{spec.folder}_{split}"
            if name not in DatasetCatalog.list():
                register_shapes(spec, split, name, folder)
