"""Generate a whole data set: draw its images, on several cores, and write its files."""

import contextlib
import dataclasses
import hashlib
import logging
import multiprocessing
import os
import sys
import traceback
import warnings
from multiprocessing.connection import wait
from typing import Any, Dict, Generator, List, Optional, Sequence, Tuple

import numpy as np
from PIL import Image
from tqdm import tqdm

from d2ext.ops.frequency import frequency_group

from .classes import ShapeClass
from .formats import DrawnImage, image_path, write_coco, write_lvis, write_voc
from .plans import balanced_image_counts, plan_images, zipf_image_counts
from .scene import SceneConfig, draw_scene

__all__ = ["ShapesSpec", "write_dataset"]

logger = logging.getLogger(__name__)

# Raise it whenever the pictures or files change: data sets on disk are then drawn again.
GENERATOR_VERSION = 1


@dataclasses.dataclass(frozen=True)
class ShapesSpec:
    """Everything that decides what a generated data set contains.

    Attributes:
        folder: name of its folder.
        form: "coco", "lvis" or "voc".
        classes: its classes.
        splits: name and number of images of each split.
        scene: how difficult the scenes are.
        ranks: for a long-tailed data set, the rank of each class, 0 for the most frequent: the
            first split follows Zipf's law, the others are flatter. Empty: classes at random.
        groups: "r", "c" or "f" for each class, LVIS only; by the number of images of the class in
            the first split if empty.
        seed: the same seed gives the same files, whatever the number of processes.
    """

    folder: str
    form: str
    classes: Tuple[ShapeClass, ...]
    splits: Tuple[Tuple[str, int], ...]
    scene: SceneConfig = SceneConfig()
    ranks: Tuple[int, ...] = ()
    groups: Tuple[str, ...] = ()
    seed: int = 0

    def stamp(self) -> str:
        """Name of this version of the data set; another specification has another."""
        digest = hashlib.sha256(repr(self).encode()).hexdigest()[:12]
        return f"d2ext-shapes-{GENERATOR_VERSION}-{digest}"

    def image_counts(self, split: str) -> List[int]:
        """Number of images of each class in a split of a long-tailed data set."""
        position = [name for name, _ in self.splits].index(split)
        law = balanced_image_counts if position else zipf_image_counts
        counts = law(len(self.classes), self.splits[position][1])
        return [counts[rank] for rank in self.ranks]


@dataclasses.dataclass(frozen=True)
class _Job:
    split: str
    seed: Tuple[int, int, int]
    number: int
    categories: Optional[List[int]]


def write_dataset(
    spec: ShapesSpec, root: str, *, num_workers: Optional[int] = None, progress: bool = True
) -> None:
    """Draw a data set into a folder.

    Args:
        spec: what to draw.
        root: an existing folder.
        num_workers: number of processes; the number of cores if not given.
        progress: whether to show a progress bar.
    """
    jobs = _plan(spec)
    for folder in {os.path.dirname(image_path(spec.form, job.split, job.number)) for job in jobs}:
        os.makedirs(f"{root}/{folder}", exist_ok=True)
    num_workers = _usable_workers(num_workers, len(jobs))
    results: List[Any] = [None] * len(jobs)
    # Closing ends the processes at once if we are interrupted, not when memory is collected.
    with contextlib.closing(_draw_all(spec, root, jobs, num_workers)) as drawn:
        title = f"Drawing {spec.folder}"
        # Each update is a line of its own where the output goes into a file.
        interval = 0.2 if sys.stderr.isatty() else 15.0
        for index, image in tqdm(
            drawn, title, len(jobs), unit="image", disable=not progress, mininterval=interval
        ):
            results[index] = image
    split_images: Dict[str, List[DrawnImage]] = {name: [] for name, _ in spec.splits}
    for job, image in zip(jobs, results):
        split_images[job.split].append(image)
    for position, (split, images) in enumerate(split_images.items()):
        _write_split(spec, root, position, split, images)


