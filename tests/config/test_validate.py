"""Impossible values are refused in a sentence, possible ones are not, and no key is forgotten."""

import math
from pathlib import Path

import pytest
from detectron2.config import CfgNode as UpstreamNode
from detectron2.config import get_cfg as upstream_cfg

from d2ext import add_d2ext_config, get_cfg
from d2ext.config import CfgNode, validate, violations
from d2ext.config.rules import integer, listing, number, one_of, shown
from d2ext.config.upstream import SECTIONS
from d2ext.config.validate import OWN_RULES, rule_of
from d2ext.engine import Trainer

ROOT = Path(__file__).resolve().parents[2] / "configs"
PATHS = sorted(ROOT.rglob("*.yaml"))
OWN = sorted(set(get_cfg().dotted_keys()) - set(CfgNode(upstream_cfg()).dotted_keys()))
DETECTORS = ("fcos", "retinanet", "atss", "dw", "faster_rcnn", "cascade_rcnn", "mask_rcnn")


def load(name):
    cfg = get_cfg()
    cfg.merge_from_file(str(ROOT / "Demo" / f"{name}_shapes.yaml"))
    cfg.MODEL.DEVICE = "cpu"
    return cfg


def value_of(cfg, key):
    for word in key.split("."):
        cfg = cfg[word]
    return cfg


def put(cfg, key, value):
    """Set a key past yacs' comparison of types, as Python code can."""
    *path, leaf = key.split(".")
    for word in path:
        cfg = cfg[word]
    dict.__setitem__(cfg, leaf, value)


def test_every_key_of_ours_has_a_rule():
    assert [key for key in OWN if key not in OWN_RULES] == []
    keys = {key for key in OWN_RULES if not key.endswith(".*")}
    assert keys == set(OWN) and "SOLVER.LOSS_WEIGHTS.*" in OWN_RULES


def test_rules_of_detectron2s_keys_are_for_keys_that_it_has():
    keys = set(CfgNode(upstream_cfg()).dotted_keys())
    named = {key for section in SECTIONS for key in section.rules}
    assert named <= keys and len(named) > 50


def test_a_key_of_detectron2_without_a_rule_keeps_its_type():
    cfg = load("fcos")
    found = 0
    for key in CfgNode(upstream_cfg()).dotted_keys():
        if rule_of(key) is None and value_of(cfg, key) is not None:
            changed = load("fcos")
            put(changed, key, b"bytes")
            assert any(s.startswith(f"{key} is b'bytes'") for s in violations(changed)), key
            found += 1
    assert found > 50


def test_the_defaults_are_possible():
    cfg = get_cfg()
    assert violations(cfg) == []
    frozen = cfg.clone()
    frozen.freeze()
    validate(frozen)
    other = upstream_cfg()
    add_d2ext_config(other)
    validate(other)
    validate(upstream_cfg())  # without a key of ours


@pytest.mark.parametrize("path", PATHS, ids=lambda p: str(p.relative_to(ROOT)))
def test_our_configs_are_possible(path):
    cfg = get_cfg()
    if "META_ARCHITECTURE" not in CfgNode.load_yaml_with_base(str(path)).get("MODEL", {}):
        cfg.MODEL.BACKBONE.NAME = "build_ext_resnet_fpn_backbone"  # a part of other configs
    cfg.merge_from_file(str(path))
    assert violations(cfg) == []


