"""``MODEL.CLASS_WEIGHTS``: from keys or counted in the data; kept on resume; refusals."""

import logging

import pytest
import torch
from model_kit import build, make_batch, small_cfg, train_step

from d2ext import model_zoo
from d2ext.analysis.trial_steps import check_steps
from d2ext.data import tiny_dataset
from d2ext.engine import Trainer
from d2ext.engine.hooks import count_class_weights
from d2ext.engine.hooks.class_weights import count_objects
from d2ext.losses import ClsLoss
from d2ext.ops.class_weights import effective_weight, inverse_frequency_weights

RETINANET = model_zoo.get_config_file("Base-RetinaNet")
FASTER = "configs/COCO/faster_rcnn_R_50_FPN_1x.yaml"


def weighted(model):
    return [m for m in model.modules() if isinstance(m, ClsLoss) and m.class_weights is not None]


def class_losses(words, config=RETINANET):
    return weighted(build(small_cfg(config, words)))


def test_without_the_keys_nothing_changes():
    model = build(small_cfg(RETINANET))
    assert weighted(model) == [] and not any("class_weights" in key for key in model.state_dict())


def test_values_and_counts_from_the_config():
    (loss,) = class_losses(["MODEL.CLASS_WEIGHTS.VALUES", [0.5, 1, 2]])
    assert loss.class_weights.tolist() == [0.5, 1.0, 2.0]
    words = ["MODEL.CLASS_WEIGHTS.POWER", 0.5, "MODEL.CLASS_WEIGHTS.COUNTS", [1, 4, 16]]
    (loss,) = class_losses(words)
    want = inverse_frequency_weights([1, 4, 16], power=0.5).float()
    assert torch.equal(loss.class_weights, want) and list(loss.state_dict()) == []


def test_the_roi_head_has_them_and_the_rpn_has_not():
    model = build(small_cfg(FASTER, ["MODEL.CLASS_WEIGHTS.VALUES", [0.5, 1, 2]]))
    assert [loss.place for loss in weighted(model)] == ["roi"]
    losses, grads = train_step(model, make_batch())
    assert losses["loss_cls"] > 0


@pytest.mark.parametrize(
    "words, message",
    [
        (["VALUES", [1.0]], r"CLASS_WEIGHTS\.VALUES has 1 entries for 3 classes; give one"),
        (["COUNTS", [1, 2], "POWER", 0.5], r"CLASS_WEIGHTS\.COUNTS has 2 entries for 3"),
        (["VALUES", [1, 1, 1], "POWER", 0.5], "set one of the two"),
        (["POWER", 1.5], r"CLASS_WEIGHTS\.POWER is 1\.5; it must be"),
        (["VALUES", [1, -1, 1]], r"CLASS_WEIGHTS\.VALUES .* must be"),
    ],
)
def test_what_makes_no_sense_is_refused(words, message):
    words = [f"MODEL.CLASS_WEIGHTS.{w}" if i % 2 == 0 else w for i, w in enumerate(words)]
    with pytest.raises(ValueError, match=message):
        build(small_cfg(RETINANET, words))


def test_a_second_balance_is_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        class_losses(["MODEL.CLASS_WEIGHTS.VALUES", [1, 2, 3], "MODEL.DENSE.CLS_LOSS", "efl"])
    assert "'efl', which balances them itself" in caplog.text


def test_where_nothing_reads_them_they_are_refused():
    words = ["MODEL.CLASS_WEIGHTS.POWER", 0.5]
    cfg = small_cfg("configs/Demo/dw_shapes.yaml", words)
    with pytest.raises(ValueError, match="losses of its own, which MODEL.CLASS_WEIGHTS.POWER"):
        build(cfg)
    plain = small_cfg(RETINANET, [*words, "MODEL.META_ARCHITECTURE", "RetinaNet"])
    with pytest.raises(ValueError, match="RetinaNet has no dense head or ROI head that reads it"):
        Trainer.build_model(plain)
    federated = ["MODEL.ROI_BOX_HEAD.USE_FED_LOSS", True, "MODEL.ROI_BOX_HEAD.CLS_LOSS", "bce"]
    with pytest.raises(ValueError, match="USE_FED_LOSS shows the loss other classes"):
        build(small_cfg(FASTER, ["MODEL.CLASS_WEIGHTS.VALUES", [1, 2, 3], *federated]))


