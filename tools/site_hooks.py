"""What the documentation needs to become a site: sections from its index, links out of docs."""

import os
import posixpath
import re
from pathlib import Path
from typing import Any, Dict, List

ROOT = Path(__file__).resolve().parent.parent
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_TITLE = re.compile(r"^# (.+)$", re.MULTILINE)
# GitHub's sections of a page start with "## "; the index has one for each part of the site.
_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)


def on_config(config: Any) -> Any:
    """The navigation: a section for each of the index, with the pages that it links, in order."""
    config["nav"] = [{"Home": "index.md"}, *sections((ROOT / "docs" / "index.md").read_text())]
    return config


def sections(index: str) -> List[Dict[str, List[str]]]:
    """Sections and pages of the index; a page belongs to the first section that links it."""
    _, *parts = _SECTION.split(index)
    seen = {"index.md"}
    found = []
    for name, text in zip(parts[::2], parts[1::2]):
        pages = []
        for _, _, target in _LINK.findall(text):
            page = target.partition("#")[0]
            if page.endswith(".md") and not page.startswith("..") and page not in seen:
                seen.add(page)
                pages.append(page)
        found.append({name: pages})
    return found


def title_of(file: str, text: str) -> str:
    """The title of a page in place of its file name, which says little to readers of a site."""
    found = _TITLE.search((ROOT / file).read_text()) if text.endswith(".md") else None
    return found.group(1) if found else text


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to files outside of docs lead to the repository, or are names where there is none."""
    folder = posixpath.dirname(page.file.src_uri)
    repository = (config.get("repo_url") or "").rstrip("/")

    def replace(match: "re.Match[str]") -> str:
        image, text, target = match.groups()
        if "://" in target or target.startswith(("#", "mailto:")):
            return match.group(0)
        path, hash_, anchor = target.partition("#")
        file = posixpath.normpath(posixpath.join("docs", folder, path))
        if files.get_file_from_path(posixpath.relpath(file, "docs")) is not None:
            return f"{image}[{title_of(file, text)}]({target})"
        if not os.path.exists(ROOT / file):
            return match.group(0)  # the strict build says so
        if file == "README.md" and not repository:
            return f"{image}[{text}](index.md)" if folder == "" else text
        return f"[{text}]({repository}/blob/main/{file}{hash_}{anchor})" if repository else text

    return _LINK.sub(replace, markdown)
