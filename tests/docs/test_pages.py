"""What the documentation names exists: files, configs, keys, commands and their flags."""

import re
import shlex
from pathlib import Path

import pytest
import yaml

import d2ext
from d2ext import model_zoo
from d2ext.cli import build_parser
from d2ext.engine import argument_parser

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"]
PAGES += sorted((ROOT / "docs").glob("*.md"))
COMMAND = re.compile(r"^(?:\$ )?(?:[A-Z_0-9]+=\S+ )*(?:python (?:-m )?|d2ext |make )")


@pytest.fixture(params=PAGES, ids=lambda page: page.name)
def page(request):
    return request.param


def test_links_lead_to_files(page):
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        if "://" not in target and not target.startswith("mailto:"):
            assert (page.parent / target).exists(), target


def test_named_files_exist(page):
    text = page.read_text()
    for name in re.findall(r"(?<![\w./<-])((?:configs|tools|tests|d2ext)/[\w./-]+)", text):
        name = name.rstrip(".")
        if "..." not in name and not name.endswith(("-", "_")):
            assert (ROOT / name).exists(), name


def commands_of(page):
    """Command lines of code blocks and of single words of code, joined over line ends."""
    text = re.sub(r"\\\n\s*", " ", page.read_text())
    lines = [line.strip() for line in text.splitlines()]
    lines += re.findall(r"`([^`\n]+)`", text)
    return [line.split("  #")[0] for line in lines if COMMAND.match(line)]


def words_of(command):
    words = shlex.split(command)
    while "=" in words[0] or words[0] == "$":
        words = words[1:]
    return words


def test_commands_take_their_flags(page):
    known = set(argument_parser()._option_string_actions)
    commands = build_parser()._subparsers._group_actions[0].choices
    for command in commands_of(page):
        words = words_of(command)
        flags = [w.split("=")[0] for w in words if w.startswith("--")]
        if words[:2] == ["python", "train_net.py"]:
            assert set(flags) <= known, command
        elif words[0] == "d2ext" or words[:3] == ["python", "-m", "d2ext"]:
            rest = words[1:] if words[0] == "d2ext" else words[3:]
            if not rest or rest[0].startswith("-"):
                continue
            assert rest[0] in commands, command
            parser = commands[rest[0]]
            nested = [a for a in parser._actions if a.__class__.__name__ == "_SubParsersAction"]
            if nested and len(rest) > 1 and rest[1] in nested[0].choices:
                parser = nested[0].choices[rest[1]]
            assert set(flags) <= set(parser._option_string_actions), command
        elif words[0] == "python" and len(words) > 1 and words[1].endswith(".py"):
            assert (ROOT / words[1]).exists() or "/" not in words[1], command
        elif words[0] == "make" and len(words) > 1 and words[1].isalpha():
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.M), command


def test_the_test_of_commands_sees_some():
    seen = [command for page in PAGES for command in commands_of(page)]
    assert sum("train_net.py" in command for command in seen) >= 4
    assert sum(command.startswith("d2ext ") for command in seen) >= 3


def test_overrides_on_pages_are_keys(page):
    known = set(d2ext.get_cfg().dotted_keys())
    nodes = {key.rsplit(".", k)[0] for key in known for k in range(1, key.count(".") + 1)}
    pattern = r"\b((?:MODEL|SOLVER|ENGINE|DATALOADER|DATASETS|INPUT|TEST)(?:\.[A-Z][A-Z0-9_]*)+)\b"
    for key in re.findall(pattern, page.read_text()):
        assert key in known | nodes or key.startswith("SOLVER.LOSS_WEIGHTS"), key


def test_configs_named_for_the_zoo_exist(page):
    for name in re.findall(
        r"(?<!/)\b((?:Demo|COCO|VOC|LVISv1)/\w+)(?:\.yaml)?\b", page.read_text()
    ):
        assert model_zoo.get_config_file(name)


def test_index_lists_every_page():
    index = (ROOT / "docs" / "index.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "index.md" or f"]({page.name})" in index, page.name


def test_citation_has_the_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == d2ext.__version__
    assert f"[{d2ext.__version__}]" in (ROOT / "CHANGELOG.md").read_text()
    assert (ROOT / "d2ext" / "py.typed").exists()


@pytest.mark.parametrize("name", ["recipes.md", "sampling_free.md"])
def test_configs_of_the_authors_rows_exist(name):
    """Whole names in the tables of rows, or names in the folder of the method."""
    page = (ROOT / "docs" / name).read_text()
    found = re.findall(r"`([A-Z]\w*/\w+)`", page) + [
        f"SamplingFree/{file}" for file in re.findall(r"`(\w+)\.yaml` \|", page)
    ]
    assert len(found) >= 8
    for config in found:
        assert (ROOT / "configs" / f"{config}.yaml").is_file(), config
