"""The page of each method has one shape, and its table of keys says what the config says."""

import json
import re
from pathlib import Path

import pytest
import yaml

import d2ext

DOCS = Path(__file__).resolve().parents[2] / "docs"
SECTIONS = (
    "The idea in five lines",
    "Use",
    "From formula to code",
    "Keys",
    "Differences from the paper",
    "Results",
    "Citation",
)
# The node of the config that belongs to a method.
PAGES = {
    "dual_weighting": "MODEL.DW",
    "equalized_focal_loss": "MODEL.EFL",
    "sampling_free": "MODEL.SAMPLING_FREE",
    "harmonic": "MODEL.HARMONIC",
    "alwa": "SOLVER.ALWA",
}


@pytest.fixture(params=sorted(PAGES))
def page(request):
    return request.param


def sections_of(page):
    """Titles and texts of the sections of the second level, in order; code is not a title."""
    text = (DOCS / f"{page}.md").read_text()
    fences = [m.span() for m in re.finditer(r"^```.*?^```", text, re.M | re.S)]
    heads = [
        m
        for m in re.finditer(r"^## (.+)$", text, re.M)
        if not any(start < m.start() < end for start, end in fences)
    ]
    ends = [m.start() for m in heads[1:]] + [len(text)]
    return {m.group(1): text[m.end() : end] for m, end in zip(heads, ends)}


def test_sections_come_in_one_order(page):
    assert [title for title in sections_of(page) if title in SECTIONS] == list(SECTIONS)


def test_each_section_has_what_belongs_there(page):
    sections = sections_of(page)
    text = (DOCS / f"{page}.md").read_text()
    assert re.findall(r"^(\d)\. ", sections["The idea in five lines"], re.M) == list("12345")
    assert re.search(r"!\[.+\]\(images/\S+\.png\)", text)
    assert "python train_net.py --config-file configs/" in sections["Use"]
    assert re.search(r"^\|.+\|\n\|[-|: ]+\|\n", sections["From formula to code"], re.M)
    # Whose figures are these?
    assert re.search(r"\*\*[^*]*\b(authors|theirs|their)\b", sections["Results"], re.I)
    assert re.search(r"\*\*Ours\b", sections["Results"])
    assert re.search(r"```bibtex\n@\w+\{", sections["Citation"])


def rows_of_keys(page):
    """(key, default) of the tables with a column of defaults in the section on keys."""
    prefix = PAGES[page]
    column = None
    for line in sections_of(page)["Keys"].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            column = None
        elif "default" in (cell.lower() for cell in cells):
            column = [cell.lower() for cell in cells].index("default")
        elif column is not None and not set(line) <= set("|-: "):
            keys = [k for word in re.findall(r"`([^`]+)`", cells[0]) for k in expand(word)]
            values = yaml.safe_load(f"[{cells[column].replace('`', '')}]")
            values = values * len(keys) if len(values) == 1 else values
            assert len(values) == len(keys), line
            for key, value in zip(keys, values):
                absolute = key.split(".")[0] in ("MODEL", "SOLVER", "DATALOADER", "TEST")
                yield (key if absolute else f"{prefix}.{key}"), value


def expand(word):
    """Keys that `NAME.{A,B}` stands for."""
    match = re.match(r"(.*)\{(.+)\}(.*)", word)
    return [match[1] + x + match[3] for x in match[2].split(",")] if match else [word]


def test_keys_have_the_defaults_of_the_page(page):
    cfg = d2ext.get_cfg()
    rows = dict(rows_of_keys(page))
    assert len(rows) >= 4
    for key, said in rows.items():
        value = cfg
        for name in key.split("."):
            value = value[name]
        assert value == said and type(value) in (type(said), float), f"{key} is {value!r}"


def test_figures_of_speed_are_those_of_the_benchmarks():
    cases = json.loads((DOCS / "benchmarks.json").read_text())["losses"]["cases"]
    ratio = {(c["case"], r["version"]): f"{r['ratio']:.3f}" for c in cases for r in c["ratios"]}

    def row(title, version, *names):
        cells = [ratio[name + part, version] for name in names for part in ("", ", peak memory")]
        return f"| {' | '.join([title, *cells])} |"

    text = (DOCS / "dual_weighting.md").read_text()
    for count in (10, 50, 200):
        assert row(str(count), "d2ext", f"DW, {count} objects an image") in text
    text = (DOCS / "equalized_focal_loss.md").read_text()
    sizes = ("sigmoid, 20000 x 1203", "sigmoid, 44000 x 80")
    for version, suffix in (
        ("focal", ""),
        ("EFL", ", with its statistics"),
        ("EQFL", ", with its statistics"),
    ):
        assert row(version + suffix, version.lower(), *sizes) in text


def test_every_key_of_the_method_stands_on_its_page(page):
    node = PAGES[page] + "."
    own = {key for key in d2ext.get_cfg().dotted_keys() if key.startswith(node)}
    assert own - set(dict(rows_of_keys(page))) == set()
