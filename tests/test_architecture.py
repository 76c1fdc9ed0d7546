"""Imports go downward only, as docs/architecture.md says, and light modules stay light."""

import ast
import importlib.util
import sysconfig
from pathlib import Path

import draw_imports
import pytest

ROOT = Path(__file__).resolve().parents[1]


def test_imports_go_downward_only():
    assert draw_imports.violations() == []


def test_every_room_has_its_place():
    rooms = {draw_imports.room_of(item.module) for item in draw_imports.imports()}
    unknown = {r for r in rooms if draw_imports.level_of(r) is None} - set(draw_imports.HELPERS)
    assert unknown == set()
    assert {"ops", "losses", "config", "modeling", "engine", "commands"} <= rooms


@pytest.mark.parametrize("line", ["from ..engine import Trainer", "import d2ext.commands.show"])
def test_an_upward_import_is_found(tmp_path, monkeypatch, line):
    package = tmp_path / "d2ext"
    (package / "modeling").mkdir(parents=True)
    (package / "modeling" / "new.py").write_text(f"def f():\n    {line}\n")
    found = list(draw_imports.imports(package))
    monkeypatch.setattr(draw_imports, "imports", lambda: iter(found))
    (sentence,) = draw_imports.violations()
    assert sentence.startswith("d2ext.modeling.new, line 2, imports d2ext.")


def is_standard(module):
    """Whether a module comes with Python; ``sys.stdlib_module_names`` is of 3.10 and later."""
    spec = importlib.util.find_spec(module)
    if spec is None or not spec.has_location:
        return spec is not None and spec.origin in ("built-in", "frozen")
    library, place = Path(sysconfig.get_path("stdlib")).resolve(), Path(spec.origin).resolve()
    return library in place.parents and "-packages" not in str(place)


def test_what_is_standard():
    assert all(map(is_standard, ("sys", "os", "ast", "math")))
    assert not is_standard("numpy") and not is_standard("detectron2")


@pytest.mark.parametrize("room", draw_imports.TORCH_ONLY)
def test_the_mathematics_needs_torch_only(room):
    for path in (ROOT / "d2ext" / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            else:
                continue
            for top in {name.split(".")[0] for name in names} - {"torch", "d2ext", "triton"}:
                assert is_standard(top), (path.name, names)
