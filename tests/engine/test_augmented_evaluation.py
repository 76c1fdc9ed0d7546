"""Test-time augmentation, as Detectron2's train_net.py does it: at the end, and in --eval-only."""

import pytest
import torch
from engine_kit import metrics
from model_kit import small_cfg

from d2ext.data import tiny_dataset
from d2ext.engine import Trainer, argument_parser, main
from d2ext.model_zoo import get_config_file

# No figure that is there can miss this by more than the tolerance.
EXPECTED = [[task, "AP", 50.0, 51.0] for task in ("bbox", "segm", "bbox_TTA", "segm_TTA")]


@pytest.fixture(scope="module")
def cfg():
    with tiny_dataset("coco", num_images=2) as name:
        yield small_cfg(
            get_config_file("Demo/mask_rcnn_shapes"),
            ["DATASETS.TRAIN", (name,), "DATASETS.TEST", (name,), "DATALOADER.NUM_WORKERS", 0,
             "INPUT.MIN_SIZE_TEST", 96, "TEST.AUG.ENABLED", True, "TEST.AUG.MIN_SIZES", (64, 96),
             "TEST.EVAL_PERIOD", 1, "TEST.EXPECTED_RESULTS", EXPECTED, "SOLVER.MAX_ITER", 2,
             "SOLVER.IMS_PER_BATCH", 2, "ENGINE.LOG_PERIOD", 1, "SOLVER.BASE_LR", 1e-4],
        )  # fmt: skip


def test_a_training_ends_with_it(cfg, tmp_path):
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(tmp_path)
    trainer = Trainer(cfg)
    trainer.train()
    assert set(trainer.results) == {"bbox", "segm", "bbox_TTA", "segm_TTA"}
    first, last = metrics(tmp_path)
    assert "bbox/AP" in first and "bbox_TTA/AP" not in first
    assert {"bbox/AP", "segm/AP", "bbox_TTA/AP", "segm_TTA/AP"} <= set(last)
    (name,) = cfg.DATASETS.TEST
    for folder in ("inference", "inference_TTA"):
        assert (tmp_path / folder / name / "coco_instances_results.json").is_file()


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_left_in_its_mode(cfg, tmp_path, training):
    cfg = cfg.clone()
    cfg.OUTPUT_DIR = str(tmp_path)
    model = Trainer.build_model(cfg).train(training)
    Trainer.test_with_TTA(cfg, model)
    assert model.training == training and model.roi_heads.mask_on


def test_eval_only_does_it_as_well(cfg, tmp_path, capsys):
    """EXPECTED_RESULTS knows its figures; they are missing otherwise, which ends the run with 1."""
    torch.manual_seed(0)
    (tmp_path / "config.yaml").write_text(cfg.dump())
    weights = str(tmp_path / "weights.pth")
    torch.save({"model": Trainer.build_model(cfg).state_dict()}, weights)
    words = ["--config-file", str(tmp_path / "config.yaml"), "--eval-only"]
    words += ["MODEL.WEIGHTS", weights]
    assert main(argument_parser().parse_args([*words, "OUTPUT_DIR", str(tmp_path)])) == 0
    assert "Evaluating with test-time augmentation" in capsys.readouterr().out
    (name,) = cfg.DATASETS.TEST
    assert (tmp_path / "inference_TTA" / name / "coco_instances_results.json").is_file()
