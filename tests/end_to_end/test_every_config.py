"""Every YAML file of the project loads, builds and trains one step."""

from pathlib import Path

import pytest
import torch
from model_kit import build, make_batch, shrink, train_step

from d2ext import get_cfg

ROOT = Path(__file__).resolve().parents[2] / "configs"
# Base-LVISv1.yaml and Base-VOC.yaml only say what a data set changes: they are no models.
PATHS = sorted(
    p for p in ROOT.rglob("*.yaml") if p.name not in ("Base-LVISv1.yaml", "Base-VOC.yaml")
)


def test_there_are_configs():
    assert len(PATHS) >= 25


@pytest.mark.parametrize("path", PATHS, ids=lambda p: str(p.relative_to(ROOT)))
def test_config_trains_a_step(path):
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    wanted = cfg.clone()
    model = build(shrink(cfg))
    masks = cfg.MODEL.MASK_ON and cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    losses, grads = train_step(model, make_batch((2, 0), size=64, masks=masks))
    assert losses and all(torch.isfinite(v) for v in losses.values())
    assert any(bool(g.any()) for g in grads.values())
    assert wanted.SOLVER.MAX_ITER > 0 and wanted.DATASETS.TRAIN and wanted.DATASETS.TEST
