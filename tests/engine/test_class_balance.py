"""Training with the equalized focal loss: its log by frequency group, and what it counts."""

import json
import logging
import signal
from pathlib import Path

import pytest
import torch
from detectron2.data import MetadataCatalog
from engine_kit import differences, metrics, state_of, train

from d2ext import get_cfg
from d2ext.data import tiny_dataset
from d2ext.engine import HOOK_REGISTRY, Trainer
from d2ext.engine.hooks import ClassBalance
from d2ext.engine.hooks.class_balance import training_image_counts
from d2ext.modeling.losses import GradientBalancedLoss

DEMO = Path(__file__).resolve().parents[2] / "configs" / "Demo"
GROUPS = ("rare", "common", "frequent")


def small(data, out, num_classes, *words, name="efl_shapes_lt"):
    """KEY VALUE words that make a demo train a few steps on a tiny data set."""
    return [
        "DATASETS.TRAIN", f"('{data}',)", "DATASETS.TEST", f"('{data}',)",
        "MODEL.ATSS.NUM_CLASSES", num_classes, "MODEL.ATSS.NUM_CONVS", 1,
        "MODEL.RESNETS.RES2_OUT_CHANNELS", 8, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8,
        "INPUT.MIN_SIZE_TRAIN", (96,), "INPUT.MIN_SIZE_TEST", 96,
        "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 4, "SOLVER.WARMUP_ITERS", 0,
        "ENGINE.LOG_PERIOD", 2, "ENGINE.TENSORBOARD", False, "OUTPUT_DIR", str(out), *words,
    ]  # fmt: skip


def make_trainer(data, out, num_classes, *words, name="efl_shapes_lt"):
    cfg = get_cfg()
    cfg.merge_from_file(str(DEMO / f"{name}.yaml"))
    cfg.merge_from_list(small(data, out, num_classes, *words))
    return Trainer(cfg)


@pytest.fixture(scope="module")
def lvis():
    with tiny_dataset("lvis", num_images=6, num_classes=6) as name:
        yield name


def balance_hooks(trainer):
    return [hook for hook in trainer.all_hooks if isinstance(hook, ClassBalance)]