BAD = [
    ("SOLVER.ALWA.INTERVAL", -5, "an integer of at least 1"),
    ("MODEL.FCOS.FOCAL_LOSS_GAMMA", -0.5, "a number of at least 0"),
    ("MODEL.FCOS.FOCAL_LOSS_GAMMA", math.nan, "a number"),
    ("MODEL.DENSE.CLS_LOSS", "focl", "one of .*'focal'"),
    ("MODEL.DENSE.BOX_LOSS", "iuo", "one of '', .*'giou'"),
    ("MODEL.FCOS.IN_FEATURES", [], "a list of at least 1"),
    ("MODEL.FCOS.IN_FEATURES", ["p3", "p3"], "none twice"),
    ("MODEL.FCOS.IN_FEATURES", "p3", "a list"),
    ("MODEL.FCOS.NUM_CLASSES", 0, "an integer of at least 1"),
    ("MODEL.FCOS.NUM_CLASSES", True, "an integer"),
    ("MODEL.FCOS.NUM_CLASSES", 3.0, "an integer"),
    ("MODEL.FCOS.PRIOR_PROB", 1.5, "above 0 and below 1"),
    ("MODEL.DW.SCORE_THRESH_TEST", 2.0, "of at most 1"),
    ("MODEL.DW.SOFT_PRIOR", "yes", "True or False"),
    ("MODEL.DW.GAMMA2", 0.5, "a number of at least 1"),
    ("SOLVER.EPOCH_STEPS", (8, 4), "in ascending order"),
    ("SOLVER.STEPS", (100, 50), "in ascending order"),
    ("SOLVER.MAX_ITER", 0, "an integer of at least 1"),
    ("SOLVER.BASE_LR", math.inf, "a number"),
    ("SOLVER.BASE_LR", None, "a number"),
    ("SOLVER.CHECKPOINT_PERIOD", -1, "an integer of at least 0"),
    ("SOLVER.OPTIMIZER", "Adam", "one of 'AdamW'.*'SGD'"),
    ("SOLVER.ALWA.GROUPS", [], "a list of at least 1"),
    ("SOLVER.ALWA.GROUPS", ["rpm"], "one of auto, all, rpn"),
    ("ENGINE.HOOKS", ["NoSuchHook"], "a list.*--import"),
    ("ENGINE.STOP_SIGNALS", ["SIGNONE"], "a signal"),
    ("ENGINE.NONFINITE", "ignore", "one of 'stop' and 'skip'"),
    ("DATASETS.TRAIN", "coco_2017_train", "a list"),
    ("DATASETS.TRAIN_REPEAT_FACTOR", [["a", -1]], "a pair"),
    ("MODEL.DEVICE", "gpu", "a device such as"),
    ("MODEL.MASK_ON", 1, "True or False"),
    ("SOLVER.CLIP_GRADIENTS.CLIP_VALUE", math.nan, "a number"),
    ("INPUT.FORMAT", "bgr", "'BGR'"),
    ("SEED", 2**32, "an integer of at most"),
    ("TEST.AUG.MIN_SIZES", (), "a list of at least 1"),
    ("MODEL.FCOS", 3, "a section of keys"),
    ("SOLVER.LOSS_WEIGHTS", 1.0, "a section of keys"),
]


@pytest.mark.parametrize(("key", "value", "allowed"), BAD, ids=lambda v: str(v)[:30])
def test_a_bad_value_is_named(key, value, allowed):
    cfg = load("fcos")
    put(cfg, key, value)
    with pytest.raises(ValueError, match=allowed) as caught:
        validate(cfg)
    assert str(caught.value).startswith(f"{key} is {value!r}; it must be ")
    assert str(caught.value).endswith(".") and "\n" not in str(caught.value)


PAIRS = [
    ("fcos", {"SOLVER.ALWA.MIN_WEIGHT": 2.0}, "must not be above"),
    ("fcos", {"SOLVER.ALWA.INTERVAL": 1}, "at least 2"),
    ("fcos", {"MODEL.COMPILE.ENABLED": True, "MODEL.COMPILE.BACKEND": "gcc"}, "such backend"),
    ("fcos", {"TEST.VAL_LOSS.PERIOD": 5, "DATASETS.TEST": ()}, "needs a data set"),
    ("fcos", {"MODEL.PIXEL_MEAN": [1.0]}, "one number for each colour"),
    ("fcos", {"INPUT.FORMAT": "L"}, "one number for each colour"),
    ("retinanet", {"MODEL.RETINANET.IOU_LABELS": [0, 1]}, "one label more"),
    ("fcos", {"TEST.DETECTIONS_PER_IMAGE": -1}, "R-CNN"),
    ("fcos", {"INPUT.MIN_SIZE_TRAIN": (80, 60), "INPUT.MIN_SIZE_TRAIN_SAMPLING": "range"}, "two"),
    ("fcos", {"INPUT.CROP.ENABLED": True, "INPUT.CROP.SIZE": [0.5, 2]}, "at most 1"),
    ("fcos", {"SOLVER.LR_SCHEDULER_NAME": "WarmupCosineLR", "SOLVER.BASE_LR_END": 9.0}, "cosine"),
    ("fcos", {"MODEL.RESNETS.NORM": "EvalBN"}, "EvalBN is known to"),
    ("fcos", {"TEST.AUG.ENABLED": True}, "GeneralizedRCNN only, so the first must be False"),
    ("faster_rcnn", {"TEST.AUG.ENABLED": True, "MODEL.KEYPOINT_ON": True}, "nor key points"),
    ("faster_rcnn", {"MODEL.LOAD_PROPOSALS": True}, "PROPOSAL_FILES_TRAIN.*proposal file"),
    ("faster_rcnn", {"MODEL.LOAD_PROPOSALS": True, "DATASETS.TRAIN": ()},
     "PROPOSAL_FILES_TEST.*proposal file"),
    ("faster_rcnn", {"MODEL.ROI_BOX_HEAD.NUM_FC": 0}, "at least one layer"),
    ("faster_rcnn", {"MODEL.ROI_BOX_HEAD.USE_FED_LOSS": True,
                     "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES": 900}, "more classes than"),
    ("cascade_rcnn", {"MODEL.ROI_BOX_CASCADE_HEAD.IOUS": (0.5, 0.6)}, "every stage"),
    ("cascade_rcnn", {"MODEL.ROI_BOX_CASCADE_HEAD.IOUS": (0.4, 0.6, 0.7)}, "first stage"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "values", "allowed"), PAIRS, ids=lambda v: str(v)[:40])
