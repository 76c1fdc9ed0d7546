"""Random changes of random configs: refused in a sentence, or fit for training.

D2EXT_FUZZ=1000 tries as many random changes; without it the same few are tried every time.
"""

import copy
import math
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from d2ext import get_cfg
from d2ext.config.validate import rule_of, validate, violations
from d2ext.data import tiny_dataset
from d2ext.engine import Trainer

ROOT = Path(__file__).resolve().parents[2] / "configs" / "Demo"
NAMES = ("fcos", "retinanet", "atss", "dw", "faster_rcnn", "cascade_rcnn", "mask_rcnn")
KEYS = sorted(key for key in get_cfg().dotted_keys() if rule_of(key) is not None)
# Whether these are good is for files, data sets and devices to say, or they write somewhere.
OUTSIDE = (
    "OUTPUT_DIR", "MODEL.WEIGHTS", "MODEL.DEVICE", "DATASETS.", "MODEL.SAMPLING_FREE.PRIOR_FILE",
    "DATALOADER.NUM_WORKERS", "MODEL.COMPILE.", "ENGINE.WANDB.",
    "MODEL.LOAD_PROPOSALS", "MODEL.KEYPOINT_ON",
    "MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME", "MODEL.PROPOSAL_GENERATOR.NAME",
    "MODEL.ROI_HEADS.NAME", "MODEL.RPN.HEAD_NAME", "MODEL.ROI_BOX_HEAD.NAME",
    "MODEL.ROI_MASK_HEAD.NAME", "MODEL.ANCHOR_GENERATOR.NAME", "MODEL.MASK_ON",
)  # fmt: skip
WORDS = (
    "", "focal", "efl", "eqfl", "qfl", "bce", "softmax", "giou", "iou", "smooth_l1", "harmonic_iou",
    "auto", "on", "off", "GN", "BN", "anchor", "point", "none", "frozen", "alwa", "raw", "dwa",
    "p3", "p4", "res5", "bf16", "AdamW", "constant", "value", "global_norm", "SIGTERM", "max",
    "product", "seesaw", "eqlv2", "ghmc", "class_adaptive", "multiply", "uncertainty", "no such",
    "RepeatFactorTrainingSampler", "WarmupCosineLR", "min", "fixed", "iou_pow", "hard", "relative",
)  # fmt: skip
FUZZ = int(os.environ.get("D2EXT_FUZZ", "0"))


def tries(count):
    return settings(
        max_examples=FUZZ or count,
        derandomize=not FUZZ,
        deadline=None,
        database=None,
        # Without shrinking: it would train for minutes to simplify two keys.
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )


def numbers(default):
    integers = st.integers(-2, 4) | st.sampled_from([32, 64, 10**30])
    floats = st.floats(-0.5, 2) | st.sampled_from([0.0, 1.0, -1.0, 50.0, math.nan, math.inf])
    like = integers if isinstance(default, int) else floats
    return like | like | integers | floats


def changed(default):
    """A strategy of values for a key that has this one: alike more often than not."""
    anything = st.one_of(
        st.none(), st.booleans(), st.text(max_size=5), numbers(1), st.just({}), st.just([]),
        st.lists(st.integers(-1, 3) | st.sampled_from(WORDS), max_size=3),
        st.builds(object),
    )  # fmt: skip
    if isinstance(default, bool):
        like = st.booleans()
    elif isinstance(default, (int, float)):
        like = numbers(default)
    elif isinstance(default, str):
        like = st.sampled_from(WORDS)
    elif isinstance(default, (list, tuple)) and default:
        items = st.sampled_from(default).flatmap(lambda v: changed_item(v))
        same = st.lists(items, min_size=len(default), max_size=len(default))
        like = same | same | st.lists(items, max_size=5) | st.permutations(default)
    else:
        like = st.lists(st.sampled_from(WORDS) | numbers(1.0), max_size=3)
    return like | like | like | anything


def changed_item(value):
    return st.just(value) | (changed(value) if not isinstance(value, str) else st.just("p5"))


# What a detector does not read is not worth a training step.
OF_DETECTORS = {
    "fcos": ("MODEL.FCOS.",),
    "retinanet": ("MODEL.RETINANET.", "MODEL.ANCHOR_GENERATOR."),
    "atss": ("MODEL.ATSS.",),
    "dw": ("MODEL.DW.",),
    "rcnn": ("MODEL.RPN.", "MODEL.ANCHOR_GENERATOR.", "MODEL.PROPOSAL_GENERATOR.", "MODEL.ROI_"),
}


def _read_by(name, keys):
    mine = OF_DETECTORS["rcnn" if name.endswith("rcnn") else name]
    all_of_them = tuple(prefix for found in OF_DETECTORS.values() for prefix in found)
    special = [key for key in keys if key.startswith(mine)]
    return [key for key in keys if not key.startswith(all_of_them)] + 3 * special


