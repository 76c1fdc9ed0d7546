"""Which mapper a config gets, and how its samples reach the model."""

import logging
from itertools import islice

import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.utils.events import EventStorage
from engine_kit import differences, toy_cfg
from torch import nn

from d2ext.data import FastMapper, PackedBatch
from d2ext.engine import Trainer, build_mapper, build_train_loader, load_batch, save_batch


def batches_of(cfg, count=5):
    """The first batches, as nested plain values."""
    return plain(list(islice(build_train_loader(cfg), count)))


def plain(batches):
    return [
        [
            {**x, "instances": {k: getattr(f, "tensor", f) for k, f in fields(x).items()}}
            for x in batch
        ]
        for batch in batches
    ]


def fields(sample):
    return sample["instances"].get_fields()


@pytest.mark.parametrize(
    "choice, is_train, kind",
    [
        (None, True, FastMapper),
        (None, False, DatasetMapper),
        ("auto", True, FastMapper),
        ("auto", False, FastMapper),
        ("fast", True, FastMapper),
        ("fast", False, FastMapper),
        ("detectron2", True, DatasetMapper),
        ("detectron2", False, DatasetMapper),
    ],
)
def test_the_key_chooses_and_the_log_says_so(tmp_path, caplog, choice, is_train, kind):
    key = "DATALOADER.MAPPER" if is_train else "DATALOADER.MAPPER_TEST"
    cfg = toy_cfg(tmp_path, *([key, choice] if choice else []))
    with caplog.at_level(logging.INFO):
        mapper = build_mapper(cfg, is_train)
    assert type(mapper) is kind and mapper.is_train == is_train
    assert caplog.text.count("Mapper:") == 1 and f"{kind.__name__}" in caplog.text
    assert len(mapper.augmentations.augs) == (3 if is_train else 1)


def test_what_is_not_covered_falls_back_or_is_refused(tmp_path, caplog):
    words = ("INPUT.FORMAT", "L", "DATALOADER.MAPPER")
    with caplog.at_level(logging.INFO):
        assert type(build_mapper(toy_cfg(tmp_path, *words, "auto"), True)) is DatasetMapper
    assert "because FastMapper does not cover images in the format L" in caplog.text
    with pytest.raises(ValueError, match="set DATALOADER.MAPPER to auto or detectron2"):
        build_mapper(toy_cfg(tmp_path, *words, "fast"), True)
    with pytest.raises(ValueError, match="DATALOADER.MAPPER is 'quick'; choose auto, fast or"):
        build_mapper(toy_cfg(tmp_path, "DATALOADER.MAPPER", "quick"), True)


def test_both_mappers_give_the_same_training_samples(tiny, tmp_path):
    ours = batches_of(toy_cfg(tmp_path, "DATALOADER.MAPPER", "fast"))
    theirs = batches_of(toy_cfg(tmp_path, "DATALOADER.MAPPER", "detectron2"))
    different = 0
    for batch, other in zip(ours, theirs):
        for a, b in zip(batch, other):
            pixels, others = a.pop("image").int(), b.pop("image").int()
            assert (pixels - others).abs().max() <= 1
            different += (pixels != others).sum()
    assert differences(ours, theirs) == [] and different > 0


@pytest.mark.parametrize("mapper", ["fast", "detectron2"])
def test_the_number_of_workers_changes_nothing_and_a_resume_goes_on(tiny, tmp_path, mapper):
    words = ("DATALOADER.MAPPER", mapper)
    whole = list(islice(build_train_loader(toy_cfg(tmp_path, *words)), 6))
    first = build_train_loader(toy_cfg(tmp_path, *words, "DATALOADER.NUM_WORKERS", 2))
    used = list(islice(first, 2))
    assert all(isinstance(batch, PackedBatch) and batch.block.is_shared() for batch in used)
    second = build_train_loader(toy_cfg(tmp_path, *words, "SEED", 8))
    second.load_state_dict(first.state_dict())
    rest = list(islice(second, 4))
    assert differences(plain(used + rest), plain(whole)) == []


