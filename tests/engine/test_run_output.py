"""What a run says, where, and what it leaves behind."""

import csv
import json
import logging
import os
import sys

import own_data_kit
import pytest
import torch
from campaigns.runs import environment_of
from campaigns.toy import toy_options
from engine_kit import run_ranks, train
from process_kit import call
from test_trainer_hooks import line_trainer

from d2ext.cli import main as d2ext
from d2ext.commands.train import run_train as train_command
from d2ext.config import get_cfg
from d2ext.data.own import register_own_data
from d2ext.engine import HookBase, argument_parser
from d2ext.engine.hooks import (
    BestCheckpointer,
    Evaluate,
    PeriodicCheckpointer,
    ResultsTable,
    tell_results,
)
from d2ext.engine.run_folder import latest_folder, new_folder

STEPS = ("SOLVER.MAX_ITER", 4, "TEST.EVAL_PERIOD", 2)


def options(*words):
    """The toy's, without an OUTPUT_DIR."""
    given = list(toy_options("nowhere"))
    at = given.index("OUTPUT_DIR")
    return [str(word) for word in (*given[:at], *given[at + 2 :], *words)]


def run_train(tiny, folder, *words, flags=()):
    """``d2ext train`` in a folder; returns its output."""
    command = ["train", "--import", "campaigns.toy", *flags, *options(*words)]
    return call(lambda: sys.exit(d2ext(command)), folder, environment_of(tiny, ""))


def test_folders_of_runs_are_counted(tmp_path):
    root = str(tmp_path / "output")
    assert latest_folder("train", root) is None
    made = [new_folder("train", root) for _ in range(11)]
    assert [os.path.basename(path) for path in made[:3]] == ["train", "train-2", "train-3"]
    assert latest_folder("train", root) is None  # nothing in them
    for number in (0, 1, 9):
        open(os.path.join(made[number], "log.txt"), "w").close()
    os.mkdir(os.path.join(root, "train-of-another-kind"))
    assert latest_folder("train", root) == made[9]


def test_each_run_has_its_folder_and_resume_takes_the_latest(tiny, tmp_path):
    for _ in range(2):
        done = run_train(tiny, tmp_path, *STEPS)
        assert done.returncode == 0, done.stdout + done.stderr
    done = run_train(tiny, tmp_path, *STEPS, "SOLVER.MAX_ITER", 5, flags=["--resume"])
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Resumed at step 4 from output/train-2/model_final.pth" in done.stdout
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == ["train", "train-2"]
    # A run that is refused leaves no folder.
    assert run_train(tiny, tmp_path, "SOLVER.MAX_ITER", "many").returncode != 0
    assert len(list((tmp_path / "output").iterdir())) == 2


def test_the_terminal_is_for_people_and_the_file_for_everything(tiny, tmp_path):
    out = tmp_path / "run"
    text = train(tiny, out, *STEPS, "ENGINE.LOG_PERIOD", 1)
    log = (out / "log.txt").read_text()
    lines = text.splitlines()
    first = next(k for k, line in enumerate(lines) if "iter: 0 " in line)
    assert first < 30, text
    for words in ("MAX_ITER: 4", "ToyDetector(", "PyTorch", "Command line: "):
        assert words in log and words not in text
    assert "\x1b" not in text and "\x1b" not in log
    assert text.count("Distribution of instances") <= 2  # of the training and of the test set
    end = text[text.index("Done: 4 steps") :]
    assert "Best: bbox/AP" in end and f"{out}/results.csv" in end
    assert f"best checkpoint  {out}/model_best.pth" in end
    assert f"d2ext report {out}\n" in end
    assert f"d2ext predict --weights {out}/model_best.pth IMAGES" in end
    rows = list(csv.DictReader((out / "results.csv").open()))
    assert [row["step"] for row in rows] == ["2", "4"]
    assert {"total_loss", "lr", "bbox/AP", "bbox/AP50"} < set(rows[0])
    assert not any("AP-" in name for name in rows[0])


