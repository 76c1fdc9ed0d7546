"""What goes wrong, and what is said and kept then."""

import logging
import os
import resource
import signal

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from engine_kit import Run, load, metrics, toy_cfg, train
from test_trainer_hooks import Line, line_trainer
from torch import nn

from d2ext.engine import (
    Checkpointer,
    DataError,
    HookBase,
    NonFiniteGuard,
    NonFiniteLossError,
    Trainer,
    WriteError,
    load_batch,
    module_state,
    save_batch,
)
from d2ext.engine.errors import DamagedCheckpointError, RunError
from d2ext.engine.hooks import PeriodicCheckpointer


def test_a_non_finite_loss_says_what_where_and_saves_the_batch(tiny, tmp_path):
    out = tmp_path / "run"
    text = train(tiny, out, "SOLVER.MAX_ITER", 8, sabotage="nan 3", code=76)
    assert "A loss is not finite at iteration 3 (lr 0.01). On rank 0 loss_cls is nan, for " in text
    path = out / "nonfinite_0000003_rank0.pth"
    assert f"The batch is saved in {path}" in text
    saved = load_batch(path)
    assert saved["iteration"] == 3 and saved["losses"]["loss_cls"] != saved["losses"]["loss_cls"]
    for sample in saved["batch"]:
        assert sample["file_name"] in text
    # The batch and the weights of that step run again.
    trainer = Trainer(toy_cfg(tmp_path / "again"))
    trainer.raw_model.load_state_dict(saved["model"])
    trainer.raw_model.train()
    losses = trainer.raw_model(saved["batch"])
    assert torch.isfinite(losses["loss_box_reg"])  # the toy's own losses were finite


def test_skip_leaves_the_step_out_and_keeps_all_state(tmp_path):
    class Normed(Line):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(3)

        def forward(self, batch):
            return super().forward(self.norm(batch))

    good = [torch.randn(4, 3) for _ in range(4)]
    bad = [good[0], torch.full((4, 3), float("inf")), *good[1:]]
    models = []
    for batches, steps in ((good, 4), (bad, 5)):
        torch.manual_seed(0)
        model = Normed()
        trainer = Trainer(
            model=model,
            data_loader=batches,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
            max_iter=steps,
            guard=NonFiniteGuard("skip", 3, str(tmp_path)),
        )
        trainer.train()
        models.append(model.state_dict())
    assert trainer.guard.skips == 1
    assert all(torch.equal(a, b) for a, b in zip(*(m.values() for m in models)))
    assert load_batch(tmp_path / "nonfinite_0000001_rank0.pth")["losses"]["loss_a"] != 0


def test_skip_stops_after_so_many(caplog):
    bad = torch.full((1, 3), float("nan"))
    trainer = line_trainer([bad], max_iter=9, guard=NonFiniteGuard("skip", 2))
    with pytest.raises(NonFiniteLossError, match="iteration 2 .*2 steps were left out before"):
        trainer.train()
    assert "Left out (2 of at most 2)" in caplog.text


def test_stop_comes_before_the_update():
    trainer = line_trainer([torch.full((1, 3), float("nan"))])
    before = trainer.raw_model.weight.detach().clone()
    with pytest.raises(FloatingPointError):
        trainer.train()
    assert torch.equal(trainer.raw_model.weight, before)


def test_an_unknown_policy_is_refused():
    with pytest.raises(ValueError, match="choose stop or skip"):
        NonFiniteGuard("ignore")


