"""Loading of images: our mapper and loader beside Detectron2's, on generated JPEGs.

Shapes: H and W the size of an image.
"""

import itertools
import os
import tempfile
from typing import Any, Callable, Dict, List, Sequence, Tuple

import numpy as np
from detectron2.data import DatasetMapper, build_detection_train_loader
from detectron2.data import transforms as T
from detectron2.data.samplers import TrainingSampler
from detectron2.structures import BoxMode
from PIL import Image

from d2ext.data import FastMapper
from d2ext.engine import ResumableLoader

__all__ = ["cases"]

OBJECTS = 8
BATCH = 4


def cases(args: Any) -> List[Dict[str, Any]]:
    """The mapper, an image a round, at a large and at the demo's size, and the whole loader."""
    quick = getattr(args, "quick", False)
    # (H, W) of the files, and the short edge they are resized to.
    sizes = [((48, 64), 40)] if quick else [((480, 640), 800), ((192, 256), 160)]
    found = []
    for (height, width), short in sizes:
        folder = tempfile.TemporaryDirectory(prefix="d2ext-benchmark-")
        dicts = draw_jpegs(folder.name, height, width, count=4 if quick else 16)
        name = f"{width}x{height}, short edge {short}"
        ours, peer = (_mapper(kind, short) for kind in (FastMapper, DatasetMapper))
        found.append(
            {
                "name": f"mapper, {name}",
                "ours": _one_image(ours, dicts, folder),
                "peer": _one_image(peer, dicts, folder),
                "note": f"one image with {OBJECTS} boxes and polygons, resize and flip; "
                "the peer is Detectron2's DatasetMapper",
            }
        )
        batches = 2 if quick else 20
        found.append(
            {
                "name": f"loader with 2 workers, {name}",
                "ours": _our_loader(ours, dicts, folder, batches),
                "peer": _their_loader(peer, dicts, folder, batches),
                "note": f"{batches} batches of {BATCH} images, with the start of the workers; "
                "the peer is Detectron2's loader with its mapper",
            }
        )
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


def _one_image(mapper: Callable, dicts: Sequence[Dict], folder: Any) -> Callable[[], None]:
    rounds = itertools.count()

    def run(keep: Any = folder) -> None:  # the files live as long as the function
        number = next(rounds)
        np.random.seed(number)  # both mappers meet the same image and the same flip
        mapper(dicts[number % len(dicts)])

    return run


def _draw(batches: Any, count: int) -> Tuple[int, int]:
    """Take batches; the number of images and of objects in them."""
    images = [sample for batch in itertools.islice(iter(batches), count) for sample in batch]
    return len(images), sum(len(x["instances"]) for x in images)


def _our_loader(
    mapper: Callable, dicts: List[Dict], folder: Any, batches: int
) -> Callable[[], Tuple[int, int]]:
    def run(keep: Any = folder) -> Tuple[int, int]:
        loader = ResumableLoader(
            dicts,
            mapper,
            lambda seed: TrainingSampler(len(dicts), seed=seed),
            batch_size=BATCH,
            num_workers=2,
        )
        return _draw(loader, batches)

    return run


def _their_loader(
    mapper: Callable, dicts: List[Dict], folder: Any, batches: int
) -> Callable[[], Tuple[int, int]]:
    def run(keep: Any = folder) -> Tuple[int, int]:
        loader = build_detection_train_loader(
            dicts,
            mapper=mapper,
            sampler=TrainingSampler(len(dicts), seed=0),
            total_batch_size=BATCH,
            aspect_ratio_grouping=False,
            num_workers=2,
        )
        return _draw(loader, batches)

    return run