def test_values_that_do_not_go_together(name, values, allowed):
    cfg = load(name)
    for key, value in values.items():
        put(cfg, key, value)
    with pytest.raises(ValueError, match=allowed) as caught:
        validate(cfg)
    assert any(key in str(caught.value) for key in values)


# What Detectron2, PyTorch and the parts say at once, in words of their own, nobody says before.
UPSTREAM_SAYS = [
    ("fcos", {"MODEL.META_ARCHITECTURE": "ExtFCOSS"}, KeyError, "No object named 'ExtFCOSS'"),
    ("fcos", {"MODEL.BACKBONE.NAME": "resnet"}, KeyError, "No object named 'resnet'"),
    ("fcos", {"MODEL.FCOS.IN_FEATURES": ["p3", "p9"]}, ValueError, "MODEL.FCOS.IN_FEATURES .* p9"),
    ("fcos", {"MODEL.FPN.OUT_CHANNELS": 48}, ValueError, "divisible by num_groups"),
    ("fcos", {"MODEL.FPN.IN_FEATURES": ["res3", "res5"]}, AssertionError, "not log2 contiguous"),
    ("retinanet", {"MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16]]}, AssertionError, "of length 2"),
    ("retinanet", {"MODEL.ANCHOR_GENERATOR.SIZES": [[8], [16], [32, 40]]}, AssertionError,
     "different number of anchors"),
    ("faster_rcnn", {"MODEL.ROI_HEADS.IN_FEATURES": ["p2", "p4"]}, AssertionError, "a pyramid"),
    ("cascade_rcnn", {"MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG": False}, AssertionError,
     "class-agnostic"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "values", "error", "words"), UPSTREAM_SAYS)
def test_what_the_parts_refuse_themselves_is_left_to_them(name, values, error, words):
    cfg = load(name)
    for key, value in values.items():
        put(cfg, key, value)
    assert violations(cfg) == []
    with pytest.raises(error, match=words):
        Trainer.build_model(cfg)


@pytest.mark.parametrize("value", [object(), {"a": 1}, [1, (set(),)], 10**30, b"bytes"])
def test_no_value_is_one_that_a_checkpoint_cannot_hold(value):
    cfg = load("fcos")
    cfg.MODEL.MINE = UpstreamNode()
    put(cfg, "MODEL.MINE.SIZE", value)
    with pytest.raises(ValueError, match="^MODEL.MINE.SIZE is .*a list of"):
        validate(cfg)


def test_all_violations_are_listed_once():
    cfg = load("fcos")
    for key, value in (("MODEL.FCOS.NUM_CLASSES", 0), ("SOLVER.GAMMA", "x"), ("SEED", 0.5)):
        put(cfg, key, value)
    found = violations(cfg)
    assert len(found) == 3 and len(violations(cfg, "MODEL")) == 1
    put(cfg, "MODEL.FCOS", None)
    assert sum("MODEL.FCOS " in sentence for sentence in violations(cfg)) == 1


def test_keys_of_parts_that_are_not_used_may_be_anything():
    """A backbone or head of your own may read Detectron2's keys in its own way."""
    cfg = load("fcos")
    put(cfg, "MODEL.RETINANET.NORM", "MyNorm")
    put(cfg, "MODEL.ROI_HEADS.NAME", "MyHeads")
    validate(cfg)
    put(cfg, "MODEL.META_ARCHITECTURE", "ExtRetinaNet")
    with pytest.raises(ValueError, match="MODEL.RETINANET.NORM"):
        validate(cfg)


def test_registered_names_pass():
    from detectron2.modeling import META_ARCH_REGISTRY

    from d2ext.engine import HOOK_REGISTRY
    from d2ext.modeling.losses.registry import CLS_LOSS_REGISTRY

    @META_ARCH_REGISTRY.register()
    class ArchOfAValidateTest:
        pass

    @HOOK_REGISTRY.register()
    def hook_of_a_validate_test(cfg):
        return None

    CLS_LOSS_REGISTRY.register("loss_of_a_validate_test")(object)
    try:
        cfg = load("fcos")
        cfg.MODEL.META_ARCHITECTURE = "ArchOfAValidateTest"
        cfg.MODEL.DENSE.CLS_LOSS = "loss_of_a_validate_test"
        cfg.ENGINE.HOOKS = ["hook_of_a_validate_test"]
        assert violations(cfg) == []
    finally:
        del META_ARCH_REGISTRY._obj_map["ArchOfAValidateTest"]
        del HOOK_REGISTRY._obj_map["hook_of_a_validate_test"]
        del CLS_LOSS_REGISTRY._entries["loss_of_a_validate_test"]


def test_a_trainer_that_reads_a_key_itself_may_give_it_any_name():
    class Mine(Trainer):
        @staticmethod
        def build_optimizer(cfg, model):
            raise NotImplementedError

    cfg = load("fcos")
    cfg.SOLVER.OPTIMIZER = "Lion"
    Mine.check_config(cfg)
    with pytest.raises(ValueError, match="SOLVER.OPTIMIZER is 'Lion'"):
        Trainer.check_config(cfg)


def test_the_trainer_refuses_before_it_reads_data():
    cfg = load("fcos")
    cfg.SOLVER.GAMMA = -1.0
    cfg.DATASETS.TRAIN = ("not_there",)
    with pytest.raises(ValueError, match="SOLVER.GAMMA is -1.0"):
        Trainer(cfg)
    cfg.SOLVER.GAMMA = 0.1
    with pytest.raises(KeyError, match="'not_there' is not registered"):
        Trainer(cfg)


def test_merged_values_keep_or_gain_their_type(tmp_path):
    cfg = get_cfg()
    cfg.merge_from_list(["SOLVER.BASE_LR", "1", "SOLVER.LOSS_WEIGHTS.loss_cls", 2])
    assert type(cfg.SOLVER.BASE_LR) is float
    path = tmp_path / "a.yaml"
    path.write_text("SOLVER:\n  BASE_LR: 2\n  LOSS_WEIGHTS: {loss_box: 1}\n")
    cfg.merge_from_file(str(path))
    assert type(cfg.SOLVER.BASE_LR) is float and cfg.SOLVER.LOSS_WEIGHTS.loss_box == 1
    validate(cfg)
    for text, sentence in (
        ("SOLVER:\n  BASE_LR: fast\n", "SOLVER.BASE_LR is 'fast'; it must be a number"),
        ("SOLVER:\n  BASE_LR: {a: 1}\n", "SOLVER.BASE_LR is .*; it must be a number"),
        ("SOLVER:\n  MAX_ITER: 1.5\n", "SOLVER.MAX_ITER is 1.5; it must be an integer"),
        ("SOLVER: 3\n", "SOLVER is 3; it must be a section of keys"),
        ("MODEL:\n  MASK_ON: 1\n", "MODEL.MASK_ON is 1; it must be True or False"),
        ("VERSION: x\n", "VERSION is 'x'; it must be an integer"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=sentence):
            get_cfg().merge_from_file(str(path))


def test_a_users_own_keys_are_none_of_our_business():
    cfg = load("fcos")
    cfg.MODEL.MINE = UpstreamNode()
    cfg.MODEL.MINE.SIZE = -3
    assert violations(cfg) == []


def test_the_words_of_rules():
    assert number(0, 1).words() == "a number of at least 0 and of at most 1"
    assert number(above=0, below=1).words() == "a number above 0 and below 1"
    assert number().words() == "a finite number" and not number().accepts(math.inf)
    assert number(above=0, infinite=True).accepts(math.inf)
    assert not number(above=0, infinite=True).accepts(-math.inf)
    assert integer(0, 5).words() == "an integer from 0 to 5"
    assert one_of(1, 2).words() == "one of 1 and 2" and not one_of(1, 2).accepts(True)
    assert (one_of("a") | integer(1)).words() == "'a', or an integer of at least 1"
    assert listing(integer(1), length=2).accepts((1, 2)) and not listing(integer(1)).accepts("ab")
    assert len(shown("x" * 500)) == 80 and "\n" not in shown({"a": "b\nc"})
