"""Loading of images: our mapper and loader beside Detectron2's, on generated JPEGs.

Shapes: H and W the size of an image.
"""

import argparse
import itertools
import os
import tempfile
from typing import Any, Callable, Dict, Iterable, List, Sequence, Tuple

import numpy as np
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.data.samplers import TrainingSampler
from detectron2.structures import BoxMode
from PIL import Image

from d2ext.data import FastMapper
from d2ext.engine import ResumableLoader

from .runner import Case, Ratio

__all__ = ["cases"]

IMAGES, OBJECTS = 8, 8
BATCH = 4


def cases(args: argparse.Namespace) -> List[Case]:
    """The mapper, some images a round, at a large and at the demo's size, and the whole loader."""
    # (H, W) of the files, and the short edge they are resized to.
    sizes = [((48, 64), 40)] if args.quick else [((480, 640), 800), ((192, 256), 160)]
    ratios = [Ratio("d2ext", "Detectron2", round(1 / 1.5, 3))]
    batches = 2 if args.quick else 20
    found = []
    for (height, width), short in sizes:
        folder = tempfile.TemporaryDirectory(prefix="d2ext-benchmark-")
        dicts = draw_jpegs(folder.name, height, width, count=4 if args.quick else 16)
        name = f"{width} x {height}, short edge {short}"
        ours, theirs = (_mapper(kind, short) for kind in (FastMapper, DatasetMapper))
        found += [
            Case(
                f"mapper, {name}",
                {"d2ext": _map_some(ours, dicts), "Detectron2": _map_some(theirs, dicts)},
                ratios,
                note=f"{IMAGES} JPEGs with {OBJECTS} boxes each",
            ),
            Case(
                f"loader, {name}",
                {
                    "d2ext": lambda d=dicts, m=ours: _draw(_our_loader(m, d), batches),
                    "Detectron2": lambda d=dicts, m=theirs: _draw(_their_loader(m, d), batches),
                },
                ratios,
                note=f"{batches} batches of {BATCH} from 2 workers, with their start",
                close=folder.cleanup,
                wall=True,
            ),
        ]
    return found


def draw_jpegs(folder: str, height: int, width: int, count: int) -> List[Dict[str, Any]]:
    """Dataset dicts of images with smooth colours and some grain, as photographs have them."""
    rng = np.random.default_rng(0)
    dicts = []
    for k in range(count):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.asarray(coarse.resize((width, height), Image.BICUBIC)).astype(int)
        pixels = np.clip(smooth + rng.integers(-8, 9, smooth.shape), 0, 255).astype(np.uint8)
        path = os.path.join(folder, f"{k}.jpg")
        Image.fromarray(pixels).save(path, quality=90)
        annotations = [_annotation(rng, height, width) for _ in range(OBJECTS)]
        dicts.append(
            {
                "file_name": path,
                "image_id": k,
                "height": height,
                "width": width,
                "annotations": annotations,
            }
        )
    return dicts


def _annotation(rng: np.random.Generator, height: int, width: int) -> Dict[str, Any]:
    x, y = rng.uniform(0, [width / 2, height / 2])
    w, h = rng.uniform(4, [width / 2, height / 2])
    angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    outline = np.stack(
        [x + w / 2 + w / 2 * np.cos(angles), y + h / 2 + h / 2 * np.sin(angles)], axis=1
    )
    return {
        "bbox": [float(x), float(y), float(w), float(h)],
        "bbox_mode": BoxMode.XYWH_ABS,
        "category_id": int(rng.integers(0, 80)),
        "segmentation": [outline.flatten().tolist()],
    }


def _mapper(kind: Callable, short: int) -> DatasetMapper:
    augmentations = [T.ResizeShortestEdge((short,), 1333, "choice"), T.RandomFlip()]
    return kind(True, augmentations=augmentations, image_format="BGR")


def _map_some(mapper: Callable, dicts: Sequence[Dict]) -> Callable[[], None]:
    numbers = itertools.count()

    def run() -> None:
        for number in itertools.islice(numbers, IMAGES):
            np.random.seed(number)  # both mappers meet the same images and the same flips
            mapper(dicts[number % len(dicts)])

    return run


def _draw(loader: Iterable, count: int) -> Tuple[int, int]:
    """Take batches; the number of images and of objects in them."""
    images = [sample for batch in itertools.islice(loader, count) for sample in batch]
    return len(images), sum(len(x["instances"]) for x in images)


def _our_loader(mapper: Callable, dicts: List[Dict]) -> Iterable:
    return ResumableLoader(
        dicts,
        mapper,
        lambda seed: TrainingSampler(len(dicts), seed=seed),
        batch_size=BATCH,
        num_workers=2,
    )


def _their_loader(mapper: Callable, dicts: List[Dict]) -> Iterable:
    return build_detection_train_loader(
        dicts,
        mapper=mapper,
        sampler=TrainingSampler(len(dicts), seed=0),
        total_batch_size=BATCH,
        aspect_ratio_grouping=False,
        num_workers=2,
    )