def test_a_batch_with_every_kind_of_field_can_be_saved(tmp_path):
    import numpy as np
    from detectron2.structures import BitMasks, Boxes, Instances, Keypoints, PolygonMasks

    instances = Instances((8, 9))
    instances.gt_boxes = Boxes(torch.tensor([[0.0, 1.0, 5.0, 6.0]]))
    instances.gt_classes = torch.tensor([2])
    instances.gt_masks = PolygonMasks([[np.array([0.0, 0, 4, 0, 4, 4])]])
    instances.gt_bits = BitMasks(torch.ones(1, 8, 9, dtype=torch.bool))
    instances.gt_keypoints = Keypoints(torch.ones(1, 3, 3))
    sample = {"file_name": "a.png", "image": torch.zeros(3, 8, 9), "instances": instances}
    save_batch(str(tmp_path / "b.pth"), [{**sample, "odd": object()}], iteration=4)
    back = load_batch(str(tmp_path / "b.pth"))
    found = back["batch"][0]["instances"]
    assert back["iteration"] == 4 and found.image_size == (8, 9)
    for name, field in instances.get_fields().items():
        assert type(found.get(name)) is type(field)
    assert torch.equal(found.gt_boxes.tensor, instances.gt_boxes.tensor)
    assert np.array_equal(found.gt_masks.polygons[0][0], instances.gt_masks.polygons[0][0])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_data_workers_exception_names_the_file(tiny, tmp_path, workers):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"this is not an image")

    class OneBroken(Trainer):
        @classmethod
        def build_train_loader(cls, cfg):
            from detectron2.data import DatasetCatalog, DatasetMapper

            from d2ext.engine import ResumableLoader

            dicts = [{**DatasetCatalog.get("tiny_train")[0], "file_name": str(broken)}]
            return ResumableLoader(
                dicts,
                DatasetMapper(cfg, True),
                lambda seed: iter(lambda: 0, None),
                batch_size=1,
                num_workers=workers,
            )

    with pytest.raises(DataError, match=f"Loading {broken} failed with"):
        OneBroken(toy_cfg(tmp_path / "run")).train()


class Limit:
    """No file of this process may grow beyond so many bytes: a full disk, by the system."""

    def __init__(self, size):
        self.size = size

    def __enter__(self):
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        self.handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *error):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)
        signal.signal(signal.SIGXFSZ, self.handler)


def test_a_full_disk_keeps_the_checkpoint_before(tmp_path, caplog):
    model = nn.Linear(100, 100)
    checkpointer = Checkpointer(model, str(tmp_path), max_to_keep=1)
    checkpointer.save("model_0000001")
    for name in ("model_0000002", "model_0000001"):
        with Limit(4096), pytest.raises(WriteError, match=f"{name}.pth .*are untouched: free some"):
            checkpointer.save(name)
    assert sorted(os.listdir(tmp_path)) == ["last_checkpoint", "model_0000001.pth"]
    assert checkpointer.get_checkpoint_file() == str(tmp_path / "model_0000001.pth")
    assert torch.equal(load(tmp_path / "model_0000001.pth")["model"]["weight"], model.weight)


@pytest.mark.parametrize("stopping", [False, True])
def test_training_ends_when_the_disk_is_full(tmp_path, stopping):
    """At the first checkpoint that cannot be written, also if it is the one of a stop signal."""
    from d2ext.engine.hooks import PeriodicCheckpointer

    class Stop(HookBase):
        def after_step(self):
            if stopping and self.trainer.iter == 1:
                self.trainer.request_stop("SIGTERM", by_signal=True)

    trainer = line_trainer(output_dir=str(tmp_path))
    trainer.register_hooks([Stop(), PeriodicCheckpointer(0 if stopping else 2)])
    with Limit(1000), pytest.raises(WriteError, match="model_0000001.pth"):
        trainer.train()
    assert trainer.completed_steps == 2 and not trainer.finished
    assert not list(tmp_path.glob("*.p*"))


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_newest_checkpoint_is_skipped(tmp_path, caplog, damage):
    trainer = line_trainer(output_dir=str(tmp_path))
    trainer.train()
    for name in ("model_0000001", "model_0000002"):
        trainer.save_checkpoint(name)
    newest = tmp_path / "model_0000002.pth"
    content = bytearray(newest.read_bytes())
    if damage == "truncated":
        content = content[:-100]
    elif damage == "flipped":
        at = content.index(trainer.raw_model.weight.detach().numpy().tobytes())
        content[at] ^= 1
    newest.write_bytes(b"" if damage == "empty" else content)
    other = line_trainer(output_dir=str(tmp_path))
    other.resume_or_load()
    assert f"Skipping the damaged checkpoint {newest}" in caplog.text
    assert other.resumed and torch.equal(other.raw_model.weight, trainer.raw_model.weight)


def test_if_all_checkpoints_are_damaged_none_is_overwritten(tmp_path, caplog):
    trainer = line_trainer(output_dir=str(tmp_path))
    trainer.train()
    for name in ("model_0000001", "model_0000002"):
        trainer.save_checkpoint(name)
        (tmp_path / f"{name}.pth").write_bytes(b"PK")
    with pytest.raises(
        DamagedCheckpointError, match="model_0000002.pth, model_0000001.pth.*start over"
    ):
        line_trainer(output_dir=str(tmp_path)).resume_or_load()
    assert caplog.text.count("Skipping the damaged checkpoint") == 2


