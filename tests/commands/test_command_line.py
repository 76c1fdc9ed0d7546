"""What holds for every command: quick help, --json, --quiet, ranges, pipes, and exit statuses."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from commands_kit import ROOT, call
from process_kit import call_python
from test_every_command import ALL

from d2ext import cli
from d2ext._text import printable_lines
from d2ext.commands.common import Done
from d2ext.data import tiny_dataset

HELP = """
import sys
from d2ext.cli import main
for words in {words}:
    try:
        main([*words, "--help"])
    except SystemExit as end:
        assert end.code == 0
print(sorted({{"torch", "numpy", "yaml", "PIL", "matplotlib"}} & set(sys.modules)))
"""


def test_help_of_no_command_imports_anything_slow():
    """0.2 s where ``import torch`` takes 3; counted in modules, as times depend on the machine."""
    code = HELP.format(words=[(), *ALL])
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.splitlines()[-1] == "[]"


def test_zoo_is_narrow_and_the_same_as_json(capsys):
    assert call("zoo") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 100
    assert call("zoo", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    names = [row["config"] for row in found["configs"]]
    assert sorted(line.split()[0] for line in lines if line.startswith("  ")) == sorted(names)
    assert call("zoo", "--quiet") == 0
    assert capsys.readouterr().out == ""


def test_json_is_all_that_is_printed(tmp_path, capsys):
    with tiny_dataset("coco", num_images=2) as name:
        words = ["data", "check", name, "--output", tmp_path]
        assert call(*words, "--json") == 0
        said = capsys.readouterr()
        found = json.loads(said.out)
        assert (found["problems"], found["files"]) == ({}, [str(tmp_path / "check.json")])
        assert call(*words, "--quiet") == 0
        assert capsys.readouterr().out == ""
        assert call(*words) == 0
        assert "Written to " in capsys.readouterr().out


def test_quiet_still_says_what_is_wrong(capsys):
    assert call("data", "check", "no_such_set", "--quiet") == 1
    said = capsys.readouterr()
    assert "'no_such_set' is not registered" in said.err and said.out == ""


WRONG = {
    "show assign c --images -3": "'-3' must be a whole number from 1 on",
    "show predict r --dataset d --images 0": "'0' must be a whole number from 1 on",
    "show predict r --dataset d --score 7": "'7' must be a number from 0 to 1",
    "analyze r --dataset d --max-detections 0": "'0' must be a whole number from 1 on",
    "analyze r --dataset d --min-score nan": "'nan' must be a number from 0 to 1",
    "lr-find c --steps 0": "'0' must be a whole number from 1 on",
    "doctor c --steps -1": "'-1' must be a whole number from 0 on",
    "data shapes --train 0": "'0' must be a whole number from 1 on",
    "data shapes --classes 2.5": "'2.5' must be a whole number from 1 on",
    "predict i --threshold 1.5": "'1.5' must be a number from 0 to 1",
    "predict i --batch-size 0": "'0' must be a whole number from 1 on",
    "export --size 0 5": "'0' must be a whole number from 1 on",
    "train --num-gpus x": "invalid int value: 'x'",
}


@pytest.mark.parametrize("words", WRONG)
def test_a_number_out_of_range_is_a_usage_error(words, capsys):
    with pytest.raises(SystemExit) as end:
        call(*words.split())
    assert end.value.code == 2 and WRONG[words] in capsys.readouterr().err


def test_no_command_is_a_usage_error(capsys):
    assert call() == 2
    assert "commands:" in capsys.readouterr().out


def test_a_reader_that_leaves_early_ends_the_command_without_a_traceback():
    command = f"{sys.executable} -m d2ext zoo | head -n 1; echo ${{PIPESTATUS[0]}}"
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    done = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=env, check=True
    )
    assert done.stderr == "" and done.stdout.splitlines()[-1] in ("0", "1")


def test_a_module_is_imported_for_every_command_that_takes_a_registered_name(tmp_path):
    (tmp_path / "my_parts.py").write_text(
        "from detectron2.data import DatasetCatalog, MetadataCatalog\n"
        "DatasetCatalog.register('my_parts_set', lambda: [])\n"
        "MetadataCatalog.get('my_parts_set').set(thing_classes=['x'])\n"
    )
    for words in (("data", "check"), ("data", "stats")):
        done = call_python(
            "-m", "d2ext", *words, "my_parts_set", "--import", "my_parts", "--output", "out",
            cwd=tmp_path,
        )  # fmt: skip
        assert "is not registered" not in done.stderr, done.stderr
        assert "has no image" in done.stderr or done.returncode == 0, done.stderr
    takes = {words for words, parser in ALL.items() if "--import" in parser._option_string_actions}
    assert set(ALL) - takes == {
        ("zoo",), ("data", "shapes"), ("data", "voc2coco"), ("data", "import"),
        ("data", "split"), ("data", "tile"),
    }  # fmt: skip


def test_a_failure_of_the_system_is_one_line(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert call("data", "shapes", "--output", tmp_path / "file" / "x") == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Not a directory" in said


def test_names_cannot_write_to_the_terminal(monkeypatch, capsys):
    assert printable_lines("a\x1b[2Jb\nc\u202ed é") == "a\\x1b[2Jb\nc\\u202ed é"
    fake = SimpleNamespace(json=False, quiet=False, func=lambda args: Done({}, ["a\x1b.json", "b"]))
    assert cli._call(fake) == 0
    assert capsys.readouterr().out == "Written to a\\x1b.json and b.\n"
