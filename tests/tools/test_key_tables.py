"""The tables of keys in the documentation are those of the declarations."""

import re
import sys
from pathlib import Path

import pytest

from d2ext.config.keys import all_sections

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools import key_tables  # noqa: E402


def test_pages_are_up_to_date():
    assert key_tables.main(["--check"]) == 0, "run python tools/key_tables.py"


def test_every_section_stands_on_one_page():
    text = "".join(page.read_text() for page in sorted(key_tables.DOCS.glob("*.md")))
    named = [name for found in key_tables.MARK.findall(text) for name in found[0].split()]
    assert sorted(named) == sorted({section.name for section in all_sections()})


def test_a_stale_page_is_found_and_written(tmp_path, monkeypatch, capsys):
    page = tmp_path / "a.md"
    page.write_text("# A\n\n<!-- keys: MODEL.SEESAW -->\nold\n<!-- end of keys -->\n\nend\n")
    monkeypatch.setattr(key_tables, "DOCS", tmp_path)
    assert key_tables.main(["--check"]) == 1 and "out of date" in capsys.readouterr().out
    assert key_tables.main([]) == 0 and key_tables.main(["--check"]) == 0
    assert re.search(
        r"\| `MODEL.SEESAW.P` \| `0.8` \| a number of at least 0 \| p: ", page.read_text()
    )
    page.write_text("<!-- keys: MODEL.NONE -->\n<!-- end of keys -->\n")
    with pytest.raises(SystemExit, match="No section MODEL.NONE"):
        key_tables.main([])
