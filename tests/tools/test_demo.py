"""The demo's choice of threads."""

import importlib
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    module = importlib.import_module("demo")
    monkeypatch.setattr(module.os, "cpu_count", lambda: 4)
    return module


@pytest.mark.parametrize("idle, free", [(0.0, 1), (1.4, 1), (2.6, 3), (4.0, 4), (9.0, 4)])
def test_threads_are_for_cores_that_are_free(demo, monkeypatch, idle, free):
    now = [100.0]
    ticks = os.sysconf("SC_CLK_TCK")
    text = lambda _: f"cpu 7 7 7 {int(idle * now[0] * ticks)} 0 7\ncpu0 1 1\n"  # noqa: E731
    monkeypatch.setattr(demo.Path, "read_text", text)
    monkeypatch.setattr(demo.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(demo.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    assert demo.free_cores() == free


def test_all_cores_where_the_system_does_not_tell(demo, monkeypatch):
    def refuse(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(demo.Path, "read_text", refuse)
    assert demo.free_cores() == 4
