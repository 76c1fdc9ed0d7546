"""A training loader that goes on exactly where it stopped.

The order of the data is a function of the seed alone, and the random numbers of a sample
(augmentation) are a function of the seed and of the sample's place in that order. So the number of
worker processes changes nothing, and "where we are" is one number: the batches consumed. Batches
that workers had prepared but the trainer had not used are simply prepared again.
"""

import logging
import os
import signal
import threading
from itertools import islice
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from detectron2.data import DatasetFromList
from detectron2.utils import comm
from detectron2.utils.serialize import PicklableWrapper
from torch.utils.data import DataLoader, Dataset, Sampler

from d2ext.data import PackedBatch
from d2ext.data.checks import explain

from .random_state import isolated_random_state, sample_seed, seed_cpu

__all__ = [
    "DataError",
    "NamedErrors",
    "ResumableLoader",
    "check_batch_size",
    "ignore_stop_signals",
]

logger = logging.getLogger(__name__)


class DataError(RuntimeError):
    """A sample could not be loaded; the message names its file."""


class NamedErrors:
    """A mapper whose errors name the sample's file.

    Args:
        mapper: turns a dataset dict into the model's input.
        check: called with each dataset dict before the mapper; it raises for what the mapper would
            silently accept and get wrong.
    """

    def __init__(
        self, mapper: Callable[[Dict], Any], check: Optional[Callable[[Dict], None]] = None
    ):
        # A mapper of the user's may be a lambda, and worker processes may be spawned.
        self._mapper, self._check = PicklableWrapper(mapper), check
        #: What the mapper is called, for those who compare two.
        self.mapper_name = getattr(mapper, "__qualname__", type(mapper).__qualname__)
        self._takes_context = getattr(mapper, "takes_context", False)

    def __call__(
        self, element: Any, name: str = "a sample", dataset: Sequence = (), step: int = 0
    ) -> Any:
        is_dict = isinstance(element, dict)
        if is_dict and "file_name" in element:
            name = str(element["file_name"])
        try:
            if is_dict and self._check is not None:
                self._check(element)
            if self._takes_context:
                return self._mapper(element, dataset, step)
            return self._mapper(element)
        except Exception as error:
            raise DataError(
                f"Loading {name} failed with {type(error).__name__}: {error}"
                f"{explain(error, element)}"
            ) from error


class _MappedDataset(Dataset):
    """Maps a dataset's elements, each under its own seed.

    An item is asked for by (place in the data order of all ranks, index in the dataset, step).
    """

    _MAX_TRIES = 10

    def __init__(self, dataset: Sequence, mapper: NamedErrors, seed: int):
        self.dataset, self.mapper, self.seed = dataset, mapper, seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: Tuple[int, int, int]) -> Any:
        position, index, step = key
        # Isolated, because without worker processes this runs between two training steps.
        with isolated_random_state():
            for attempt in range(self._MAX_TRIES):
                seed_cpu(sample_seed(self.seed, position, attempt))
                sample = self._load(index, step)
                if sample is not None:
                    return sample
                # As upstream: a mapper may refuse a sample, and another one takes its place.
                index = sample_seed(self.seed, position, attempt, 1) % len(self.dataset)
        raise DataError(
            f"The mapper returned None for {self._MAX_TRIES} samples in a row; "
            "let it return a sample, or leave unusable images out of the data set."
        )

    def _load(self, index: int, step: int) -> Any:
        name = f"sample {index}"
        try:
            element = self.dataset[index]
        except Exception as error:
            raise DataError(
                f"Loading {name} failed with {type(error).__name__}: {error}"
            ) from error
        return self.mapper(element, name, self.dataset, step)


