"""The training loader: the order of the data and its augmentation are a function of the seed."""

import random
from itertools import islice

import numpy as np
import pytest
import torch
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from engine_kit import differences, toy_cfg

from d2ext.engine import DataError, ResumableLoader, Trainer

DICTS = [{"id": k, "width": 10 + (k % 3) * 10, "height": 20} for k in range(9)]


def noisy(element):
    """A mapper that draws from all three generators."""
    noise = (random.random(), float(np.random.rand()), float(torch.rand(())))
    return {"id": element["id"], "wide": element["width"] > element["height"], "noise": noise}


def loader(mapper=noisy, workers=0, seed=5, **arguments):
    arguments = {"batch_size": 2, **arguments}
    make = lambda seed: TrainingSampler(len(DICTS), seed=seed)  # noqa: E731
    return ResumableLoader(DICTS, mapper, make, num_workers=workers, seed=seed, **arguments)


def test_any_number_of_workers_gives_the_same_batches():
    expected = list(islice(loader(), 8))
    for workers in (1, 3):
        assert list(islice(loader(workers=workers), 8)) == expected
    assert len({x["noise"] for batch in expected for x in batch}) == 16
    assert list(islice(loader(seed=6), 8)) != expected


@pytest.mark.parametrize("grouping", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_it_goes_on_behind_what_was_used(workers, grouping):
    """Also if workers had more batches ready, and groups were half full."""
    expected = list(islice(loader(aspect_ratio_grouping=grouping), 12))
    first = loader(workers=workers, aspect_ratio_grouping=grouping)
    used = list(islice(first, 5))
    second = loader(workers=workers, seed=99, aspect_ratio_grouping=grouping)
    second.load_state_dict(first.state_dict())
    assert used + list(islice(second, 7)) == expected


def test_groups_are_upstreams():
    from detectron2.data.common import (
        AspectRatioGroupedDataset,
        DatasetFromList,
        MapDataset,
        ToIterableDataset,
    )

    ours = list(islice(loader(aspect_ratio_grouping=True), 10))
    assert all(len({x["wide"] for x in batch}) == 1 for batch in ours)
    dataset = MapDataset(DatasetFromList(DICTS), lambda d: d)
    stream = ToIterableDataset(dataset, TrainingSampler(len(DICTS), seed=5))
    theirs = islice(AspectRatioGroupedDataset(stream, 2), 10)
    assert [[x["id"] for x in b] for b in ours] == [[x["id"] for x in b] for b in theirs]


def test_loading_in_the_same_process_leaves_the_models_random_numbers_alone():
    batches = iter(loader())
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    next(batches)
    assert torch.equal(torch.rand(3), expected)


def test_a_mapper_may_refuse_a_sample():
    picky = lambda d: None if d["id"] % 2 else noisy(d)  # noqa: E731
    batches = list(islice(loader(picky), 6))
    assert all(x["id"] % 2 == 0 for batch in batches for x in batch)
    assert list(islice(loader(picky, workers=2), 6)) == batches
    with pytest.raises(DataError, match="None for 10 samples in a row"):
        next(iter(loader(lambda d: None)))


def test_grouping_without_sizes_is_refused():
    make = lambda seed: TrainingSampler(1, seed=seed)  # noqa: E731
    with pytest.raises(ValueError, match="needs 'width' and 'height'"):
        ResumableLoader([{"id": 1}], noisy, make, batch_size=1, aspect_ratio_grouping=True)


def test_another_batch_size_goes_on_at_the_same_image(caplog):
    first = loader()
    list(islice(first, 6))
    second = loader(batch_size=4)
    second.load_state_dict(first.state_dict())
    assert second.batches_consumed == 3 and "goes on at image 12" in caplog.text


def test_the_seed_reaches_sampler_augmentation_and_model(tiny, tmp_path):
    def first_batch_and_weights(seed, workers=0):
        words = ("SEED", seed, "DATALOADER.NUM_WORKERS", workers)
        trainer = Trainer(toy_cfg(tmp_path, *words))
        batch = next(iter(trainer.data_loader))
        images = [x["image"] for x in batch]
        weights = trainer.raw_model.cls.weight.detach()
        return {"images": images, "files": [x["file_name"] for x in batch], "weights": weights}

    first = first_batch_and_weights(3)
    assert differences(first, first_batch_and_weights(3, workers=2)) == []
    other = differences(first, first_batch_and_weights(4))
    assert ".weights" in other and any("images" in path for path in other)


SAMPLERS = {
    "TrainingSampler": 7,
    "RandomSubsetTrainingSampler": 3,
    "RepeatFactorTrainingSampler": None,
    "WeightedTrainingSampler": 14,
    "WeightedCategoryTrainingSampler": None,
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_of_upstream(tiny, tmp_path, name):
    words = (
        "DATALOADER.SAMPLER_TRAIN", name,
        "DATALOADER.RANDOM_SUBSET_RATIO", 0.5,
        "DATALOADER.REPEAT_THRESHOLD", 0.99,
        "DATASETS.TRAIN_REPEAT_FACTOR", [["tiny_train", 2.0]],
    )  # fmt: skip
    ours = Trainer.build_train_loader(toy_cfg(tmp_path, *words))
    assert len(next(iter(ours))) == 2
    assert SAMPLERS[name] is None or ours.epoch_size == SAMPLERS[name]


def test_an_unknown_sampler_is_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="'Sampler' is not one of Detectron2's"):
        Trainer.build_train_loader(toy_cfg(tmp_path, "DATALOADER.SAMPLER_TRAIN", "Sampler"))
    words = ("DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler")
    with pytest.raises(ValueError, match="one of 'stochastic' and 'ceil'"):
        Trainer.build_train_loader(toy_cfg(tmp_path, *words, "DATALOADER.REPEAT_ROUNDING", "floor"))


@pytest.mark.parametrize("rounding", ["stochastic", "ceil"])
def test_rounding_of_repeat_factors(tiny, tmp_path, rounding):
    """ceil gives the same multiset in each epoch; stochastic is upstream's."""
    from detectron2.data import DatasetCatalog

    words = (
        "DATALOADER.SAMPLER_TRAIN", "RepeatFactorTrainingSampler",
        "DATALOADER.REPEAT_THRESHOLD", 0.99, "DATALOADER.REPEAT_ROUNDING", rounding,
    )  # fmt: skip
    ours = Trainer.build_train_loader(toy_cfg(tmp_path, *words))
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(
        DatasetCatalog.get("tiny_train"), 0.99
    )
    assert factors.max() > 1 and (factors != factors.round()).any()
    stream = list(islice(ours.make_indices(3), 60))
    if rounding == "stochastic":
        assert stream == list(islice(RepeatFactorTrainingSampler(factors, seed=3), 60))
    else:
        count = int(ours.epoch_size)
        assert count == int(factors.ceil().sum())
        assert sorted(stream[:count]) == sorted(stream[count : 2 * count])


def test_deterministic_is_switched_on(tmp_path):
    from d2ext.engine.random_state import set_deterministic

    try:
        set_deterministic(True)
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic = False


def test_workers_end_with_the_trainer_but_not_with_its_signals():
    """A scheduler signals them too, and the step under way still needs its batch."""
    import multiprocessing
    import os
    import signal
    import time

    before = set(multiprocessing.active_children())  # another test's may not have ended yet
    batches = iter(loader(workers=1))
    next(batches)
    (worker,) = set(multiprocessing.active_children()) - before
    for number in (signal.SIGTERM, signal.SIGINT):
        pid = os.fork()
        if pid == 0:  # somebody else
            os.kill(worker.pid, number)
            os._exit(0)
        os.waitpid(pid, 0)
    time.sleep(0.2)
    assert worker.is_alive() and len(next(batches)) == 2
    worker.terminate()
    worker.join(600)
    assert worker.exitcode == 0
    del batches


class TellsStep:
    """A mapper that looks at the step, as one does whose augmentation closes for the last steps."""

    takes_context = True

    def __call__(self, element, dataset=(), step=0):
        return {"id": element["id"], "step": step, "size": len(dataset)}


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("count", [1, 2])
def test_a_mapper_is_told_the_step_of_the_schedule(workers, count):
    def steps(loader, batches):
        return [batch[0]["step"] for batch in islice(loader, batches)]

    made = loader(TellsStep(), workers, batches_per_step=count)
    assert steps(made, 3 * count) == [k for k in range(3) for _ in range(count)]
    again = loader(TellsStep(), workers, batches_per_step=count)
    again.load_state_dict(made.state_dict())
    again.begin_at(3)  # a resumed run
    assert steps(again, 2 * count) == [k for k in (3, 4) for _ in range(count)]
    larger = loader(TellsStep(), workers, batches_per_step=count, batch_size=3)
    larger.load_state_dict(made.state_dict())
    larger.begin_at(0)  # a new schedule, with another batch
    assert steps(larger, 2 * count) == [k for k in (0, 1) for _ in range(count)]
    assert next(iter(made))[0]["size"] == len(DICTS)


def test_the_trainer_says_where_it_begins(tiny, tmp_path):
    words = ("SOLVER.MAX_ITER", 3, "SOLVER.ACCUMULATE", 2)
    Trainer(toy_cfg(tmp_path, *words)).train()
    for new_schedule, expected in ((False, 3), (True, 0)):
        trainer = Trainer(toy_cfg(tmp_path, *words, "SOLVER.MAX_ITER", 4))
        trainer.resume_or_load(new_schedule=new_schedule)
        told = []
        trainer.data_loader.begin_at = told.append
        trainer.train()
        assert told == [expected]
