"""The prior is measured before iteration 0, once, and disturbs nothing."""

import json
import logging
from pathlib import Path

import pytest
import torch
from engine_kit import run_ranks, toy_options
from model_kit import shrink

from d2ext import get_cfg
from d2ext.config import CfgNode
from d2ext.engine import HookBase, Trainer
from d2ext.engine.hooks import measure_prior
from d2ext.engine.hooks.measure_prior import PriorCache, prior_fingerprint
from d2ext.modeling.losses import GuidedScale
from d2ext.ops.sampling_free import prior_to_bias

DEMO = "configs/Demo/sampling_free_{}_shapes.yaml"
FAST = ["MODEL.RESNETS.STEM_OUT_CHANNELS", 4, "MODEL.RESNETS.RES2_OUT_CHANNELS", 4,
        "MODEL.RETINANET.NORM", "", "SOLVER.MAX_ITER", 2, "SOLVER.STEPS", (), "SOLVER.OPTIMIZER",
        "SGD", "MODEL.SAMPLING_FREE.PRIOR_BATCHES", 20, "DATASETS.TEST", ()]  # fmt: skip


def config(output_dir, *words, name="retinanet", num_classes=3):
    cfg = get_cfg()
    cfg.merge_from_file(DEMO.format(name))
    architecture = cfg.MODEL.META_ARCHITECTURE
    cfg.merge_from_list(toy_options(output_dir))
    shrink(cfg, num_classes)
    cfg.MODEL.META_ARCHITECTURE = architecture
    cfg.merge_from_list([*FAST, *words])
    return cfg


def trained(cfg, resume=False, hooks=()):
    trainer = Trainer(cfg)
    trainer.register_hooks(list(hooks))
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


class Watch(HookBase):
    """The bias that the model starts with."""

    def __init__(self):
        self.bias = None

    def before_step(self):
        if self.bias is None:
            self.bias = self.trainer.raw_model.head.cls_score.bias.detach().clone()