def test_json_and_quiet(tiny, tmp_path):
    done = run_train(tiny, tmp_path, *STEPS, flags=["--json"])
    assert done.returncode == 0, done.stderr
    values = json.loads(done.stdout)
    assert values["exit_code"] == 0 and values["steps"] == 4 and values["metric"] == "bbox/AP"
    assert values["folder"] == "output/train" and values["best_step"] in (2, 4)
    assert all((tmp_path / file).is_file() for file in values["files"])
    done = run_train(tiny, tmp_path, *STEPS, flags=["--quiet"])
    assert (done.returncode, done.stdout) == (0, "")
    # What goes wrong is said all the same.
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / ".lock").symlink_to(tmp_path)
    done = run_train(tiny, tmp_path, *STEPS, "OUTPUT_DIR", "taken", flags=["--quiet"])
    assert done.returncode == 1 and "is a link or no regular file" in done.stderr


def test_json_of_a_fast_run_is_not_that_of_the_run_beside_it(tmp_path, monkeypatch):
    parser = argument_parser()
    args = parser.parse_args(["--fast-dev-run", "OUTPUT_DIR", str(tmp_path)])
    args.json = True
    monkeypatch.setattr("d2ext.engine.run", lambda args: 0)  # it has run
    for folder, steps in ((tmp_path, 500), (tmp_path / "fast_dev_run", 4)):
        folder.mkdir(exist_ok=True)
        (folder / "summary.json").write_text(json.dumps({"steps": steps, "files": {}}))
    assert train_command(args).values == {"exit_code": 0, "steps": 4, "files": {}}


def table_trainer(folder, figures, steps=6):
    trainer = line_trainer([torch.ones(4, 3)], output_dir=str(folder), max_iter=steps)
    values = iter(figures)
    hooks = [
        Evaluate(2, lambda: {"bbox": {"AP": next(values), "AP-ball": 1.0}, "segm": {"AP": 9.0}}),
        BestCheckpointer("auto"),
        ResultsTable(str(folder)),
        PeriodicCheckpointer(2),
    ]
    trainer.register_hooks(hooks)
    return trainer


def test_the_best_is_found_and_the_table_goes_on(tmp_path, caplog):
    class Stop(HookBase):
        def before_step(self):
            if self.trainer.iter == 3:
                self.trainer.request_stop("a test", by_signal=True)

    whole = table_trainer(tmp_path / "whole", [1.0, 3.0, 2.0])
    whole.train()
    parts = table_trainer(tmp_path / "parts", [1.0, 3.0])
    parts.register_hooks([Stop()])
    parts.train()
    parts = table_trainer(tmp_path / "parts", [2.0])
    parts.resume_or_load()
    parts.train()
    tables = [(tmp_path / name / "results.csv").read_text() for name in ("whole", "parts")]
    assert tables[0] == tables[1] and tables[0].count("\n") == 4
    assert torch.load(tmp_path / "parts" / "model_best.pth")["iteration"] == 3
    with caplog.at_level(logging.INFO):
        tell_results(parts)
    assert "Best: bbox/AP 3 at step 4." in caplog.text
    summary = json.loads((tmp_path / "parts" / "summary.json").read_text())
    assert (summary["best"], summary["best_step"], summary["steps"]) == (3.0, 4, 6)


@pytest.mark.parametrize("watched", ["val", "test"])
def test_the_end_names_the_test_split_that_was_not_watched(tmp_path, caplog, monkeypatch, watched):
    monkeypatch.setenv("D2EXT_DATA", str(tmp_path / "cache"))
    path = tmp_path / "my pets"
    own_data_kit.write_coco(path)
    names = register_own_data(str(path)).names
    trainer = table_trainer(tmp_path / "run", [1.0, 2.0, 3.0])
    trainer.train()
    trainer.cfg = get_cfg()
    trainer.cfg.DATASETS.DATA, trainer.cfg.DATASETS.TEST = str(path), (names[watched],)
    with caplog.at_level(logging.INFO):
        tell_results(trainer)
    weights = tmp_path / "run" / "model_best.pth"
    command = f"  d2ext val --weights {weights} --data '{path}' --split test"
    assert (command in caplog.text) == (watched == "val")


@pytest.mark.dist
def test_rank_0_writes_the_table(tmp_path):
    def rank_main(rank):
        trainer = table_trainer(tmp_path, [1.0, 3.0, 2.0])
        trainer.train()
        tell_results(trainer)

    run_ranks(rank_main)
    assert (tmp_path / "results.csv").read_text().count("\n") == 4