def _write_split(spec: ShapesSpec, root: str, position: int, split: str, images) -> None:
    if spec.form == "coco":
        write_coco(root, split, images, spec.classes)
    elif spec.form == "voc":
        write_voc(root, split, images, spec.classes)
    elif spec.form == "lvis":
        groups = spec.groups
        if spec.ranks and not groups:
            # As in LVIS, validation has the groups of training.
            counts = spec.image_counts(spec.splits[0][0])
            groups = tuple(frequency_group(count)[0] for count in counts)
        rng = np.random.default_rng([spec.seed, position, 1])
        write_lvis(root, split, images, spec.classes, rng, groups)
    else:
        raise ValueError(f"Unknown form '{spec.form}'; choose coco, lvis or voc.")


def _plan(spec: ShapesSpec) -> List[_Job]:
    jobs = []
    for position, (split, count) in enumerate(spec.splits):
        plans: Sequence[Optional[List[int]]] = [None] * count
        if spec.ranks:
            rng = np.random.default_rng([spec.seed, position, 0])
            plans = plan_images(rng, spec.image_counts(split), count, spec.scene.num_objects)
        # Each image has its own seed: its content depends on nothing that happened before.
        jobs += [
            _Job(split, (spec.seed, position, 2 + i), i + 1, plan) for i, plan in enumerate(plans)
        ]
    return jobs


def _draw(spec: ShapesSpec, root: str, job: _Job) -> DrawnImage:
    rng = np.random.default_rng(job.seed)
    image, objects = draw_scene(rng, spec.classes, spec.scene, job.categories)
    Image.fromarray(image).save(
        f"{root}/{image_path(spec.form, job.split, job.number)}", quality=88
    )
    return DrawnImage(job.number, image.shape[0], image.shape[1], objects)


def _usable_workers(num_workers: Optional[int], num_jobs: int) -> int:
    """Processes worth starting, 1 for none beside this one."""
    # Elsewhere a process starts by importing the main script again, which a user's training script
    # need not be fit for; and a daemon, such as a data loader's worker, may not start any.
    if sys.platform != "linux" or multiprocessing.current_process().daemon:
        return 1
    if num_workers is None:
        num_workers = min(len(os.sched_getaffinity(0)), 8, num_jobs // 50)
    return max(1, min(num_workers, num_jobs))


# Places in the list of jobs, and their images.
_Drawn = Generator[Tuple[int, DrawnImage], None, None]


def _draw_all(spec, root, jobs, num_workers: int) -> _Drawn:
    """Draw all images; yields the position in ``jobs`` and the result, in any order."""
    if num_workers == 1:
        for index, job in enumerate(jobs):
            yield index, _draw(spec, root, job)
        return
    context = multiprocessing.get_context("fork")
    processes, readers = [], []
    try:
        for first in range(num_workers):
            reader, writer = context.Pipe(duplex=False)
            readers.append(reader)
            process = context.Process(
                target=_worker,
                args=(writer, list(readers), spec, root, jobs, first, num_workers),
                daemon=True,
            )
            with warnings.catch_warnings():
                # The children only run NumPy and Pillow: other threads' locks do not matter.
                warnings.simplefilter("ignore", DeprecationWarning)
                process.start()
            processes.append(process)
            writer.close()
        yield from _collect(list(readers))
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.join()
        for reader in readers:
            reader.close()


def _collect(readers) -> _Drawn:
    while readers:
        ready: List[Any] = wait(readers)
        for reader in ready:
            try:
                index, result = reader.recv()
            except EOFError:
                raise RuntimeError(
                    "A process that draws images was killed, perhaps for lack of memory; try again."
                ) from None
            if index is None:
                readers.remove(reader)
                if isinstance(result, OSError):
                    raise result
                if result is not None:
                    raise RuntimeError(f"Drawing an image failed:\n{result}")
            else:
                yield index, result


def _worker(writer, readers, spec, root, jobs, first: int, step: int) -> None:
    """Draw every ``step``-th image; sends (index, image), at the end (None, error or None)."""
    # Inherited copies of the other ends: open, they would keep us waiting for a dead parent.
    for reader in readers:
        reader.close()
    try:
        for index in range(first, len(jobs), step):
            writer.send((index, _draw(spec, root, jobs[index])))
        writer.send((None, None))
    except (BrokenPipeError, KeyboardInterrupt):
        pass
    except OSError as error:
        writer.send((None, error))
    except Exception:
        writer.send((None, traceback.format_exc()))