class _BatchSampler(Sampler):
    """Endless batches of (place, index, step), starting with batch number ``start``.

    With ``groups``, a batch holds elements of one group only: the batch whose group fills up
    first comes first, as in Detectron2's grouping by aspect ratio, but without loading an image.
    """

    def __init__(
        self,
        indices: Sampler,
        batch_size: int,
        groups: Optional[Sequence[int]],
        start: int,
        step_of: Callable[[int], int],
    ):
        self.indices, self.batch_size, self.groups, self.start = indices, batch_size, groups, start
        self.step_of = step_of

    def __iter__(self) -> Iterator[List[Tuple[int, int, int]]]:
        batches = enumerate(islice(self._batches(), self.start, None), self.start)
        return ([(*key, self.step_of(number)) for key in batch] for number, batch in batches)

    def _batches(self) -> Iterator[List[Tuple[int, int]]]:
        rank, world_size = comm.get_rank(), comm.get_world_size()
        buckets: Dict[int, List[Tuple[int, int]]] = {}
        for place, index in enumerate(self.indices):
            group = 0 if self.groups is None else self.groups[index]
            bucket = buckets.setdefault(group, [])
            bucket.append((place * world_size + rank, index))
            if len(bucket) == self.batch_size:
                yield buckets.pop(group)


def ignore_stop_signals(worker_id: int = 0) -> None:
    """A data worker outlives the signals that tell the trainer to stop.

    Ctrl-C, Slurm and torchrun signal the whole process group; the current step still needs its
    batch. The trainer itself ends its workers with SIGTERM, too, so the sender decides.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not hasattr(signal, "sigwaitinfo"):  # only Linux tells who sent a signal
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_with_trainer, args=(os.getppid(),), daemon=True).start()


def _end_with_trainer(trainer: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != trainer:
        pass
    os._exit(0)


def _identity(batch: List[Any]) -> List[Any]:
    return batch


def _init_worker(worker_id: int) -> None:
    ignore_stop_signals(worker_id)
    # One thread a worker, as torch sets for itself; OpenCV would start one a core in each.
    try:
        import cv2

        cv2.setNumThreads(0)
    except ImportError:
        pass


class ResumableLoader:
    """Endless batches of mapped dataset dicts, with ``state_dict`` and ``load_state_dict``.

    Args:
        dataset: dataset dicts, or any map-style dataset.
        mapper: turns a dataset dict into the model's input.
        make_indices: given a seed, returns this rank's endless stream of indices. The same seed
            must give the same stream.
        batch_size: images in a batch of this rank.
        aspect_ratio_grouping: batches of wide images or of tall images; needs dataset dicts with
            "width" and "height".
        num_workers: worker processes; any number gives the same batches.
        seed: the seed of order and augmentation, the same on all ranks.
        epoch_size: images in an epoch, over all ranks.
        pin_memory: batches lie where a GPU can copy from by itself. See
            :class:`~d2ext.data.PackedBatch`, which they are then, and from worker processes.
        check: see :class:`NamedErrors`.
        batches_per_step: micro-steps; a mapper with ``takes_context`` is told the data set and
            the step that a sample is for.
    """

    def __init__(
        self,
        dataset: Sequence,
        mapper: Callable[[Dict], Any],
        make_indices: Callable[[int], Sampler],
        *,
        batch_size: int,
        aspect_ratio_grouping: bool = False,
        num_workers: int = 0,
        seed: int = 0,
        epoch_size: Optional[float] = None,
        pin_memory: bool = False,
        check: Optional[Callable[[Dict], None]] = None,
        batches_per_step: int = 1,
    ):
        self.pin_memory, self.batches_per_step = pin_memory, batches_per_step
        self.batch_size, self.num_workers, self.seed = batch_size, num_workers, int(seed)
        self.epoch_size = float(len(dataset) if epoch_size is None else epoch_size)
        self.batches_consumed = 0
        self._begin = (0, 0)  # a step, and the batch that it begins with
        self._mapper, self.make_indices = NamedErrors(mapper, check), make_indices
        self._groups = _aspect_ratio_groups(dataset) if aspect_ratio_grouping else None
        # Serialised once, so that worker processes share its memory.
        self._dataset = DatasetFromList(dataset) if isinstance(dataset, list) else dataset

    @property
    def dataset(self) -> Sequence:
        """The elements before the mapper, each once."""
        return self._dataset

    def begin_at(self, step: int) -> None:
        """The next batch is the first of this step, whatever was consumed before it.

        The trainer says so before its first step. So a mapper with ``takes_context`` is told the
        step of the schedule: also in a new schedule for an old run, where the order of the data
        goes on and steps are counted from 0, and with another batch size than before.
        """
        self._begin = (step, self.batches_consumed)

    def __iter__(self) -> Iterator[List[Any]]:
        dataset = _MappedDataset(self._dataset, self._mapper, self.seed)
        batches = _BatchSampler(
            self.make_indices(self.seed),
            self.batch_size,
            self._groups,
            self.batches_consumed,
            self._step_of,
        )
        loader = DataLoader(
            dataset,
            batch_sampler=batches,
            num_workers=self.num_workers,
            # One block a batch, where it has some way to go.
            collate_fn=PackedBatch.pack if self.num_workers or self.pin_memory else _identity,
            pin_memory=self.pin_memory,
            worker_init_fn=_init_worker,
            # Its own generator: starting an iterator must not draw from the model's.
            generator=torch.Generator(),
        )
        for batch in loader:
            self.batches_consumed += 1
            yield batch

    def _step_of(self, batch: int) -> int:
        step, first = self._begin
        return step + (batch - first) // self.batches_per_step

    def state_dict(self) -> Dict[str, Any]:
        return {
            "seed": self.seed,
            "batches": self.batches_consumed,
            "batch_size": self.batch_size,
            "world_size": comm.get_world_size(),
            "mapper": self._mapper.mapper_name,
        }

    def _compare_mappers(self, saved: Optional[str]) -> None:
        if saved is None:  # a checkpoint from before there was a choice
            saved = "DatasetMapper" if self._mapper.mapper_name == "FastMapper" else None
        if saved not in (None, self._mapper.mapper_name):
            logger.warning(
                f"The checkpoint was trained with the mapper {saved} and now it is "
                f"{self._mapper.mapper_name}: images go on in the same order, but not bit for bit. "
                "DATALOADER.MAPPER chooses the mapper."
            )

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Go on after the saved batches; the next ``iter`` begins there."""
        self.seed = int(state["seed"])
        self._compare_mappers(state.get("mapper"))
        images = state["batches"] * state["batch_size"] * state["world_size"]
        self.batches_consumed = images // (self.batch_size * comm.get_world_size())
        if (state["batch_size"], state["world_size"]) != (self.batch_size, comm.get_world_size()):
            logger.warning(
                f"The checkpoint was written with {state['world_size']} x {state['batch_size']} "
                f"images a micro-step and now there are {comm.get_world_size()} x "
                f"{self.batch_size}: the data goes on at image {images}, but not bit for bit."
            )