def test_lvis_with_repeat_factors_from_training_to_groups(lvis, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    reads = []
    stats = GradientBalancedLoss.stats
    monkeypatch.setattr(
        GradientBalancedLoss,
        "stats",
        lambda self, groups: (reads.append(groups), stats(self, groups))[1],
    )
    trainer = make_trainer(lvis, tmp_path, 6, "DATALOADER.REPEAT_THRESHOLD", 1.0)
    assert trainer.data_loader.epoch_size > 6  # so images do come repeatedly
    results = trainer.train()
    assert {"AP", "APr", "APc", "APf"} <= set(results["bbox"])
    assert "APr,APc,APf" in caplog.text  # the table of figures
    assert "2 rare, 2 common, 2 frequent" in caplog.text
    assert "class_balance in the end: ratio_mean" in caplog.text
    lines = [json.loads(x) for x in (tmp_path / "metrics.json").read_text().splitlines()]
    logged = [line for line in lines if "class_balance/ratio_mean" in line]
    # Read at each log, and no more often: it waits for the device.
    assert [line["iteration"] for line in logged] == [1, 3] and len(reads) == 2
    (loss,) = [m for m in trainer.raw_model.modules() if isinstance(m, GradientBalancedLoss)]
    for k, group in enumerate(GROUPS):
        # Classes take turns in the groups r, c, f.
        want = loss.pos_neg[k::3].mean().item()
        assert logged[-1][f"class_balance/ratio_{group}"] == pytest.approx(want)
        gamma = logged[-1][f"class_balance/gamma_{group}"]
        assert gamma == pytest.approx(2 + 8 * (1 - want)) and 2 <= gamma <= 10
    assert logged[-1]["class_balance/num_skipped"] == 0


def test_the_hook_comes_by_itself_and_once(lvis, tmp_path):
    assert "ClassBalance" in HOOK_REGISTRY
    assert not balance_hooks(make_trainer(lvis, tmp_path, 6, name="focal_shapes_lt"))
    assert len(balance_hooks(make_trainer(lvis, tmp_path, 6))) == 1
    named = make_trainer(lvis, tmp_path, 6, "ENGINE.HOOKS", ["ClassBalance"])
    assert len(balance_hooks(named)) == 1


def test_image_counts():
    things = [{"annotations": [{"category_id": c} for c in row]} for row in ((0, 0, 2), (2,), ())]
    for name, counts in (("counted_a", (5, 1, 3)), ("counted_b", (1, 1, 1))):
        table = [{"id": i + 1, "image_count": n} for i, n in enumerate(counts)]
        # In whatever order: the id decides.
        MetadataCatalog.get(name).class_image_count = table[::-1]
    try:
        assert training_image_counts(["counted_a"], 3, things) == [5, 1, 3]
        assert training_image_counts(["counted_a", "counted_b"], 3) == [6, 2, 4]
        assert training_image_counts(["counted_a"], 4, things) is None
        # One without a table: an image counts once for a class, however often it has it.
        assert training_image_counts(["counted_a", "uncounted"], 3, things) == [1, 0, 2]
        assert training_image_counts(["uncounted"], 2, things) is None
        assert training_image_counts(["uncounted"], 3) is None
    finally:
        for name in ("counted_a", "counted_b", "uncounted"):
            if name in MetadataCatalog.list():
                MetadataCatalog.remove(name)


def test_accumulation_autocast_average_and_validation_count_no_pass_twice(
    lvis, tmp_path, monkeypatch
):
    counted = []
    collect = GradientBalancedLoss._collect
    monkeypatch.setattr(
        GradientBalancedLoss,
        "_collect",
        lambda self, sums: (counted.append(sums.clone()), collect(self, sums))[1],
    )
    trainer = make_trainer(
        lvis, tmp_path, 6, "SOLVER.ACCUMULATE", 2, "SOLVER.AMP.ENABLED", True,
        "SOLVER.AMP.DTYPE", "bf16", "ENGINE.EMA.ENABLED", True, "TEST.VAL_LOSS.PERIOD", 2,
        "TEST.VAL_LOSS.MAX_BATCHES", 1, "SOLVER.MAX_ITER", 3,
    )  # fmt: skip
    results = trainer.train()
    assert "ema" in results
    assert len(counted) == 2 * 3
    (loss,) = [m for m in trainer.raw_model.modules() if isinstance(m, GradientBalancedLoss)]
    torch.testing.assert_close(torch.stack([loss.pos_grad, loss.neg_grad]), sum(counted))
    # The average is of the buffers as well; the model trains on with its own.
    average = trainer.ema.average["criterion.cls_loss.neg_grad"]
    assert bool((average <= loss.neg_grad).all()) and not torch.equal(average, loss.neg_grad)


def test_resume_is_exact(tiny, tmp_path):
    config = ("--config-file", DEMO / "eqfl_shapes_lt.yaml")

    def words(out):
        return (*config, *small("tiny_train", out, 3, "SOLVER.CHECKPOINT_PERIOD", 2,
                                "DATASETS.TEST", "()", "DATALOADER.NUM_WORKERS", 0))  # fmt: skip

    a, b = tmp_path / "a", tmp_path / "b"
    train(tiny, a, *words(a))
    train(tiny, b, *words(b), sabotage="kill 3", code=-signal.SIGKILL)
    text = train(tiny, b, "--resume", *words(b))
    assert "Resumed at step 2" in text and "Missing on resume: nothing." in text
    finals = [state_of(out / "model_final.pth") for out in (a, b)]
    for part in ("model", "trainer"):  # the trainer has the optimiser
        assert differences(finals[0][part], finals[1][part]) == []
    assert bool(finals[0]["model"]["criterion.cls_loss.neg_grad"].any())
    assert differences(metrics(a), metrics(b)) == []
