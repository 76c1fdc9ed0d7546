"""What ``train_net.py`` makes of a command line: the device, the folder, what is evaluated."""

import sys

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from engine_kit import load, toy_cfg, train
from torch import nn

from d2ext.engine import Checkpointer, Trainer, argument_parser, lazy, main


@pytest.fixture(scope="module", autouse=True)
def no_gpu():
    """A machine without one; trainings are forks of this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


@pytest.fixture(scope="module")
def trained(no_gpu, tiny, tmp_path_factory):
    """The folder of a finished run of 3 steps, and what it printed."""
    out = tmp_path_factory.mktemp("runs") / "run"
    return out, train(tiny, out, "SOLVER.MAX_ITER", 3, "MODEL.DEVICE", "cuda")


def test_without_a_gpu_the_cpu_is_used_with_a_warning(trained):
    out, text = trained
    for said in (text, (out / "log.txt").read_text()):
        assert said.count("MODEL.DEVICE is cuda, but there is no GPU: using the CPU.") == 1


def test_eval_only_with_resume_evaluates_the_last_checkpoint(tiny, trained, tmp_path):
    out = trained[0]
    predictions = out / "inference" / "tiny_val" / "coco_instances_results.json"
    at_the_end = predictions.read_text()
    text = train(tiny, out, "--eval-only", "--resume")
    assert f"Loading from {out / 'model_final.pth'}" in text
    assert predictions.read_text() == at_the_end
    with pytest.raises(AssertionError, match="There are no weights to evaluate"):
        train(tiny, tmp_path / "new", "--eval-only", "--resume")


def test_a_fast_development_run_leaves_checkpoints_alone(tiny, trained):
    out = trained[0]
    before = (out / "model_final.pth").read_bytes()
    train(tiny, out, "--fast-dev-run", "SOLVER.MAX_ITER", 3)
    assert (out / "model_final.pth").read_bytes() == before
    assert load(out / "fast_dev_run" / "model_final.pth")["iteration"] == 3


LAZY = """
from detectron2.config import LazyCall as L
from torch import nn

model = L(nn.Linear)(in_features=2, out_features=1)
train = dict(device="cuda", init_checkpoint="", seed=1)
dataloader = dict()
"""


def test_the_same_of_a_lazy_config(tmp_path, monkeypatch, caplog):
    file, out, seen = tmp_path / "config.py", tmp_path / "run", []
    file.write_text(LAZY)
    trained = nn.Linear(2, 1)
    Checkpointer(trained, str(out)).save("model_final")
    monkeypatch.setattr(lazy, "_evaluate", lambda cfg, model: seen.append(model.weight))
    words = ["--lazy", "--eval-only", "--resume", "--config-file", str(file)]
    main(argument_parser().parse_args([*words, f"train.output_dir={out}"]))
    assert torch.equal(seen[0], trained.weight)
    assert "train.device is cuda, but there is no GPU" in (out / "log.txt").read_text()
    folder = lazy.fast_dev_run_folder
    assert [folder(str(out)), folder(str(tmp_path))] == [f"{out}/fast_dev_run", str(tmp_path)]


@pytest.mark.parametrize(
    "words, device",
    [
        (["--config-file", "Demo/fcos_shapes"], "cpu"),
        (["--config-file", "Demo/fcos_shapes", "MODEL.DEVICE", "cuda:0"], "cuda:0"),
        (["MODEL.DEVICE", "cpu"], "cpu"),
        ([], "cuda"),
        (["--lazy", "--config-file", "lazy/fcos.py", "train.device=cpu"], "cpu"),
    ],
)
def test_processes_are_started_for_the_device_of_the_config(monkeypatch, words, device):
    module, given = sys.modules["d2ext.engine.run"], {}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(module, "launch", lambda *args, **kwargs: given.update(kwargs))
    module.run(argument_parser().parse_args(words))
    assert given["device"] == device


def test_a_data_set_that_nobody_can_evaluate_is_refused_at_the_start(tiny, tmp_path):
    DatasetCatalog.register("tiny_odd", lambda: DatasetCatalog.get("tiny_val"))
    MetadataCatalog.get("tiny_odd").set(evaluator_type="odd", thing_classes=["a", "b", "c"])
    cfg = toy_cfg(tmp_path, "DATASETS.TEST", ("tiny_odd",))
    try:
        with pytest.raises(ValueError, match="'tiny_odd' asks for the evaluator 'odd'"):
            Trainer(cfg)

        class Own(Trainer):
            @classmethod
            def build_evaluator(cls, cfg, dataset_name, output_folder=None):
                """Knows of odd ones."""

        Own(cfg)
    finally:
        DatasetCatalog.remove("tiny_odd")
        MetadataCatalog.remove("tiny_odd")
