"""Configs are found by name, also misspelt ones."""

from pathlib import Path

import pytest

from d2ext import model_zoo
from d2ext.cli import main
from d2ext.config import CfgNode

CHECKOUT_CONFIGS = Path(__file__).resolve().parent.parent / "configs"


@pytest.fixture
def zoo(tmp_path, monkeypatch):
    """A zoo of four files."""
    files = {
        "Base-RetinaNet.yaml": "MODEL: {META_ARCHITECTURE: RetinaNet}\nSOLVER: {MAX_ITER: 7}\n",
        "Demo/retinanet_shapes.yaml": "_BASE_: ../Base-RetinaNet.yaml\nSOLVER: {BASE_LR: 0.5}\n",
        "COCO/retinanet_1x.yaml": "_BASE_: ../Base-RetinaNet.yaml\n"
        "DATASETS:\n  TRAIN: ('a', 'b',)\n",
        "Efl/rcnn_lvis.yaml": "MODEL: {ROI_HEADS: {NAME: X}}\nDATASETS: {TRAIN: ['lvis']}\n",
    }
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    monkeypatch.setattr(model_zoo, "config_root", lambda: tmp_path)
    return tmp_path


def test_a_checkout_reads_its_own_configs_folder():
    assert model_zoo.config_root() == CHECKOUT_CONFIGS
    on_disk = {p.relative_to(CHECKOUT_CONFIGS).as_posix() for p in CHECKOUT_CONFIGS.rglob("*.yaml")}
    assert set(model_zoo.list_configs(include_base=True)) == on_disk


def test_list_leaves_out_base_configs_and_is_sorted(zoo):
    assert model_zoo.list_configs() == [
        "COCO/retinanet_1x.yaml",
        "Demo/retinanet_shapes.yaml",
        "Efl/rcnn_lvis.yaml",
    ]
    assert model_zoo.list_configs(include_base=True)[0] == "Base-RetinaNet.yaml"


@pytest.mark.parametrize(
    "pattern, count", [("RETINA", 2), ("Demo/*", 1), ("*_lvis.yaml", 1), ("lvis.yaml*", 0), ("", 3)]
)
def test_list_by_pattern(zoo, pattern, count):
    assert len(model_zoo.list_configs(pattern)) == count


@pytest.mark.parametrize("name", ["Demo/retinanet_shapes.yaml", "Demo/retinanet_shapes"])
def test_get_config_merges_bases_by_relative_path(zoo, name):
    cfg = model_zoo.get_config(name)
    assert isinstance(cfg, CfgNode)
    assert (cfg.SOLVER.MAX_ITER, cfg.SOLVER.BASE_LR) == (7, 0.5)
    assert model_zoo.get_config_file(name) == str(zoo / "Demo" / "retinanet_shapes.yaml")


def test_every_get_config_is_a_new_one(zoo):
    model_zoo.get_config("Demo/retinanet_shapes").SOLVER.MAX_ITER = 1
    assert model_zoo.get_config("Demo/retinanet_shapes").SOLVER.MAX_ITER == 7


@pytest.mark.parametrize(
    "wrong, meant",
    [
        ("Demo/retinanet_shape.yaml", "Demo/retinanet_shapes.yaml"),  # a letter too few
        ("COCO/retinanet_shapes.yaml", "Demo/retinanet_shapes.yaml"),  # in another folder
        ("rcnn_lvis", "Efl/rcnn_lvis.yaml"),  # no folder at all
        ("demo/RetinaNet_Shapes.yaml", "Demo/retinanet_shapes.yaml"),  # upper and lower case
    ],
)
def test_unknown_name_is_answered_with_the_nearest(zoo, wrong, meant):
    with pytest.raises(FileNotFoundError, match=f"no config '{wrong}'; the nearest are {meant}"):
        model_zoo.get_config_file(wrong)


def test_a_name_cannot_leave_the_zoo(zoo):
    (zoo.parent / "outside.yaml").write_text("VERSION: 2\n")
    with pytest.raises(FileNotFoundError):
        model_zoo.get_config_file("../outside.yaml")


def test_describe(zoo):
    assert model_zoo.describe_config("COCO/retinanet_1x") == {
        "config": "COCO/retinanet_1x.yaml",
        "method": "-",
        "detector": "RetinaNet",
        "training data": "a b",
    }
    described = model_zoo.describe_config("Efl/rcnn_lvis")
    assert described["method"] == "Efl"
    assert described["detector"] == "GeneralizedRCNN (X)"
    assert described["training data"] == "lvis"


def test_zoo_command_prints_a_table(zoo, capsys):
    assert main(["zoo", "demo/*"]) == 0
    printed = capsys.readouterr().out
    assert "Demo/retinanet_shapes.yaml" in printed and "COCO" not in printed


def test_zoo_command_without_a_match(zoo, capsys):
    assert main(["zoo", "nothing-like-it"]) == 1
    assert "No config matches 'nothing-like-it'" in capsys.readouterr().err


def test_no_command_prints_help(capsys):
    assert main([]) == 2
    assert "zoo" in capsys.readouterr().out
