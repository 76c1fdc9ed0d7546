"""Study files: what they may say, and what is reported before anything runs."""

from pathlib import Path

import pytest
from study_kit import CONFIG, study_of

from d2ext.analysis.study import (
    Results,
    check_study,
    default_figures,
    fill_tables,
    load_study,
    markdown_table,
    marked_tables,
)

ROOT = Path(__file__).resolve().parents[2]
COMMITTED = sorted((ROOT / "docs/studies").glob("*.yaml"))


def write(folder, text):
    path = folder / "x.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_studies_can_run(path):
    study = load_study(path, ROOT)
    assert study.name == path.stem
    assert check_study(study) == []
    assert len({run.seed for run in study.runs}) >= 3
    first = [run.fingerprint() for run in study.runs if run.seed == study.runs[0].seed]
    assert len(set(first)) == len(first)  # no two runs are the same


def test_parts_are_combined(tmp_path):
    text = (
        "name: x\nconfig: c.yaml\ncommon: [A, 1]\nparts: {p: [B, 2], q: [C, 3]}\n"
        "runs: {none: , both: {parts: [p, q], overrides: [D, 4], config: d.yaml}}\n"
    )
    none, both = load_study(write(tmp_path, text), tmp_path).runs
    assert none.overrides == ("A", 1) and none.config == str(tmp_path / "c.yaml")
    assert both.overrides == ("A", 1, "B", 2, "C", 3, "D", 4)
    assert both.config == str(tmp_path / "d.yaml")


def test_configs_are_found_beside_the_study_here_and_in_the_project(tmp_path, monkeypatch):
    folders = {name: tmp_path / name for name in ("study", "here", "root")}
    for folder in folders.values():
        folder.mkdir()
    path = write(folders["study"], "name: x\nconfig: c.yaml\nruns: {a: {}}\n")
    monkeypatch.chdir(folders["here"])
    for name in ("root", "here", "study"):  # from the last looked at to the first
        (folders[name] / "c.yaml").write_text("")
        run = load_study(path, folders["root"]).runs[0]
        assert run.config == str(folders[name] / "c.yaml")


@pytest.mark.parametrize(
    "text, message",
    [
        ("name: x\nbaseline: q\nruns: {a: {config: c}}\n", "baseline 'q' is none of a"),
        ("name: x\nruns: {a: {config: c, overrides: [K]}}\n", "'a' are not KEY VALUE pairs"),
        ("name: x\nconfig: c\nparts: {}\nruns: {a: {parts: [r]}}\n", "'r', which parts lacks"),
        ("name: x\nruns: {a: {}}\n", "'a' names no config"),
        ("runs: {a: {config: c}}\n", "a study needs a name"),
        ("name: x\nseed: [1]\nruns: {a: {config: c}}\n", "'seed' is none of baseline, common"),
        ("name: x\nruns: {a: {config: c, override: []}}\n", "run 'a': 'override' is none of"),
    ],
)
def test_bad_study_files(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_study(write(tmp_path, text), tmp_path)


def test_bad_configs_are_reported_before_anything_runs(tmp_path):
    text = f"""
name: x
config: {CONFIG}
seeds: [1, 2]
runs:
  fine: {{}}
  no_file: {{config: nowhere.yaml}}
  no_key: {{overrides: [SOLVER.BASE_RL, 1.0]}}
  no_number: {{overrides: [SOLVER.MAX_ITER, many]}}
  no_data: {{overrides: [DATASETS.TRAIN, "('d2ext_shape_train',)"]}}
"""
    problems = check_study(load_study(write(tmp_path, text), ROOT))
    assert [problem.split(":")[0] for problem in problems] == [
        "no_file", "no_key", "no_number", "no_data",
    ]  # fmt: skip
    assert "nowhere.yaml' does not exist" in problems[0]
    assert "BASE_LR" in problems[1] and "d2ext_shapes_train" in problems[3]


def test_a_fingerprint_follows_the_config_and_not_its_file(tmp_path):
    first = study_of(tmp_path, ROOT, lr=2.0)
    assert first.runs[0].fingerprint() != first.runs[1].fingerprint()
    again = study_of(tmp_path, ROOT, lr=3.0)
    assert [a.fingerprint() == b.fingerprint() for a, b in zip(first.runs, again.runs)] == [
        True, False, True, False,
    ]  # fmt: skip


def test_tables_of_the_page_are_those_of_the_results():
    text = (ROOT / "docs/studies/README.md").read_text()
    tables = {}
    for path in COMMITTED:
        study = load_study(path, ROOT)
        results = Results(study, path.with_suffix(".jsonl")).finished()
        if results:
            figures = list(study.figures) or default_figures(results)
            tables[study.name] = markdown_table(results, figures, study.baseline)
    assert sorted(marked_tables(text)) == sorted(tables)
    assert fill_tables(text, tables) == text


def test_only_tables_between_markers_change():
    text = "a\n<!-- begin x -->\nold\n<!-- end x -->\nb\n<!-- begin y -->\n<!-- end y -->\n"
    assert marked_tables(text) == ["x", "y"]
    assert fill_tables(text, {"x": "new\n", "z": "?"}) == text.replace("old", "new")
