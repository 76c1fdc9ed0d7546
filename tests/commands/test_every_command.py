"""Every sub-command explains itself with an example, and the docs name it."""

import argparse
import json
import re
import shlex

import pytest
from commands_kit import ROOT, call

from d2ext.cli import build_parser
from d2ext.model_zoo import AUTHORS_AP


def commands(parser, words=()):
    """(words, parser) of every command that can be run."""
    found = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for name, child in action.choices.items():
                found += commands(child, (*words, name))
    return found or [(words, parser)]


ALL = dict(commands(build_parser()))
PAGES = ("commands", "install", "predict_export", "migrating")


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_help_ends_with_examples_that_are_understood(words):
    _, _, examples = re.split(r"^(Examples?:)$", ALL[words].format_help(), flags=re.MULTILINE)
    for example in examples.strip().splitlines():
        assert example.strip().startswith(f"d2ext {' '.join(words)}"), example
        args = build_parser().parse_args(shlex.split(example)[1:])
        assert callable(args.func) and not args.json and not args.quiet


@pytest.mark.parametrize("words", ALL, ids=" ".join)
def test_docs_show_it(words):
    text = "".join((ROOT / "docs" / f"{page}.md").read_text() for page in PAGES)
    assert f"d2ext {' '.join(words)} " in text


def test_all_are_there():
    assert set(ALL) == {
        ("zoo",), ("doctor",), ("show", "assign"), ("show", "batch"), ("show", "predict"),
        ("analyze",), ("report",), ("lr-find",), ("data", "shapes"),
        ("data", "voc2coco"), ("data", "check"),
        ("data", "stats"), ("data", "import"), ("data", "split"),
        ("data", "tile"), ("train",), ("predict",),
        ("export",), ("val",), ("calibrate",), ("convert",),
    }  # fmt: skip


def where_authors_are_quoted(name):
    """The page of a config, how the line with its figure begins, and the form of the figure."""
    folder, _, file = name.partition("/")
    size = "S" if "_s_" in file else "M"
    if folder == "DualWeighting":
        return "dual_weighting", f"| `{file}` ", "| {} |"
    if file.startswith("mask_rcnn"):
        return "recipes", "| EQL v2, Mask R-CNN, R-50 ", "{} box AP"
    if folder == "EqualizedFocalLoss":
        depth = "R101" if "R_101" in file else "R50"
        return "equalized_focal_loss", f"| improved baseline {depth} ", "| {} |"
    if "_ip_" in file:
        return "yolox", f"| {size} | {'EQFL' if 'eqfl' in file else 'EFL'} ", "| {} |"
    return "yolox", "The authors report ", f"{{}} AP ({size})"


def test_zoo_shows_the_authors_figures_of_the_docs(capsys):
    for name, value in AUTHORS_AP.items():
        page, start, form = where_authors_are_quoted(name)
        text = (ROOT / "docs" / f"{page}.md").read_text()
        text = text.partition("\n## Results\n")[2] or text
        (row,) = [line for line in text.splitlines() if line.startswith(start)]
        assert form.format(value) in row, name
    assert call("zoo", "DualWeighting/*") == 0
    out = capsys.readouterr().out
    assert "47.9" in out and "not measured with d2ext" in out
    assert call("zoo", "Demo/*") == 0
    assert "authors" not in capsys.readouterr().out


FILES = {
    "broken.yaml": "MODEL: [",
    "section.yaml": "MODEL: 3",
    "broken.json": "[{",
    "no_results.json": "{}",
    "no_box.json": '[{"image_id": 1, "category_id": 1, "score": 0.5}]',
    "results.json": "[]",
    # A test set, and entries that lack what every one has.
    "test.json": json.dumps({"images": [{"id": 1}], "categories": [{"id": 1, "name": "x"}]}),
    "entry.json": json.dumps(
        {"images": [{"id": 1}], "categories": [{"id": 1}], "annotations": [{"id": 1}]}
    ),
    "weights.pth": "none",
}
DEMO = "Demo/fcos_shapes"
DATA = "results.json --dataset"
CONFIG_MISTAKES = {
    f"{DEMO} --opts MODEL.FCOS.NUM_CLASES 3": "Did you mean MODEL.FCOS.NUM_CLASSES",
    f"{DEMO} --opts SOLVER.MAX_ITER -3": "SOLVER.MAX_ITER is -3; it must be an integer",
    f"{DEMO} --opts SOLVER.BASE_LR": "Overrides come as KEY VALUE pairs",
    f"{DEMO} --opts DATASETS.TRAIN ('nope',)": "The data set 'nope' is not registered",
    f"{DEMO} --opts MODEL.WEIGHTS nope.pth": "The weights nope.pth do not exist",
    f"{DEMO} --opts MODEL.WEIGHTS weights.pth": "weights.pth is not a file that torch.save wrote",
    f"{DEMO} --import no_such_module": "--import no_such_module fails: No module named",
    "broken.yaml": "'broken.yaml' is not plain YAML",
    "section.yaml": "section.yaml cannot be read as a config",
    "Demo/fcos_shape": "the nearest are Demo/fcos_shapes.yaml",
}
MISTAKES = {
    "data check d2ext_shapes_tran": "did you mean d2ext_shapes_train",
    "data stats d2ext_shapes_tran": "did you mean d2ext_shapes_train",
    "data stats test.json": "test.json has no 'annotations'",
    f"analyze {DATA} test.json": "test.json has no 'annotations'",
    f"show predict {DATA} test.json --image-root .": "test.json has no 'annotations'",
    f"analyze {DATA} entry.json": "category id 1 has no 'name'",
    f"analyze {DATA} none.json": "'none.json' is not a file",
    f"lr-find {DEMO} --lowest 0": "--lowest is 0",
    f"lr-find {DEMO} --lowest 1 --highest 0.1": "--lowest is 1 and --highest 0.1",
    "report nowhere": "nowhere",
    **{
        f"{command} {words}": answer
        for command in ("show assign", "lr-find")
        for words, answer in CONFIG_MISTAKES.items()
    },
    **{
        f"{command} {words} --dataset test.json": answer
        for command in ("analyze", "show predict")
        for words, answer in {
            "broken.json": "broken.json is not JSON",
            "no_results.json": "no_results.json holds no list of detections",
            "no_box.json": "no_box.json: entry 0 of the list has no usable image_id",
            "nowhere.json": "nowhere.json cannot be read (No such file or directory)",
        }.items()
    },
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_in_one_line_and_without_a_traceback(
    tmp_path, monkeypatch, capsys, mistake
):
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    assert call(*mistake.split(" "), "--output", "out") == 1
    said = capsys.readouterr().err
    assert MISTAKES[mistake] in said and said.count("\n") == 1


@pytest.mark.parametrize("words", ["Demo/fcos_shape", f"{DEMO} --import no_such_module"])
def test_the_doctor_counts_a_mistake_as_a_finding(tmp_path, capsys, words):
    assert call("doctor", *words.split(" "), "--output", tmp_path) == 1
    assert CONFIG_MISTAKES[words] in capsys.readouterr().out
