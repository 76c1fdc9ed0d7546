"""The documentation's site: its sections come from the index, and links out of docs are handled."""

from pathlib import Path
from types import SimpleNamespace

import site_hooks

ROOT = Path(__file__).resolve().parents[2]


def page(name):
    return SimpleNamespace(file=SimpleNamespace(src_uri=name))


def files(*known):
    return SimpleNamespace(get_file_from_path=lambda path: path if path in known else None)


def convert(markdown, name="a.md", repository=""):
    known = files("a.md", "b.md", "studies/README.md")
    return site_hooks.on_page_markdown(markdown, page(name), {"repo_url": repository}, known)


def test_every_page_is_in_one_section():
    index = (ROOT / "docs" / "index.md").read_text()
    found = site_hooks.sections(index)
    names = [name for section in found for name in section]
    assert names == ["Start", "Methods", "Use", "Extend", "Evidence", "Develop"]
    pages = [page for section in found for pages in section.values() for page in pages]
    assert len(pages) == len(set(pages))
    on_disk = {p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")}
    assert set(pages) == on_disk - {"index.md"}


def test_links_between_pages_stay_and_links_to_code_lead_to_the_repository():
    assert convert("[b](b.md#x) [c](https://x.y) [d](#d)") == "[b](b.md#x) [c](https://x.y) [d](#d)"
    text = "see [the file](../setup.py)"
    assert convert(text) == "see the file"
    expected = "see [the file](https://h/p/blob/main/setup.py)"
    assert convert(text, repository="https://h/p/") == expected
    text = "[x](../../setup.py) [y](../b.md)"
    assert convert(text, "studies/README.md") == "x [y](../b.md)"


def test_a_link_that_shows_a_file_name_shows_the_title():
    known = files("install.md")
    text = "[install.md](install.md#x) [a](install.md)"
    text = site_hooks.on_page_markdown(text, page("a.md"), {}, known)
    assert text == "[Installing d2ext](install.md#x) [a](install.md)"


def test_a_broken_link_is_left_for_the_strict_build():
    assert convert("[x](../no_such_file.py)") == "[x](../no_such_file.py)"
