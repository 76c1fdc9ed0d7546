"""LogN: statistics are collected after the last step, saved, and used at inference."""

import logging

import pytest
import torch
from model_kit import build, make_batch, small_cfg

from d2ext import model_zoo
from d2ext.config import validate
from d2ext.data.tiny import tiny_dataset
from d2ext.engine import Trainer
from d2ext.modeling.roi_heads.logit_norm import LogitNorm, collect_logits
from d2ext.ops.logit_norm import normalize_logits

ON = ["MODEL.ROI_BOX_HEAD.LOGIT_NORM.ENABLED", True]
FASTER = "configs/Demo/faster_rcnn_shapes.yaml"


def test_sums_are_those_of_all_logits_and_pass_unchanged_before():
    norm = LogitNorm(3)
    logits = torch.randn(40, 4) * torch.tensor([1.0, 5.0, 0.2, 1.0]) + 2
    assert torch.equal(norm(logits), logits)
    norm.collect(logits)  # not collecting
    norm.collecting = True
    for part in logits.split([0, 1, 20, 19]):
        norm.collect(part)
    want = normalize_logits(logits, logits.double().mean(0), logits.double().var(0))
    torch.testing.assert_close(norm(logits), want)
    assert torch.equal(norm(logits).argmax(1) == 3, want.argmax(1) == 3)


@pytest.mark.parametrize("config", [FASTER, "configs/Demo/cascade_rcnn_shapes.yaml"])
def test_each_stage_has_its_own_and_scores_change(config):
    model = build(small_cfg(config, ON))
    norms = [m for m in model.modules() if isinstance(m, LogitNorm)]
    assert len(norms) == (3 if "cascade" in config else 1)
    before = {k: v.clone() for k, v in model.state_dict().items() if "logit_norm" not in k}
    model.train()
    from detectron2.utils.events import EventStorage

    with EventStorage():
        counted = collect_logits(model, iter([make_batch((2, 0), size=64)] * 9), 6)
    assert counted["images"] == 6 and counted["proposals"] > 0
    assert all(norm.sums[0, 0] > 0 for norm in norms)
    after = model.state_dict()
    moved = [k for k, v in before.items() if not torch.equal(after[k], v)]
    assert all("running" in k or "num_batches" in k for k in moved), moved


def test_it_is_refused_where_it_makes_no_sense():
    with pytest.raises(ValueError, match="standardises the logits of a softmax; set CLS_LOSS"):
        build(small_cfg(FASTER, [*ON, "MODEL.ROI_BOX_HEAD.CLS_LOSS", "focal"]))
    with pytest.raises(ValueError, match="LOGIT_NORM.ENABLED.*not both may be True"):
        validate(small_cfg(FASTER, [*ON, "ENGINE.EMA.ENABLED", True]))


def test_the_trainer_collects_after_its_last_step(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    cfg = model_zoo.get_config("Demo/faster_rcnn_shapes")
    with tiny_dataset("coco", num_images=4, num_classes=3) as name:
        small = small_cfg(FASTER, ON)
        cfg.MODEL = small.MODEL
        cfg.merge_from_list([
            "DATASETS.TRAIN", (name,), "DATASETS.TEST", (), "OUTPUT_DIR", str(tmp_path),
            "INPUT.MIN_SIZE_TRAIN", (64,), "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2,
            "SOLVER.WARMUP_ITERS", 0, "SOLVER.STEPS", (), "ENGINE.TENSORBOARD", False,
            "MODEL.ROI_BOX_HEAD.LOGIT_NORM.NUM_IMAGES", 3, "DATALOADER.NUM_WORKERS", 0,
        ])  # fmt: skip
        trainer = Trainer(cfg)
        trainer.train()
    assert "proposals in 4 images" in caplog.text
    saved = torch.load(tmp_path / "model_final.pth", weights_only=False)["model"]
    (key,) = [key for key in saved if key.endswith("logit_norm.sums")]
    assert torch.as_tensor(saved[key])[0, 0] > 0