@pytest.fixture
def never_measured(monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("measured again")

    return lambda: monkeypatch.setattr(measure_prior, "measure_priors", fail)


def spy_on_batches(trainer):
    """The pixels of every training batch, as sums."""
    seen, original = [], trainer.step.next_batch

    def spy():
        batch = original()
        seen.append([int(x["image"].long().sum()) for x in batch])
        return batch

    trainer.step.next_batch = spy
    return seen


def test_bias_is_set_before_the_first_step_and_the_data_stay_in_order(tiny, tmp_path):
    orders = []
    for enabled in (True, False):
        cfg = config(tmp_path / str(enabled), "MODEL.SAMPLING_FREE.ENABLED", enabled)
        trainer, watch = Trainer(cfg), Watch()
        trainer.register_hooks([watch])
        orders.append(spy_on_batches(trainer))
        torch.manual_seed(5)
        trainer.train()
        orders[-1].append(torch.rand(3).tolist())  # the generators are where they would be
        if enabled:
            model = trainer.raw_model
            assert 1e-4 < float(model.prior) < 0.1
            assert float(model.fg_ratio) == pytest.approx(3 * float(model.prior))
            expected = torch.full_like(watch.bias, prior_to_bias(float(model.prior)))
            torch.testing.assert_close(watch.bias, expected)
            assert model.class_counts.sum() > 0
    assert orders[0] == orders[1]
    (known,) = json.loads((tmp_path / "True" / "prior.json").read_text()).values()
    assert known[""]["batches"] == 20 or known[""]["relative_error"] < 0.02


def test_a_second_run_finds_the_first_ones_measurement(tiny, tmp_path, never_measured):
    shared = ["MODEL.SAMPLING_FREE.PRIOR_FILE", str(tmp_path / "shared" / "prior.json")]
    first = trained(config(tmp_path / "a", *shared))
    never_measured()
    second = trained(config(tmp_path / "b", *shared, "SOLVER.BASE_LR", 0.001))
    assert first.raw_model.prior == second.raw_model.prior
    with pytest.raises(AssertionError, match="measured again"):
        trained(config(tmp_path / "c", *shared, "INPUT.MIN_SIZE_TRAIN", (48,)))


def test_resume_leaves_the_bias_alone(tiny, tmp_path, never_measured):
    trained(config(tmp_path))
    (tmp_path / "prior.json").unlink()
    never_measured()
    watch = Watch()
    trainer = Trainer(config(tmp_path, "SOLVER.MAX_ITER", 3))
    trainer.register_hooks([watch])
    trainer.resume_or_load(resume=True)
    loaded = trainer.raw_model.head.cls_score.bias.detach().clone()
    prior = float(trainer.raw_model.prior)
    trainer.train()
    assert torch.equal(watch.bias, loaded)
    assert float(trainer.raw_model.prior) == prior > 0


def test_loaded_weights_keep_their_bias_but_get_the_buffers(tiny, tmp_path, never_measured):
    """From a detector trained otherwise; one trained without sampling brings everything."""
    other = Trainer(config(tmp_path / "other", "MODEL.SAMPLING_FREE.ENABLED", False))
    torch.nn.init.constant_(other.raw_model.head.cls_score.bias, -4.0)
    other.checkpointer.save("weights")
    words = ["MODEL.WEIGHTS", str(tmp_path / "other" / "weights.pth")]
    watch = Watch()
    trainer = trained(config(tmp_path / "a", *words), hooks=[watch])
    assert (watch.bias == -4.0).all() and trainer.raw_model.fg_ratio > 0
    # Its values may happen to be those a new layer has: then the checkpoint's keys tell.
    fresh = Trainer(config(tmp_path / "fresh", "MODEL.SAMPLING_FREE.ENABLED", False))
    fresh.checkpointer.save("weights")
    words = ["MODEL.WEIGHTS", str(tmp_path / "fresh" / "weights.pth")]
    watch = Watch()
    trained(config(tmp_path / "b", *words), hooks=[watch])
    assert torch.allclose(watch.bias, torch.full_like(watch.bias, prior_to_bias(0.01)))
    never_measured()
    trainer.checkpointer.save("weights")
    trained(config(tmp_path / "c", "MODEL.WEIGHTS", str(tmp_path / "a" / "weights.pth")))


def test_a_guide_that_freezes_warms_up_anew_unless_the_run_is_resumed(tiny, tmp_path):
    words = ["MODEL.SAMPLING_FREE.GUIDE", "frozen", "MODEL.SAMPLING_FREE.GUIDE_WARMUP"]
    first = trained(config(tmp_path / "a", *words, 1))
    first.checkpointer.save("weights")
    loaded = ["MODEL.WEIGHTS", str(tmp_path / "a" / "weights.pth"), "SOLVER.MAX_ITER"]
    for resume, steps, iters in ((False, 2, 2), (True, 3, 3)):
        cfg = config(tmp_path / "b", *words, 5, *loaded, steps)
        assert trained(cfg, resume).raw_model.criterion.guide.iters == iters


def test_a_layer_for_other_classes_is_a_new_layer(tiny, tmp_path):
    other = Trainer(config(tmp_path / "other", num_classes=5))
    other.checkpointer.save("weights")
    watch = Watch()
    words = ["MODEL.WEIGHTS", str(tmp_path / "other" / "weights.pth")]
    trainer = trained(config(tmp_path / "a", *words), hooks=[watch])
    expected = prior_to_bias(float(trainer.raw_model.prior))
    torch.testing.assert_close(watch.bias, torch.full_like(watch.bias, expected))


def test_rpn_of_a_two_stage_detector(tiny, tmp_path):
    trainer = trained(config(tmp_path, "SOLVER.MAX_ITER", 1, name="faster_rcnn"))
    rpn = trainer.raw_model.proposal_generator
    assert rpn.prior == rpn.fg_ratio > 0
    assert float(rpn.classifier.bias.detach().mean()) == pytest.approx(
        prior_to_bias(float(rpn.prior)), abs=0.2
    )
    assert not trainer.raw_model.roi_heads.box_predictor.cls_score.bias.abs().gt(0.5).any()


def test_a_given_prior_is_not_measured(tiny, tmp_path, never_measured):
    never_measured()
    watch = Watch()
    trainer = trained(config(tmp_path, "MODEL.SAMPLING_FREE.PRIOR", 2e-3), hooks=[watch])
    assert torch.allclose(watch.bias.sigmoid(), torch.tensor(2e-3))
    assert float(trainer.raw_model.fg_ratio) == pytest.approx(6e-3)


def test_moving_average_starts_from_the_measured_bias(tiny, tmp_path):
    words = ["ENGINE.EMA.ENABLED", True, "SOLVER.MAX_ITER", 1]
    trainer = trained(config(tmp_path, *words))
    average = trainer.ema.average["head.cls_score.bias"]
    torch.testing.assert_close(
        average, trainer.raw_model.head.cls_score.bias.detach(), rtol=0.05, atol=0
    )


def test_without_a_single_match_the_bias_stays(tiny, tmp_path, monkeypatch, caplog):
    from d2ext.modeling.sampling_free import PriorMeasurement

    empty = {"": PriorMeasurement(0.0, 100.0, [0.0] * 3, [0.0] * 3, 5, float("inf"))}
    monkeypatch.setattr(measure_prior, "measure_priors", lambda *a, **k: empty)
    watch = Watch()
    with caplog.at_level(logging.WARNING):
        trained(config(tmp_path, "SOLVER.MAX_ITER", 1), hooks=[watch])
    assert "matched an object" in caplog.text
    torch.testing.assert_close(watch.bias.sigmoid(), torch.full_like(watch.bias, 0.01))


def test_a_model_that_cannot_is_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="SAMPLING_FREE.* RetinaNet has no part that can"):
        Trainer(config(tmp_path, "MODEL.META_ARCHITECTURE", "RetinaNet"))
    with pytest.raises(ValueError, match="PRIOR_BATCHES is 0; it must be"):
        Trainer(config(tmp_path, "MODEL.SAMPLING_FREE.PRIOR_BATCHES", 0))


