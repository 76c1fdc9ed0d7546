"""Misspelt keys are answered with the nearest ones, and YAML never runs code."""

import pytest

from d2ext import get_cfg, model_zoo
from d2ext.combinations import reason_against
from d2ext.config.keys import all_sections
from d2ext.config.node import nearest_keys
from d2ext.modeling.losses.registry import CLS_LOSS_REGISTRY


def write(folder, name, text):
    path = folder / name
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("place", "section"), [("dense", "MODEL.DENSE"), ("roi", "MODEL.ROI_BOX_HEAD")]
)
def test_the_meaning_of_a_class_loss_names_every_choice(place, section):
    keys = (k for s in all_sections() if s.name == section for k in s.keys)
    meaning = next(key.meaning for key in keys if key.name == "CLS_LOSS")
    named = meaning.replace(", or a name you registered", "").split(", ")
    # Other tests register losses of their own.
    ours = {n for n in CLS_LOSS_REGISTRY.names()
            if CLS_LOSS_REGISTRY.get(n).__module__.startswith("d2ext.")}  # fmt: skip
    choices = {n for n in ours if reason_against(place, f"cls:{n}") is None}
    assert set(named) == choices


@pytest.mark.parametrize(
    ("typo", "meant"),
    [
        ("MODEL.RETINANET.NUM_CLASES", "MODEL.RETINANET.NUM_CLASSES"),
        ("SOLVER.BASELR", "SOLVER.BASE_LR"),
        ("BASE_LR", "SOLVER.BASE_LR"),
        ("MODEL.DENSE.CLASS_LOSS", "MODEL.DENSE.CLS_LOSS"),
        ("MODLE", r"mean MODEL\?"),
        ("MODLE.FCOS.NUM_CLASSES", "mean MODEL.FCOS.NUM_CLASSES"),
        ("MODEL.RETINANT.NUM_CLASES", "mean MODEL.RETINANET.NUM_CLASSES"),
    ],
)
def test_override_typo_names_the_key(typo, meant):
    with pytest.raises(KeyError, match=f"no config key {typo}.*{meant}"):
        get_cfg().merge_from_list([typo, 1])


def test_file_typo_names_the_key(tmp_path):
    path = write(tmp_path, "a.yaml", "MODEL:\n  FCOS:\n    NUM_CLASSE: 3\n")
    with pytest.raises(KeyError, match="MODEL.FCOS.NUM_CLASSE.*MODEL.FCOS.NUM_CLASSES"):
        get_cfg().merge_from_file(path)


def test_odd_overrides_and_missing_file():
    with pytest.raises(ValueError, match="KEY=VALUE, but SOLVER.BASE_LR has no value"):
        get_cfg().merge_from_list(["SOLVER.BASE_LR"])
    with pytest.raises(FileNotFoundError, match="nowhere.yaml"):
        get_cfg().merge_from_file("nowhere.yaml")


def test_a_misspelt_section_of_a_file_is_named(tmp_path):
    path = write(tmp_path, "a.yaml", "MODLE:\n  FCOS:\n    NUM_CLASSES: 3\n")
    with pytest.raises(KeyError, match=r"no config key MODLE. Did you mean MODEL\?"):
        get_cfg().merge_from_file(path)


def test_words_with_an_equals_sign_are_overrides_too():
    cfg = get_cfg()
    words = ["SOLVER.BASE_LR=0.5", "OUTPUT_DIR", "a=b", "SOLVER.LOSS_WEIGHTS.loss_cls=2.0"]
    cfg.merge_from_list([*words, "MODEL.WEIGHTS=", "DATASETS.TRAIN=('a', 'b')"])
    assert (cfg.SOLVER.BASE_LR, cfg.OUTPUT_DIR, cfg.MODEL.WEIGHTS) == (0.5, "a=b", "")
    assert cfg.SOLVER.LOSS_WEIGHTS.loss_cls == 2.0 and cfg.DATASETS.TRAIN == ("a", "b")
    with pytest.raises(KeyError, match="SOLVER.BASELR.*SOLVER.BASE_LR"):
        cfg.merge_from_list(["SOLVER.BASELR=0.5"])