@pytest.mark.parametrize("tag", [b"", b"\xff\xfe", b"model_0000009.pth", b"../elsewhere.pth"])
def test_a_damaged_tag_leads_to_the_newest(tmp_path, tag):
    trainer = line_trainer(output_dir=str(tmp_path / "run"))
    trainer.save_checkpoint("model_0000001")
    trainer.save_checkpoint("model_0000002")
    (tmp_path / "elsewhere.pth").write_bytes(b"")
    (tmp_path / "run" / "last_checkpoint").write_bytes(tag)
    assert trainer.checkpointer.get_checkpoint_file().endswith("model_0000002.pth")


@pytest.mark.parametrize("flag", [1, 1 << 6])
def test_damage_that_asks_for_another_zip_feature(tmp_path, flag):
    """A wrong bit in the archive's directory means "encrypted", or another way to compress."""
    trainer = line_trainer(output_dir=str(tmp_path))
    trainer.save_checkpoint("model_0000001")
    path = tmp_path / "model_0000001.pth"
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + (8 if flag == 1 else 10)] ^= flag
    (tmp_path / "model_0000002.pth").write_bytes(content)
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    assert trainer.checkpointer.get_checkpoint_file() == str(path)


def test_figures_before_the_first_checkpoint_are_not_doubled(tiny, tmp_path):
    """Killed before it: the run starts anew, in the same metrics.json, with half a line in it."""
    words = ("SOLVER.MAX_ITER", 4, "ENGINE.LOG_PERIOD", 1)
    train(tiny, tmp_path / "a", *words)
    train(tiny, tmp_path / "b", *words, sabotage="kill 3", code=-signal.SIGKILL)
    with open(tmp_path / "b" / "metrics.json", "ab") as stream:
        stream.write(b'{"iteration": 3, "lr\xff')
    train(tiny, tmp_path / "b", "--resume", *words)
    assert metrics(tmp_path / "a") == metrics(tmp_path / "b")


def test_a_failed_run_tells_its_own_error(tiny, tmp_path):
    """In its first steps Detectron2's printer divides by zero when it is called twice."""
    text = train(tiny, tmp_path / "run", "ENGINE.LOG_PERIOD", 1, sabotage="nan 1", code=76)
    assert "A loss is not finite at iteration 1" in text and "Traceback" not in text


def test_the_storage_keeps_what_a_checkpoint_keeps(monkeypatch):
    monkeypatch.setattr(module_state, "_HISTORY", 10)
    trainer = line_trainer(max_iter=25)
    trainer.train()
    history = trainer.storage.history("total_loss")
    assert [step for _, step in history.values()] == list(range(15, 25))
    assert history._count == 25  # the average over all steps is there all the same
    saved = module_state.storage_state(trainer.storage)["histories"]["total_loss"]["values"]
    assert saved == [list(x) for x in history.values()]


def test_a_killed_data_worker_is_named(tiny, tmp_path):
    words = ("DATALOADER.NUM_WORKERS", 1)
    text = train(tiny, tmp_path / "run", *words, sabotage="kill-worker 2", code=1)
    assert "a data worker was ended from outside" in text and "Traceback" not in text


def test_a_log_on_a_full_disk_is_said_once(tiny, tmp_path):
    run = Run(tiny, tmp_path / "run", sabotage="fill-disk 2 100", pipe=True)
    assert run.wait() == 1, run.text
    assert run.text.count("log.txt (File too large); the log goes on here only.") == 1
    assert run.text.count("free some disk space") == 1 and "Traceback" not in run.text


def test_nothing_half_written_has_a_checkpoints_name(tmp_path, monkeypatch):
    checkpointer = Checkpointer(nn.Linear(2, 2), str(tmp_path))
    order = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: order.append("fsync") or fsync(fd))
    monkeypatch.setattr(
        os, "replace", lambda a, b: order.append(os.path.basename(b)) or replace(a, b)
    )
    checkpointer.save("model_0000001")
    assert order[:3] == ["fsync", "model_0000001.pth", "fsync"]  # content, name, directory
    assert order[3:] == ["fsync", "last_checkpoint", "fsync"]


def test_max_to_keep(tmp_path):
    checkpointer = Checkpointer(nn.Linear(2, 2), str(tmp_path), max_to_keep=2)
    for k in range(5):
        checkpointer.save(f"model_{k:07d}")
    checkpointer.save("model_best", tag=False)
    checkpointer.save("model_final")
    names = sorted(path.name for path in tmp_path.glob("*.pth"))
    assert names == ["model_0000003.pth", "model_0000004.pth", "model_best.pth", "model_final.pth"]
    assert checkpointer.get_checkpoint_file().endswith("model_final.pth")