@st.composite
def cases(draw, keys):
    """A config with one or two keys changed: its name, and the changes."""
    name = draw(st.sampled_from(NAMES))
    base = load(name)
    found = {}
    for _ in range(draw(st.integers(1, 2))):
        key = draw(st.sampled_from(_read_by(name, keys)))
        found[key] = draw(changed(value_of(base, key)))
    if draw(st.booleans()):  # most of the keys of a method do nothing while it is off
        found.setdefault(draw(st.sampled_from(SWITCHES)), True)
    return name, found


SWITCHES = ("MODEL.HARMONIC.ENABLED", "MODEL.SAMPLING_FREE.ENABLED", "SOLVER.ALWA.ENABLED",
            "ENGINE.EMA.ENABLED", "SOLVER.CLIP_GRADIENTS.ENABLED")  # fmt: skip
_LOADED = {}


def load(name):
    if name not in _LOADED:
        cfg = get_cfg()
        cfg.merge_from_file(str(ROOT / f"{name}_shapes.yaml"))
        cfg.merge_from_list([
            "MODEL.DEVICE", "cpu", "MODEL.RESNETS.STEM_OUT_CHANNELS", 8, "DATASETS.TEST", (),
            "MODEL.RESNETS.RES2_OUT_CHANNELS", 8, "MODEL.FPN.OUT_CHANNELS", 32,
            "INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MAX_SIZE_TRAIN", 96, "DATALOADER.NUM_WORKERS", 0,
            "SOLVER.IMS_PER_BATCH", 2, "SOLVER.REFERENCE_BATCH", 0, "ENGINE.TENSORBOARD", False,
            "MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.RPN.POST_NMS_TOPK_TRAIN", 50,
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 16, "MODEL.SAMPLING_FREE.PRIOR_BATCHES", 2,
        ])  # fmt: skip
        for node in ("FCOS", "RETINANET", "ATSS", "DW", "ROI_HEADS"):
            cfg.MODEL[node].NUM_CLASSES = 1
        validate(cfg)
        _LOADED[name] = cfg
    return copy.deepcopy(_LOADED[name])


def value_of(cfg, key):
    for word in key.split("."):
        cfg = cfg[word]
    return cfg


def build_case(case):
    name, found = case
    cfg = load(name)
    for key, value in found.items():
        path, _, leaf = key.rpartition(".")
        dict.__setitem__(value_of(cfg, path) if path else cfg, leaf, value)
    return cfg


def is_a_sentence(text, keys=None):
    """One line that ends as a sentence does and names a key."""
    named = [key for key in keys or KEYS if key in text]
    return bool(named) and "\n" not in text and text.rstrip().endswith(".")


@tries(150)
@given(cases(KEYS))
def test_a_violation_is_a_sentence_that_names_the_key(case):
    cfg = build_case(case)
    before = {key: str(value) for key, value in case[1].items()}
    found = violations(cfg)
    assert all(is_a_sentence(sentence) for sentence in found), found
    single = [s for s in found if "; it must be" in s]
    assert all(any(s.startswith(f"{key} is ") for key in case[1]) for s in single)
    assert before == {key: str(value_of(cfg, key)) for key in case[1]}  # it only looks


@pytest.mark.parametrize("key", KEYS)
def test_no_key_takes_everything(key):
    """Of a dozen things of all types every key refuses most."""
    things = (None, object(), {}, set(), b"bytes", "", "no such name", -7, math.nan, math.inf, 0.3,
              [], [None], ["a", 1], (object(),), {"a": 1}, True)  # fmt: skip
    refused = [not rule_of(key).accepts(thing) for thing in things]
    assert sum(refused) >= len(things) - 6
    assert refused[1] and refused[3] and refused[8]


@pytest.fixture(scope="module")
def tiny():
    with tiny_dataset("coco", num_images=4, image_size=64, num_classes=1) as name:
        yield name


def train_a_step(cfg, tiny, folder):
    """As train_net.py does, but for the logs."""
    cfg.DATASETS.TRAIN, cfg.OUTPUT_DIR = (tiny,), str(folder)
    trainer = Trainer(cfg)
    trainer.train(0, 1)
    assert all(p.isfinite().all() for p in trainer.raw_model.parameters())


@pytest.mark.slow
@tries(60)
@given(case=cases([key for key in KEYS if not key.startswith(OUTSIDE)]))
def test_what_is_not_refused_trains(case, tiny, tmp_path_factory):
    cfg = build_case(case)
    if violations(cfg):
        return
    torch.manual_seed(0)
    try:
        train_a_step(cfg, tiny, tmp_path_factory.mktemp("run"))
    except (ValueError, KeyError, ImportError) as error:
        # A part of the model refuses what does not go with another part.
        assert is_a_sentence(str(error.args[0])), repr(error)
