"""``--data`` under torchrun: the first process chooses the folder and the recipe for all."""

import json
import os

import own_data_kit as kit
import pytest
from process_kit import fork, free_port, wait_for_all

from d2ext.engine import argument_parser, own_data
from d2ext.engine.run import run


def note(args):
    """A training that only writes down what it would use."""
    with open(f"rank{os.environ['RANK']}.json", "w") as stream:
        json.dump([args.config_file, args.opts], stream)
    return 0


def start(folder, *words, processes=2):
    """``d2ext train --data pets WORDS`` in processes that torchrun has started; exit codes."""
    port = free_port()

    def process(rank):
        os.chdir(folder)
        os.environ.update(
            RANK=str(rank), WORLD_SIZE=str(processes), LOCAL_RANK=str(rank),
            LOCAL_WORLD_SIZE=str(processes), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )  # fmt: skip

        def measure(recipe, opts):
            open(f"measured{rank}", "a").close()
            return 0.1, 0.1

        own_data._measure = measure
        args = ["--data", "pets", "--method", "dw", *words, "MODEL.DEVICE", "cpu"]
        raise SystemExit(run(argument_parser().parse_args(args), note))

    return wait_for_all([fork(lambda rank=rank: process(rank)) for rank in range(processes)])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("D2EXT_DATA", str(tmp_path / "cache"))
    kit.write_coco(tmp_path / "pets")
    return tmp_path


def test_all_processes_have_the_recipe_of_the_first(folder):
    assert start(folder, "--minutes", "0.2") == [0, 0]
    files, opts = json.loads((folder / "rank0.json").read_text())
    assert files == [os.path.join("output", "train", own_data.RECIPE)]
    assert (folder / files[0]).is_file() and "OUTPUT_DIR" in opts[::2]
    assert json.loads((folder / "rank1.json").read_text()) == [files, opts]
    assert (folder / "measured0").exists() and not (folder / "measured1").exists()
    assert os.listdir(folder / "output") == ["train"]
    assert start(folder, "--resume") == [0, 0]
    again, _ = json.loads((folder / "rank1.json").read_text())
    assert again == files and os.listdir(folder / "output") == ["train"]


def test_one_process_has_its_own_folder_too(folder):
    """A second run gets another folder, and the latest is resumed."""
    for expected, words in (("train", ()), ("train-2", ()), ("train-2", ("--resume",))):
        assert start(folder, *words, processes=1) == [0]
        files, opts = json.loads((folder / "rank0.json").read_text())
        assert files == [os.path.join("output", expected, own_data.RECIPE)]
        assert dict(zip(opts[::2], opts[1::2]))["OUTPUT_DIR"] == f"output/{expected}"


def test_what_is_refused_ends_all_processes(folder):
    assert start(folder, "--minutes", "-1") == [1, 1]
    assert start(folder, "--resume") == [1, 1]
    assert not (folder / "rank1.json").exists()
    assert os.listdir(folder / "output") == []
