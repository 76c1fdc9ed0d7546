"""Every YAML file of the project loads, builds and trains one step."""

from pathlib import Path

import pytest
import torch
from model_kit import build, make_batch, shrink, train_step

from d2ext import get_cfg
from d2ext.config import CfgNode
from d2ext.modeling.methods_in_use import check_methods_in_use

ROOT = Path(__file__).resolve().parents[2] / "configs"
PATHS = sorted(ROOT.rglob("*.yaml"))


def is_model(path):
    """Whether a file names a detector; some bases only say what a data set or a loss changes."""
    return "META_ARCHITECTURE" in CfgNode.load_yaml_with_base(str(path)).get("MODEL", {})


MODELS = [p for p in PATHS if is_model(p)]


def test_there_are_configs():
    assert len(MODELS) >= 25


def test_no_two_configs_say_the_same():
    seen = {}
    for path in PATHS:
        cfg = get_cfg()
        cfg.merge_from_file(str(path))
        assert seen.setdefault(str(cfg), path) is path


@pytest.mark.parametrize("path", PATHS, ids=lambda p: str(p.relative_to(ROOT)))
def test_config_loads(path):
    assert path in MODELS or path.name.startswith("Base-")
    get_cfg().merge_from_file(str(path))


@pytest.mark.parametrize("path", MODELS, ids=lambda p: str(p.relative_to(ROOT)))
def test_config_trains_a_step(path):
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    wanted = cfg.clone()
    model = build(shrink(cfg))
    check_methods_in_use(cfg, model)  # as the trainer does
    masks = cfg.MODEL.MASK_ON and cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    losses, grads = train_step(model, make_batch((2, 0), size=64, masks=masks))
    assert losses and all(torch.isfinite(v) for v in losses.values())
    assert any(bool(g.any()) for g in grads.values())
    if not path.name.startswith("Base-"):  # a base may leave the data or the model to others
        assert wanted.DATASETS.TRAIN and wanted.DATASETS.TEST
        assert not wanted.SOLVER.STEPS or max(wanted.SOLVER.STEPS) < wanted.SOLVER.MAX_ITER
