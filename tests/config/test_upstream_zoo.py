"""Every YAML of Detectron2's own model zoo loads and validates, and its models are built."""

from pathlib import Path

import detectron2.model_zoo
import pytest
import torch
from detectron2.modeling import build_model

from d2ext import get_cfg
from d2ext.config import violations

ROOT = Path(detectron2.model_zoo.__file__).parent / "configs"
FILES = sorted(path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*.yaml"))


def load(name):
    cfg = get_cfg()
    cfg.merge_from_file(str(ROOT / name))
    return cfg


def kind_of(cfg):
    """What a model is made of; two of a kind differ in sizes, data and schedule."""
    model = cfg.MODEL
    return (
        model.META_ARCHITECTURE, model.BACKBONE.NAME, model.PROPOSAL_GENERATOR.NAME,
        model.ROI_HEADS.NAME, model.MASK_ON, model.KEYPOINT_ON, model.FPN.NORM,
        model.RESNETS.RES5_DILATION, model.ROI_BOX_HEAD.NAME,
    )  # fmt: skip


def test_the_zoo_is_there():
    assert len(FILES) > 80 and "Base-RetinaNet.yaml" in FILES


@pytest.mark.parametrize("name", FILES)
def test_it_loads_and_validates(name):
    assert violations(load(name)) == []


def test_anchors_of_retinanet_are_those_of_detectron2():
    sizes = load("COCO-Detection/retinanet_R_50_FPN_1x.yaml").MODEL.ANCHOR_GENERATOR.SIZES
    assert sizes == [[x, x * 2 ** (1 / 3), x * 2 ** (2 / 3)] for x in (32, 64, 128, 256, 512)]


def test_a_model_of_each_kind_is_built():
    built = set()
    for name in FILES:
        cfg = load(name)
        # Detectron2's deformable convolution is a compiled operator.
        if kind_of(cfg) in built or any(cfg.MODEL.RESNETS.DEFORM_ON_PER_STAGE):
            continue
        cfg.MODEL.DEVICE = "meta"
        with torch.device("meta"):
            assert build_model(cfg) is not None
        built.add(kind_of(cfg))
    assert len(built) >= 10
