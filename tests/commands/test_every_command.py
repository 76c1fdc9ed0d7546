"""Every sub-command explains itself with an example, and the docs name it."""

import argparse
import shlex

import pytest
from commands_kit import ROOT, call

from d2ext.cli import build_parser
from d2ext.model_zoo import AUTHORS_AP


def commands(parser, words=()):
    """(words, parser) of every command that can be run."""
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                found += commands(child, (*words, name))
    return found or [(words, parser)]


ALL = dict(commands(build_parser()))
MINE = [w for w in ALL if w[0] in ("zoo", "doctor", "show", "analyze", "report", "lr-find", "data")]


@pytest.mark.parametrize("words", MINE, ids=" ".join)
def test_help_ends_with_an_example(words):
    text = ALL[words].format_help()
    assert f"Example:\n  d2ext {' '.join(words)} " in text


@pytest.mark.parametrize("words", MINE, ids=" ".join)
def test_the_example_is_understood(words):
    example = shlex.split(ALL[words].format_help().split("Example:\n  d2ext ")[1])
    args = build_parser().parse_args(example)
    assert callable(args.func)


@pytest.mark.parametrize("words", MINE, ids=" ".join)
def test_docs_show_it(words):
    assert f"d2ext {' '.join(words)} " in (ROOT / "docs" / "commands.md").read_text()


def test_all_are_there():
    assert set(MINE) == {
        ("zoo",), ("doctor",), ("show", "assign"), ("show", "predict"), ("analyze",), ("report",),
        ("lr-find",), ("data", "shapes"), ("data", "voc2coco"), ("data", "check"),
        ("data", "stats"),
    }  # fmt: skip


def test_zoo_shows_the_authors_figures_of_the_docs(capsys):
    for name, value in AUTHORS_AP.items():
        folder, _, file = name.partition("/")
        docs = {"DualWeighting": "dual_weighting", "EqualizedFocalLoss": "equalized_focal_loss"}
        text = (ROOT / "docs" / f"{docs[folder]}.md").read_text()
        text = text.partition("\n## Results\n")[2]
        backbone = "R101" if "R_101" in file else "R50"
        start = f"| `{file}` " if folder == "DualWeighting" else f"| improved baseline {backbone} "
        (row,) = [line for line in text.splitlines() if line.startswith(start)]
        assert f"| {value} |" in row
    assert call("zoo", "DualWeighting/*") == 0
    out = capsys.readouterr().out
    assert "47.9" in out and "not measured with d2ext" in out
    assert call("zoo", "Demo/*") == 0
    assert "authors" not in capsys.readouterr().out


def test_a_wrong_name_is_one_line_and_not_a_traceback(tmp_path, capsys):
    out = ("--output", tmp_path)
    assert call("report", tmp_path / "nowhere", *out) == 1
    assert capsys.readouterr().err.count("\n") == 1
    assert call("show", "assign", "Demo/fcos_shape", *out) == 1
    assert "the nearest are Demo/fcos_shapes.yaml" in capsys.readouterr().err
    words = (tmp_path / "none.json", "--dataset", tmp_path / "none.json")
    assert call("doctor", "Demo/fcos_shape", *out) == 1
    assert "the nearest are Demo/fcos_shapes.yaml" in capsys.readouterr().out
    assert call("analyze", *words, *out) == 1
    assert "none.json' is no file" in capsys.readouterr().err