def test_several_files_are_merged_in_order(tmp_path):
    base = write(tmp_path, "base.yaml", "SOLVER:\n  GAMMA: 0.5\n  MAX_ITER: 5\n")
    one = write(tmp_path, "one.yaml", "_BASE_: base.yaml\nSOLVER:\n  BASE_LR: 1.0\n")
    two = write(tmp_path, "two.yaml", "SOLVER:\n  BASE_LR: 2.0\n  MAX_ITER: 7\n")
    cfg = get_cfg()
    cfg.merge_from_file([one, two])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.GAMMA) == (2.0, 7, 0.5)
    cfg.merge_from_file([two, one])
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER) == (1.0, 5)
    assert base and model_zoo.get_config(one, two).SOLVER.MAX_ITER == 7
    assert model_zoo.get_config(f"{one}+{two}").SOLVER.MAX_ITER == 7
    with pytest.raises(FileNotFoundError, match="nowhere"):
        cfg.merge_from_file([one, "nowhere.yaml"])


def test_a_right_key_still_works_and_keeps_its_type():
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.BASE_LR", "0.5", "MODEL.DENSE.CLS_LOSS", "bce"])
    assert cfg.SOLVER.BASE_LR == 0.5 and cfg.MODEL.DENSE.CLS_LOSS == "bce"
    assert type(cfg.clone()) is type(cfg)
    with pytest.raises(ValueError, match="SOLVER.BASE_LR is .fast.; it must be a number"):
        cfg.merge_from_list(["SOLVER.BASE_LR", "fast"])


def test_bases_are_merged_in_order(tmp_path):
    write(tmp_path, "one.yaml", "SOLVER:\n  BASE_LR: 1.0\n  MAX_ITER: 7\n")
    write(tmp_path, "two.yaml", "SOLVER:\n  BASE_LR: 2.0\n")
    top = write(tmp_path, "top.yaml", '_BASE_: ["one.yaml", "two.yaml"]\nSOLVER:\n  GAMMA: 0.3\n')
    cfg = get_cfg()
    cfg.merge_from_file(top)
    assert (cfg.SOLVER.BASE_LR, cfg.SOLVER.MAX_ITER, cfg.SOLVER.GAMMA) == (2.0, 7, 0.3)


def test_base_loop_is_refused(tmp_path):
    write(tmp_path, "a.yaml", "_BASE_: b.yaml\n")
    path = write(tmp_path, "b.yaml", "_BASE_: a.yaml\n")
    with pytest.raises(ValueError, match="remove the loop"):
        get_cfg().merge_from_file(path)


@pytest.mark.parametrize("through_base", [False, True])
def test_yaml_runs_no_code(tmp_path, through_base):
    marker = tmp_path / "marker"
    evil = f'OUTPUT_DIR: !!python/object/apply:os.system ["touch {marker}"]\n'
    path = write(tmp_path, "evil.yaml", evil)
    if through_base:
        path = write(tmp_path, "top.yaml", "_BASE_: evil.yaml\n")
    with pytest.raises(ValueError, match="not plain YAML"):
        get_cfg().merge_from_file(path, allow_unsafe=True)
    assert not marker.exists()


def test_nearest_keys_prefers_an_equal_last_word():
    known = ["A.GAMMA", "B.DELTA", "B.GAMMAS"]
    assert nearest_keys("B.GAMMA", known)[0] == "A.GAMMA"
    assert nearest_keys("ZZZ", known) == []


def test_a_users_own_section_takes_yaml(tmp_path):
    from detectron2.config import CfgNode as UpstreamNode

    cfg = get_cfg()
    cfg.MODEL.MINE = UpstreamNode()
    cfg.MODEL.MINE.SIZE = 3
    cfg.MODEL.FREE = UpstreamNode(new_allowed=True)
    text = "MODEL:\n  MINE:\n    SIZE: 5\n  FREE:\n    any_name: 2.0\n"
    cfg.merge_from_file(write(tmp_path, "mine.yaml", text))
    assert cfg.MODEL.MINE.SIZE == 5 and cfg.MODEL.FREE.any_name == 2.0


def test_keys_can_be_added_to_an_upstream_config():
    from detectron2.config import get_cfg as upstream_cfg

    from d2ext import add_d2ext_config

    cfg = upstream_cfg()
    add_d2ext_config(cfg)
    cfg.merge_from_list(["MODEL.FCOS.NUM_CLASSES", 4])
    assert cfg.MODEL.FCOS.NUM_CLASSES == 4