@pytest.fixture(scope="module")
def data():
    with tiny_dataset("coco", num_images=6, num_classes=3) as name:
        yield name


def demo(data, out, *words):
    cfg = model_zoo.get_config("Demo/retinanet_shapes")
    cfg.merge_from_list(
        [
            "DATASETS.TRAIN", (data,), "DATASETS.TEST", (), "OUTPUT_DIR", str(out),
            "MODEL.RETINANET.NUM_CLASSES", 3, "MODEL.RETINANET.NUM_CONVS", 1,
            "MODEL.RESNETS.RES2_OUT_CHANNELS", 8, "MODEL.RESNETS.STEM_OUT_CHANNELS", 8,
            "INPUT.MIN_SIZE_TRAIN", (64,), "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 2,
            "SOLVER.WARMUP_ITERS", 0, "SOLVER.STEPS", (), "ENGINE.TENSORBOARD", False,
            "MODEL.CLASS_WEIGHTS.POWER", 0.5, *words,
        ]
    )  # fmt: skip
    return cfg


def test_weights_are_counted_in_the_data_once_and_kept_on_resume(data, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    trainer = Trainer(demo(data, tmp_path))
    from detectron2.data import DatasetCatalog

    counts = count_objects(DatasetCatalog.get(data), 3)
    assert sum(counts) > 0
    trainer.train()
    (loss,) = weighted(trainer.raw_model)
    want = inverse_frequency_weights(counts, power=0.5).float()
    torch.testing.assert_close(loss.class_weights, want)
    assert f"weighs {effective_weight(want, counts):.3g} on average" in caplog.text
    saved = torch.load(tmp_path / "model_final.pth", weights_only=False)["model"]
    (key,) = [key for key in saved if key.endswith("class_weights")]
    torch.testing.assert_close(torch.as_tensor(saved[key]), want)

    other = tiny_dataset("coco", num_images=4, num_classes=3, seed=5)
    with other as name:
        resumed = Trainer(demo(name, tmp_path, "SOLVER.MAX_ITER", 3))
        resumed.resume_or_load(resume=True)
        resumed.train()
    (loss,) = weighted(resumed.raw_model)
    torch.testing.assert_close(loss.class_weights, want)


def test_a_run_that_resumes_without_weights_counts_them(data, tmp_path):
    """A checkpoint from before the key was set has none: all classes must not weigh nothing."""
    trainer = Trainer(demo(data, tmp_path))
    (loss,) = weighted(trainer.raw_model)
    count_class_weights(trainer.raw_model, trainer.data_loader, keep_loaded=True)
    assert 0 < loss.class_weights.min() < loss.class_weights.max()


def test_the_doctor_trains_its_steps_with_them(data, tmp_path):
    cfg = demo(data, tmp_path)
    model = build(cfg)
    check_steps(cfg, model, 1, report=lambda line: None)
    assert weighted(model)[0].uncounted_power == 0


def test_a_loader_that_cannot_be_counted_ends_in_a_sentence():
    model = build(small_cfg(RETINANET, ["MODEL.CLASS_WEIGHTS.POWER", 0.5]))
    with pytest.raises(ValueError, match="set MODEL.CLASS_WEIGHTS.COUNTS to the number of boxes"):
        count_class_weights(model, iter([]))
    assert count_objects([{"annotations": [{"category_id": 7}]}], 3) is None
    crowd = [{"annotations": [{"category_id": 1, "iscrowd": 1}, {"category_id": 2}]}]
    assert count_objects(crowd, 3) == [0, 0, 1]
