"""Every sub-command explains itself with an example, and the docs name it."""

import argparse

import pytest
from commands_kit import ROOT

from d2ext.cli import build_parser


def commands(parser, words=()):
    """(words, parser) of every command that can be run."""
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                found += commands(child, (*words, name))
    return found or [(words, parser)]


ALL = dict(commands(build_parser()))
MINE = [w for w in ALL if w[0] in ("doctor", "show", "analyze", "report", "lr-find", "data")]


@pytest.mark.parametrize("words", MINE, ids=" ".join)
def test_help_ends_with_an_example(words):
    text = ALL[words].format_help()
    assert f"Example:\n  d2ext {' '.join(words)} " in text


@pytest.mark.parametrize("words", MINE, ids=" ".join)
def test_the_example_is_understood(words):
    example = ALL[words].format_help().split("Example:\n  d2ext ")[1].strip().split()
    args = build_parser().parse_args(example)
    assert callable(args.func)


@pytest.mark.parametrize("words", MINE, ids=" ".join)
def test_docs_show_it(words):
    assert f"d2ext {' '.join(words)} " in (ROOT / "docs" / "commands.md").read_text()


def test_all_are_there():
    assert set(MINE) == {
        ("doctor",), ("show", "assign"), ("show", "predict"), ("analyze",), ("report",),
        ("lr-find",), ("data", "shapes"), ("data", "voc2coco"), ("data", "check"),
        ("data", "stats"),
    }  # fmt: skip