def test_max_to_keep_counts_the_runs_own_checkpoints(tmp_path):
    """Those of another run in the folder stay; a resumed run goes on counting."""

    def save(count, resume=False):
        trainer = line_trainer(output_dir=str(tmp_path), max_to_keep=2)
        if resume:
            trainer.resume_or_load()
        for k in range(trainer.completed_steps, count):
            trainer.completed_steps = k + 1
            trainer.save_checkpoint(f"model_{k:07d}")
        return sorted(int(path.stem.split("_")[1]) for path in tmp_path.glob("model_*.pth"))

    others = [11, 12, 13]
    for k in others:
        (tmp_path / f"model_{k:07d}.pth").write_bytes(b"of another run")
    assert save(3) == [1, 2, *others]
    assert save(5, resume=True) == [3, 4, *others]
    # Detectron2's checkpoints, and those of before this was recorded, do not say.
    data = load(tmp_path / "model_0000004.pth")
    del data["checkpoints"]
    torch.save(data, tmp_path / "model_0000004.pth")
    assert save(8, resume=True) == [3, 4, 6, 7, *others]


def test_what_a_killed_run_left_half_written_is_removed(tmp_path):
    ours = ["model_0000001.pth.7.part", "last_checkpoint.7.part", "metrics.json.7.part"]
    others = ["notes.part", "report.html.7.part"]
    for name in ours + others:
        (tmp_path / name).write_bytes(b"half")
    line_trainer(output_dir=str(tmp_path)).train()
    assert sorted(os.listdir(tmp_path)) == sorted(others)


def test_checkpoints_hold_no_code(tmp_path):
    """They load with weights_only, and a file that needs more is refused."""
    trainer = line_trainer(output_dir=str(tmp_path))
    trainer.train()
    trainer.save_checkpoint("model_0000003")
    torch.load(tmp_path / "model_0000003.pth", weights_only=True)
    torch.save({"model": {"weight": torch.ones(3)}, "who": Line}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match="could run any code"):
        trainer.checkpointer.load(str(tmp_path / "odd.pth"))


def test_upstreams_checkpoints_load(tmp_path):
    import pickle

    model = Line()
    with torch.no_grad():
        model.weight.fill_(7.0)
    DetectionCheckpointer(model, str(tmp_path)).save("theirs", iteration=4)
    zoo = {"model": {"weight": model.weight.detach().numpy()}, "__author__": "zoo"}
    (tmp_path / "zoo.pkl").write_bytes(pickle.dumps(zoo))
    for name in ("theirs.pth", "zoo.pkl"):
        trainer = line_trainer()
        trainer.checkpointer.load(str(tmp_path / name), checkpointables=[])
        assert trainer.raw_model.weight[0] == 7.0


def test_overwriting_a_finished_run_is_warned_of(tiny, tmp_path, caplog):
    trainer = Trainer(toy_cfg(tmp_path))
    trainer.train()
    other = Trainer(toy_cfg(tmp_path))
    with caplog.at_level(logging.WARNING, "d2ext"):
        other.resume_or_load(False)
    assert "which this new run will overwrite" in caplog.text
    assert metrics(tmp_path)


def trainer_of(model, optimizer, folder):
    return Trainer(
        model=model,
        data_loader=[torch.randn(4, 3)],
        optimizer=optimizer(model.parameters(), lr=0.1),
        max_iter=2,
        output_dir=str(folder),
    )


@pytest.mark.parametrize("new_schedule", [False, True])
def test_another_model_or_optimiser_on_resume_is_a_sentence(tmp_path, new_schedule):
    trainer = trainer_of(Line(), torch.optim.SGD, tmp_path)
    trainer.register_hooks([PeriodicCheckpointer(0)])
    trainer.train()

    class Other(Line):
        def __init__(self):
            super().__init__()
            self.more = nn.Parameter(torch.zeros(3))

    cases = [
        (Line(), torch.optim.AdamW, "another optimiser.*than AdamW has.*--init-from"),
        (Line(1), torch.optim.SGD, r"another model \(weight is \(3,\) there and \(1,\) here\)"),
        (Other(), torch.optim.SGD, "another model .it has no more.*--init-from .*model_final"),
    ]
    for model, optimizer, message in cases:
        with pytest.raises(RunError, match=message):
            trainer_of(model, optimizer, tmp_path).resume_or_load(new_schedule=new_schedule)
