"""Study files: what they may say, and what is reported before anything runs."""

from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from studies import (
    Results,
    check_study,
    default_figures,
    fill_tables,
    load_study,
    markdown_table,
    marked_tables,
)
from study_kit import CONFIG, study_of

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


def test_a_study_adds_to_its_base(tmp_path):
    (tmp_path / "base.yaml").write_text(
        "title: b\nbaseline: a\nseeds: [1, 2]\nconfig: c.yaml\ncommon: [A, 1]\n"
        "parts: {p: [P, 1], q: [Q, 1]}\nruns: {a: {}, b: {parts: [p, q]}}\n"
    )
    text = "_BASE_: base.yaml\nname: x\nseeds: [3]\ncommon: [A, 2]\n"
    text += "parts: {q: [R, 1]}\nruns: {c: {}}\n"
    study = load_study(write(tmp_path, text), tmp_path)
    assert (study.name, study.title, study.baseline) == ("x", "x", "a")
    common = ("A", 1, "A", 2)
    assert {run.key: run.overrides for run in study.runs} == {
        ("a", 3): common,
        ("b", 3): (*common, "P", 1, "R", 1),
        ("c", 3): common,
    }
    (tmp_path / "base.yaml").write_text("_BASE_: x.yaml\n")
    with pytest.raises(ValueError, match="base.yaml: _BASE_ leads from x.yaml back to it"):
        load_study(tmp_path / "x.yaml", tmp_path)


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
        ("name: x\nbaseline: q\nruns: {a: {config: c}}\n", "baseline 'q' is not one of a"),
        ("name: x\nruns: {a: {config: c, overrides: [K]}}\n", "'a' are not KEY VALUE pairs"),
        ("name: x\nconfig: c\nparts: {}\nruns: {a: {parts: [r]}}\n", "'r', which parts lacks"),
        ("name: x\nruns: {a: {}}\n", "'a' names no config"),
        ("runs: {a: {config: c}}\n", "a study needs a name"),
        ("[x]\n", "x.yaml must be a mapping, such as {name: "),
        ("_BASE_: [x]\nname: x\n", "_BASE_ must be one text"),
        ("name: x\nruns: {}\n", "under runs a name for each config"),
        ("name: x\nseed: [1]\nruns: {a: {config: c}}\n", "'seed' is not one of _BASE_, baseline"),
        ("name: x\nruns: {a: {config: c, override: []}}\n", "run 'a': 'override' is not one of"),
        # What YAML takes for something else than a name.
        ("name: x\nruns: {1: {config: c}}\n", "runs must be a text, .* reads 1 .* in quotes"),
        ("name: x\nconfig: c\nbaseline: no\nruns: {no: {}}\n", "baseline .* reads False here"),
        ("name: 7\nruns: {a: {config: c}}\n", "name must be a text, .* write it in quotes"),
        ("name: x\nconfig: c\nruns: {a: {}, b: {}, a: {}}\n", "line 3: 'a' occurs twice"),
        # A text that would be read as a list of letters.
        ("name: x\nmeasure: consistency\nruns: {a: {}}\n", r"measure must be .* \[consistency\]"),
        ("name: x\nfigures: bbox/AP\nruns: {a: {}}\n", r"figures must be a list, .* \[bbox/AP\]"),
        ("name: x\nimport: mydata\nruns: {a: {}}\n", r"import must be a list, .* not 'mydata'"),
        ("name: x\nruns: {a: {config: c, parts: efl}}\n", r"run 'a': parts must be a list"),
        ("name: x\nruns: {a: {config: c, overrides: K V}}\n", "overrides must be a list of KEY"),
        ("name: x\ncommon: {K: 1}\nruns: {a: {config: c}}\n", "common must be a list of KEY"),
        ("name: x\nparts: {p: K}\nruns: {a: {config: c}}\n", "part 'p' must be a list of KEY"),
        ("name: x\nparts: [p]\nruns: {a: {config: c}}\n", "parts must be a mapping"),
        ("name: x\nruns: {a: foo.yaml}\n", r"'a' must be a mapping, such as {config: foo.yaml}"),
        ("name: x\nconfig: [c]\nruns: {a: {}}\n", "config must be one text"),
        ("name: x\nseeds: 3\nruns: {a: {config: c}}\n", r"seeds must be a list .* \[1, 2, 3\]"),
        ("name: x\nseeds: []\nruns: {a: {config: c}}\n", "seeds must be a list"),
        ("name: x\nseeds: [1, x]\nruns: {a: {config: c}}\n", "different whole numbers"),
        ("name: x\nseeds: [1, 1]\nruns: {a: {config: c}}\n", "different whole numbers"),
        ("name: x\nruns: {a: {config: c}\n", "x.yaml, line 3 is not YAML: "),
        ("name: x\nruns: [a, : b}\n", "is not YAML: "),
    ],
)
def test_bad_study_files(tmp_path, text, message):
    with pytest.raises(ValueError, match=message) as error:
        load_study(write(tmp_path, text), tmp_path)
    assert "\n" not in str(error.value)