def test_fingerprint_follows_what_the_prior_depends_on(tmp_path):
    base = prior_fingerprint(config(tmp_path))
    for words in (
        ["INPUT.MIN_SIZE_TRAIN", (48,)],
        ["MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]]],
        ["MODEL.RETINANET.IOU_THRESHOLDS", [0.3, 0.5]],
        ["DATASETS.TRAIN", ("tiny_val",)],
        ["SOLVER.IMS_PER_BATCH", 4],
        ["MODEL.DW.ANCHOR_SCALE", 4.0],
    ):
        assert prior_fingerprint(config(tmp_path, *words)) != base
    own = config(tmp_path)
    own.MODEL.MINE = CfgNode({"RADIUS": 2})
    assert prior_fingerprint(own) != base
    for words in (
        ["SOLVER.BASE_LR", 1.0],
        ["DATALOADER.NUM_WORKERS", 3],
        ["SEED", 9],
        ["OUTPUT_DIR", "elsewhere"],
        ["ENGINE.EMA.ENABLED", True],
        ["MODEL.WEIGHTS", "there.pth"],
    ):
        assert prior_fingerprint(config(tmp_path, *words)) == base
    assert prior_fingerprint(config(tmp_path), 100.0) != base


def test_a_damaged_or_unwritable_cache_is_no_reason_to_stop(tmp_path, caplog):
    (tmp_path / "prior.json").write_text("{")
    assert PriorCache(str(tmp_path / "prior.json"), "x").read() is None
    good = {"foreground": 1.0, "samples": 9.0, "class_foreground": [1.0], "class_objects": [2.0],
            "batches": 3, "relative_error": 0.1}  # fmt: skip
    cache = PriorCache(str(tmp_path / "other.json"), "x")
    for bad in ("text", [1], {"rpn": 7}, {"rpn": {}}, {"rpn": {**good, "samples": "many"}},
                {"rpn": {**good, "samples": -1.0}}, {"rpn": {**good, "more": 1}},
                {"rpn": {**good, "samples": float("nan")}}, {"rpn": {**good, "class_objects": []}},
                {"rpn": {**good, "class_objects": [None]}}):  # fmt: skip
        Path(cache.path).write_text(json.dumps({"x": bad}))
        caplog.clear()
        assert cache.read() is None and "measured again" in caplog.text
    Path(cache.path).write_text(json.dumps({"x": {"rpn": good}}))
    assert cache.read()["rpn"].samples == 9.0
    (tmp_path / "file").write_text("")
    PriorCache(str(tmp_path / "file" / "prior.json"), "x").write({})
    assert "Could not keep" in caplog.text


def _on_two_ranks(rank, folder):
    from detectron2.utils import comm

    guide = GuidedScale(sync=True)
    losses = {"cls": torch.tensor(1.0 + rank), "box": torch.tensor(3.0 * rank)}
    scaled = guide(losses)["cls"]
    assert scaled.item() == pytest.approx((1.0 + rank) * 1.5 / 1.5)
    frozen = GuidedScale(mode="frozen", warmup=2)
    for _ in range(3):
        frozen({"cls": torch.tensor(1.0), "box": torch.tensor(1.0 + rank)})
    assert frozen.ratio.item() == 1.5

    trainer = trained(config(folder, "SOLVER.MAX_ITER", 1))
    model = trainer.raw_model
    everyone = comm.all_gather((float(model.prior), float(model.head.cls_score.bias[0])))
    assert everyone[0] == everyone[1] and everyone[0][0] > 0
    if rank == 0:
        (known,) = json.loads(Path(folder, "prior.json").read_text()).values()
        assert known[""]["batches"] == 40 or known[""]["relative_error"] < 0.02


@pytest.mark.dist
def test_all_ranks_measure_together(tiny, tmp_path):
    run_ranks(lambda rank: _on_two_ranks(rank, tmp_path))
