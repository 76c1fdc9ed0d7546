"""Every config of adaptive loss weights loads, and says what its file name says."""

from pathlib import Path

import pytest

from d2ext.config import get_cfg
from d2ext.engine.hooks import build_loss_weights

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
FILES = sorted((CONFIGS / "ALWA").glob("*/*.yaml"))
BOX_LOSSES = {"_smooth_l1_": ("smooth_l1", 1.0), "_ciou_": ("ciou", None), "_l1_": ("smooth_l1", 0)}


def load(path):
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    return cfg


def test_the_grid_is_complete():
    names = {f"{p.parent.name}/{p.stem}" for p in FILES}
    detectors = {
        "COCO": ("faster_rcnn", "mask_rcnn", "retinanet"),
        "VOC": ("faster_rcnn", "retinanet"),
    }
    expected = {
        f"{data}/{detector}_R_50_FPN{'_1x' if data == 'COCO' else ''}_{loss}_{rule}"
        for data, found in detectors.items()
        for detector in found
        for loss in ("l1", "smooth_l1", "ciou")
        for rule in ("alwa1", "alwa2", "recommended")
    }
    assert names == expected


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_a_config_does_what_its_name_says(path):
    cfg, name = load(path), path.stem
    machine = build_loss_weights(cfg).make_weighting()
    recommended = name.endswith("_recommended")
    assert machine.variant == (1 if name.endswith("_alwa1") else 2) and machine.interval == 100
    assert machine.stats_on == ("raw" if recommended else "weighted")
    assert machine.min_weight == (0.1 if recommended else 0.0)
    assert machine.start_iter == (1000 if recommended else 0)
    kind, beta = next(v for k, v in BOX_LOSSES.items() if k in name)
    if name.startswith("retinanet"):
        heads = [(cfg.MODEL.RETINANET, "SMOOTH_L1_LOSS_BETA")]
        assert cfg.MODEL.META_ARCHITECTURE == "ExtRetinaNet"
    else:
        heads = [(cfg.MODEL.RPN, "SMOOTH_L1_BETA"), (cfg.MODEL.ROI_BOX_HEAD, "SMOOTH_L1_BETA")]
        assert name.startswith("mask") == cfg.MODEL.MASK_ON
    for node, key in heads:
        assert kind == node.BBOX_REG_LOSS_TYPE and (beta is None or node[key] == beta)
    assert cfg.DATASETS.TRAIN[0].startswith(path.parent.name.lower())


@pytest.mark.parametrize("detector", ["faster_rcnn", "retinanet"])
def test_demo(detector):
    cfg = load(CONFIGS / "Demo" / f"{detector}_alwa_shapes.yaml")
    machine = build_loss_weights(cfg).make_weighting()
    assert (machine.interval, machine.start_iter, machine.stats_on) == (50, 150, "raw")
    assert cfg.DATASETS.TRAIN == ("d2ext_shapes_train",)