def test_what_is_left_empty_is_nothing(tmp_path):
    text = (
        "name: x\nbaseline:\nconfig: c.yaml\ncommon:\nparts:\nimport:\nfigures:\nmeasure:\n"
        "runs: {a: {overrides: , parts: }}\n"
    )
    study = load_study(write(tmp_path, text), tmp_path)
    assert study.runs[0].overrides == () and study.runs[0].seed == 1
    assert study.baseline is None
    assert (study.modules, study.figures, study.measure) == ((), (), ())


def test_anchors_and_merge_keys_are_no_duplicates(tmp_path):
    text = (
        "name: x\nruns:\n  a: &a {config: c, overrides: &o [K, 1]}\n"
        "  b: &b {<<: *a, config: d}\n  c: {<<: *b, config: e, overrides: *o}\n"
    )
    runs = load_study(write(tmp_path, text), tmp_path).runs
    assert [Path(run.config).name for run in runs] == ["c", "d", "e"]
    assert {run.overrides for run in runs} == {("K", 1)}


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
  no_value: {{overrides: [MODEL.DENSE.CLS_LOSS, efll]}}
"""
    problems = check_study(load_study(write(tmp_path, text), ROOT))
    assert [problem.split(":")[0] for problem in problems] == [
        "no_file", "no_key", "no_number", "no_data", "no_value",
    ]  # fmt: skip
    assert "nowhere.yaml' does not exist" in problems[0]
    assert "BASE_LR" in problems[1] and "d2ext_shapes_train" in problems[3]
    assert "MODEL.DENSE.CLS_LOSS is 'efll'; it must be" in problems[4]


@pytest.mark.parametrize(
    "kind, message",
    [
        ("coco", ""),
        (["coco", "pascal_voc"], ""),
        ("lvis", "'study_data' is evaluated as lvis; take consistency out of measure"),
        ("pascal_voc", "is evaluated as pascal_voc"),
        (None, "'study_data' has none; give its metadata a json_file"),
        ("mine", "'study_data' asks for the evaluator 'mine'"),
    ],
)
def test_consistency_that_cannot_be_measured_is_reported_at_once(tmp_path, kind, message):
    DatasetCatalog.register("study_data", list)
    MetadataCatalog.get("study_data").set(evaluator_type=kind or "coco")
    if kind:
        MetadataCatalog.get("study_data").json_file = str(tmp_path / "x.yaml")
    data = "[DATASETS.TEST, \"('study_data',)\"]"
    text = f"name: x\nmeasure: [consistency]\nruns: {{a: {{config: {CONFIG}, overrides: {data}}}}}"
    try:
        problems = check_study(load_study(write(tmp_path, text), ROOT))
    finally:
        DatasetCatalog.remove("study_data")
        MetadataCatalog.remove("study_data")
    assert [message in problem for problem in problems] == [True] * bool(message)


def test_figures_that_no_run_can_have_are_reported_at_once(tmp_path):
    several = "DATASETS.TEST, \"('d2ext_shapes_val', 'd2ext_shapes_train')\""
    text = f"""
name: x
config: {CONFIG}
measure: [alwa/, consistency]
runs: {{one: {{}}, two: {{overrides: [{several}, ENGINE.EMA.ENABLED, True]}}}}
figures: [bbox/AP, segm/AP50, bbox/AP-ball, bbox/AR@100, alwa/dense/w_cls, consistency/pearson,
  d2ext_shapes_val/bbox/AP, ema/d2ext_shapes_val/bbox/APs, sem_seg/mIoU, %s]
"""

    def problems(figure):
        return check_study(load_study(write(tmp_path, text % figure), ROOT))

    assert problems("bbox/AP75") == []
    said = "figures: no run will have 'bbox/APr'; did you mean bbox/AP"
    assert problems("bbox/APr")[0].startswith(said)  # of LVIS data alone
    assert "did you mean bbox/AP75" in problems("box/AP75")[0]
    assert "did you mean ema/d2ext_shapes_val/bbox/AP" in problems("ema/d2ext_shapes/bbox/AP")[0]
    assert "add the beginning of its name to measure" in problems("guided/rpn/ratio")[0]


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