def test_another_mapper_on_a_resume_is_said(tiny, tmp_path, caplog, monkeypatch):
    # A test before this one may have set up the log as train_net.py does.
    monkeypatch.setattr(logging.getLogger("d2ext"), "propagate", True)
    loaders = {
        name: build_train_loader(toy_cfg(tmp_path, "DATALOADER.MAPPER", name))
        for name in ("fast", "detectron2")
    }
    caplog.clear()
    for name, loader in loaders.items():
        loader.load_state_dict(loader.state_dict())
        assert "mapper" not in caplog.text, name
    state = loaders["detectron2"].state_dict()
    loaders["fast"].load_state_dict(state)
    assert "trained with the mapper DatasetMapper and now it is FastMapper" in caplog.text
    caplog.clear()
    del state["mapper"]  # a checkpoint from before the key
    loaders["fast"].load_state_dict(state)
    assert "DatasetMapper and now it is FastMapper" in caplog.text
    caplog.clear()
    loaders["detectron2"].load_state_dict(state)
    assert "mapper" not in caplog.text


def test_the_test_loader_takes_its_mapper_from_the_config(tiny, tmp_path):
    theirs = list(Trainer.build_test_loader(toy_cfg(tmp_path), "tiny_val"))
    words = ("DATALOADER.MAPPER_TEST", "auto", "INPUT.MIN_SIZE_TEST", 65)
    ours = list(Trainer.build_test_loader(toy_cfg(tmp_path, *words), "tiny_val"))
    assert len(ours) == len(theirs) == 3
    assert theirs[0][0]["image"].shape[1:] == (64, 64)
    assert ours[0][0]["image"].shape[1:] == (65, 65) and "annotations" not in ours[0][0]


class Keeps(nn.Module):
    """A model that keeps what it was given."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch):
        self.batch = batch
        return {"loss": self.weight * 1.0}


def packed_batch(cfg):
    return PackedBatch.pack(next(iter(build_train_loader(cfg))))


def test_the_trainer_moves_a_batch_before_the_model_sees_it(tiny, tmp_path):
    model = Keeps()
    batch = packed_batch(toy_cfg(tmp_path))
    trainer = Trainer(
        model=model, data_loader=[batch], optimizer=torch.optim.SGD(model.parameters(), 0.1)
    )
    trainer.guard.begin_step(0, 0.1, model)
    with EventStorage():
        trainer.step.forward_backward(batch)
        assert model.batch is batch  # on the CPU there is nothing to do
        trainer.device = torch.device("meta")
        trainer.step.forward_backward(batch)
    assert {x["image"].device.type for x in model.batch} == {"meta"}
    assert {x["instances"].gt_boxes.device.type for x in model.batch} == {"meta"}
    assert {x["image"].device.type for x in batch} == {"cpu"}  # what a report would save


def test_pinning_takes_one_call_for_a_batch(tiny, tmp_path, monkeypatch):
    calls = []
    pin = lambda tensor: calls.append(tensor) or tensor.clone()  # noqa: E731
    batch = packed_batch(toy_cfg(tmp_path))
    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    pinned = torch.utils.data._utils.pin_memory.pin_memory(batch)
    assert len(calls) == 1 and calls[0] is batch.block
    assert type(pinned) is PackedBatch and differences(plain([pinned]), plain([batch])) == []


def test_a_packed_batch_is_saved_as_any_other(tiny, tmp_path):
    batch = packed_batch(toy_cfg(tmp_path))
    save_batch(str(tmp_path / "batch.pth"), batch)
    again = load_batch(str(tmp_path / "batch.pth"))["batch"]
    assert differences(plain([again]), plain([list(batch)])) == []


@pytest.mark.gpu
def test_on_a_gpu_a_batch_is_pinned_and_copied_once(tiny, tmp_path):
    loader = build_train_loader(toy_cfg(tmp_path, "MODEL.DEVICE", "cuda"))
    batch = next(iter(loader))
    assert isinstance(batch, PackedBatch) and batch.block.is_pinned()
    torch.cuda.synchronize()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        moved = batch.to("cuda")
        for sample in moved:
            sample["image"].to("cuda")
            sample["instances"].to("cuda")
        torch.cuda.synchronize()
    copies = [e.count for e in profile.key_averages() if "Memcpy HtoD" in e.key]
    assert sum(copies) == 1
    assert differences(plain([moved.to("cpu")]), plain([batch])) == []