def check_batch_size(loader: Any, images_per_step: int, accumulate: int) -> None:
    """Refuse a foreign loader that does not share a step's images among micro-steps.

    Detectron2's gives a rank its whole share in each of them.
    """
    if accumulate == 1 or isinstance(loader, ResumableLoader):
        return
    wanted = images_per_step / (comm.get_world_size() * accumulate)
    size = getattr(loader, "batch_size", None)
    text = (
        f"batches of {wanted:g} images for each process, which are SOLVER.IMS_PER_BATCH "
        f"{images_per_step} over {comm.get_world_size()} process(es) and SOLVER.ACCUMULATE "
        f"{accumulate} micro-steps, as d2ext.engine.build_train_loader does"
    )
    if size is None:
        logger.warning(f"The training loader does not say its batch size; it has to give {text}.")
    elif size != wanted:
        raise ValueError(f"The training loader gives batches of {size} images; let it give {text}.")


def _aspect_ratio_groups(dataset: Sequence) -> List[int]:
    try:
        return [0 if element["width"] > element["height"] else 1 for element in dataset]
    except (TypeError, KeyError) as error:
        raise ValueError(
            "Grouping by aspect ratio needs 'width' and 'height' in every dataset dict; "
            "set DATALOADER.ASPECT_RATIO_GROUPING to False."
        ) from error
