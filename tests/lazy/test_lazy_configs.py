"""LazyConfigs: YAML, explicit arguments and Lazy are one model with one set of losses."""

import json

import pytest
import torch
from detectron2.config import LazyCall, LazyConfig, instantiate
from detectron2.data import get_detection_dataset_dicts
from detectron2.data.samplers import RepeatFactorTrainingSampler
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import BasicBlock, ResNet
from detectron2.solver import build_lr_scheduler
from model_kit import WIDE, build, make_batch, small_cfg, train_step

from d2ext import get_cfg
from d2ext.data import tiny_dataset
from d2ext.engine import HookBase, argument_parser, build_lazy_trainer, run
from d2ext.engine.hooks import ClassBalance, LossWeights, MeasurePrior
from d2ext.engine.hooks.class_balance import dataset_of, training_image_counts
from d2ext.engine.lazy_data import build_train_loader
from d2ext.engine.lazy_settings import lazy_settings
from d2ext.model_zoo import config_files, config_root, get_config_file
from d2ext.modeling.sampling_free import measure_priors

ROOT = config_root() / "lazy"
YAML = {
    "retinanet": "COCO/retinanet_R_50_FPN_1x",
    "fcos": "COCO/fcos_R_50_FPN_1x",
    "atss": "COCO/atss_R_50_FPN_1x",
    "dual_weighting": "DualWeighting/dw_R_50_FPN_1x_refine",
    "harmonic": "Harmonic/retinanet_R_50_FPN_1x",
    "equalized_focal": "EqualizedFocalLoss/retinanet_R_50_FPN_1x_efl",
    "sampling_free": "SamplingFree/retinanet_R_50_FPN_1x",
    "alwa": "COCO/retinanet_R_50_FPN_1x+ALWA/Base-CIoU+ALWA/Base-ALWA-recommended",
}
CLASSES = 3


def small_lazy(name):
    """A LazyConfig of the size of `small_cfg`, on which the same batch can be trained."""
    cfg = LazyConfig.load(str(ROOT / f"{name}.py"))
    model = cfg.model
    resnet = model.backbone.bottom_up
    resnet = resnet.resnet if "resnet" in resnet else resnet
    resnet.stages.depth = 18
    del resnet.stages["stride_in_1x1"]
    model.backbone.out_channels = 64
    top = model.backbone.top_block
    top.in_channels = 64 if top.get("in_feature") == "p5" else 512
    model.num_classes = CLASSES
    model.head.input_shape = [ShapeSpec(channels=64, stride=s) for s in (8, 16, 32, 64, 128)]
    model.head.conv_dims = [64]
    return cfg


def small_yaml(name):
    words = ["MODEL.FPN.OUT_CHANNELS", 64, *WIDE]
    if name == "sampling_free":
        words += ["MODEL.SAMPLING_FREE.PRIOR", 2e-5]
    return small_cfg(config_files(YAML[name]), words, num_classes=CLASSES)


@pytest.mark.parametrize("name", sorted(YAML))
def test_yaml_explicit_and_lazy_are_one(name):
    cfg = small_yaml(name)
    from_yaml = build(cfg)
    explicit = type(from_yaml)(**type(from_yaml).from_config(cfg))
    lazy = small_lazy(name)
    if name == "sampling_free":  # measured in training, given here
        lazy.model.sampling_free.prior = 2e-5
    from_lazy = instantiate(lazy.model)
    assert type(from_lazy) is type(from_yaml)
    state = from_yaml.state_dict()
    batch = make_batch(size=160, num_classes=CLASSES)
    expected, gradients = train_step(from_yaml, batch)
    assert len(expected) >= 2
    for model in (explicit, from_lazy):
        assert set(model.state_dict()) == set(state)
        model.load_state_dict(build(cfg).state_dict())
        losses, own = train_step(model, batch)
        assert losses.keys() == expected.keys()
        for key in losses:
            assert torch.equal(losses[key], expected[key]), key
        assert own.keys() == gradients.keys()
        assert all(torch.equal(own[key], gradients[key]) for key in own)


def test_every_file_is_tested_and_builds():
    assert {path.stem for path in ROOT.glob("*.py")} == {*YAML, "combined"}
    model = instantiate(small_lazy("combined").model)
    losses, _ = train_step(model, make_batch(size=160, num_classes=CLASSES))
    assert {"loss_cls", "loss_box_reg"} < set(losses)


class _Watch(HookBase):
    def after_step(self):
        self.losses = self.trainer.storage.latest()


def test_trainer_runs_a_lazy_config(tmp_path):
    cfg = small_lazy("combined")
    batch = make_batch(size=160, num_classes=CLASSES)
    cfg.train.update(output_dir=str(tmp_path), max_iter=3, device="cpu", init_checkpoint="")
    cfg.train.hooks[0].update(start_iter=0, interval=2)
    cfg.dataloader = {"train": [batch]}
    model = instantiate(cfg.model)
    trainer = build_lazy_trainer(cfg, model)
    weights = next(h for h in trainer.all_hooks if isinstance(h, LossWeights))
    trainer.train()
    assert trainer.completed_steps == 3
    assert weights.groups and next(iter(weights.groups.values())).num_windows >= 1
    assert (tmp_path / "model_final.pth").is_file()
    steps = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    # EFL's log comes by itself, as in a training from YAML.
    assert 2 <= steps[-1]["class_balance/gamma_mean"] <= 10
    assert steps[-1]["class_balance/num_skipped"] == 0
    assert trainer.clipper.max_norm == 35 and steps[-1]["grad_norm"] > 0


def test_the_log_of_efl_comes_once_and_only_with_such_a_loss(tmp_path):
    def hooks_of(name, *hooks):
        cfg = small_lazy(name)
        cfg.train.update(output_dir=str(tmp_path), device="cpu", hooks=list(hooks))
        cfg.dataloader = {"train": []}
        trainer = build_lazy_trainer(cfg, instantiate(cfg.model))
        return [hook.period for hook in trainer.all_hooks if isinstance(hook, ClassBalance)]

    assert hooks_of("retinanet") == []
    assert hooks_of("equalized_focal") == [20]
    assert hooks_of("equalized_focal", LazyCall(ClassBalance)(period=7)) == [7]


def test_efl_has_the_recipe_of_its_yaml():
    cfg = get_cfg()
    cfg.merge_from_file(get_config_file(YAML["equalized_focal"]))
    lazy = LazyConfig.load(str(ROOT / "equalized_focal.py"))
    solver, clip = cfg.SOLVER, cfg.SOLVER.CLIP_GRADIENTS
    assert clip.ENABLED and clip.CLIP_TYPE == "global_norm"
    assert instantiate(lazy.train.clipper).max_norm == clip.CLIP_VALUE
    assert lazy.train.max_iter == solver.MAX_ITER
    assert lazy.dataloader.train.total_batch_size == solver.IMS_PER_BATCH
    assert lazy.optimizer.lr == solver.BASE_LR
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=solver.BASE_LR)
    schedule = build_lr_scheduler(cfg, optimizer)._multiplier
    lazy_schedule = instantiate(lazy.lr_multiplier)
    for step in (0, 500, 999, 1001, 119999, 120001, 159999, 160001, 179999):
        where = step / solver.MAX_ITER
        assert lazy_schedule(where) == pytest.approx(schedule(where)), step
    assert lazy.model.test_score_thresh == cfg.MODEL.RETINANET.SCORE_THRESH_TEST
    assert lazy.model.max_detections_per_image == cfg.TEST.DETECTIONS_PER_IMAGE
    assert lazy.model.num_classes == cfg.MODEL.RETINANET.NUM_CLASSES
    for part, names in (("train", cfg.DATASETS.TRAIN), ("test", cfg.DATASETS.TEST)):
        assert (lazy.dataloader[part].dataset.names,) == names
    assert cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler"
    threshold = lazy.dataloader.train.sampler.repeat_factors.repeat_thresh
    assert threshold == cfg.DATALOADER.REPEAT_THRESHOLD


def test_the_schedule_of_dual_weighting_is_that_of_its_yaml():
    lazy = LazyConfig.load(str(ROOT / "dual_weighting.py"))
    cfg = get_cfg()
    cfg.merge_from_file(config_files(YAML["dual_weighting"]))
    solver = cfg.SOLVER
    assert (lazy.train.max_iter, lazy.optimizer.lr) == (solver.MAX_ITER, solver.BASE_LR)
    assert lazy.dataloader.train.total_batch_size == solver.IMS_PER_BATCH
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=solver.BASE_LR)
    yaml_schedule = build_lr_scheduler(cfg, optimizer)._multiplier
    lazy_schedule = instantiate(lazy.lr_multiplier)
    steps = [0, 1, 500, 999, 1000, 1001, solver.MAX_ITER - 1]
    for step in (*steps, *(s + d for s in solver.STEPS for d in (-1, 1))):
        where = step / solver.MAX_ITER
        assert lazy_schedule(where) == pytest.approx(yaml_schedule(where)), step


def test_the_loader_of_efl_repeats_images_and_counts_them(monkeypatch):
    cfg = LazyConfig.load(str(ROOT / "equalized_focal.py"))
    cfg.dataloader.train.sampler.repeat_factors.repeat_thresh = 1.0
    cfg.dataloader.train.num_workers = 0
    with tiny_dataset("lvis", num_images=6, num_classes=6) as name:
        cfg.dataloader.train.dataset.names = name
        loader = build_train_loader(cfg)
        dicts = get_detection_dataset_dicts([name])
    sampler = loader.make_indices(1)
    factors = sampler._int_part + sampler._frac_part
    by_frequency = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency
    assert torch.equal(factors, by_frequency(dicts, 1.0)) and factors.max() > 1
    # Without loading an image.
    monkeypatch.setattr("detectron2.data.DatasetMapper.__call__", None)
    counts = training_image_counts([], 6, dataset_of(loader))
    assert counts == training_image_counts([], 6, dicts) and sum(counts) > 0


def test_sampling_free_measures_its_prior_before_the_first_step(tmp_path):
    cfg = small_lazy("sampling_free")
    batch = make_batch(size=160, num_classes=CLASSES)
    cfg.train.update(output_dir=str(tmp_path), max_iter=1, device="cpu", init_checkpoint="")
    cfg.optimizer.lr = 0.0  # so that the bias is still there to be seen
    cfg.dataloader = {"train": [batch] * 20}
    model = instantiate(cfg.model)
    before = model.head.cls_score.bias.detach().clone()
    trainer = build_lazy_trainer(cfg, model)
    assert isinstance(next(iter(trainer.all_hooks)), MeasurePrior)
    trainer.train()
    with_yaml = build(small_yaml("sampling_free"))
    expected = measure_priors(with_yaml, [batch] * 20, show_progress=False)[""]
    assert float(model.fg_ratio) == pytest.approx(expected.ratio, rel=1e-6)
    assert float(model.prior) == pytest.approx(expected.prior(), rel=1e-6)
    assert torch.allclose(model.head.cls_score.bias.sigmoid(), model.prior, rtol=1e-4)
    assert not torch.allclose(model.head.cls_score.bias, before)


def test_a_given_prior_is_not_measured(tmp_path):
    cfg = small_lazy("sampling_free")
    cfg.model.sampling_free.prior = 1e-4
    cfg.train.update(output_dir=str(tmp_path), max_iter=1, device="cpu", init_checkpoint="")
    cfg.dataloader = {"train": [make_batch(size=160, num_classes=CLASSES)]}
    model = instantiate(cfg.model)
    build_lazy_trainer(cfg, model).train()
    assert float(model.prior) == pytest.approx(1e-4)


def test_the_logits_of_logn_are_collected(tmp_path):
    batch = make_batch((2, 1), size=64)
    on = ["MODEL.ROI_BOX_HEAD.LOGIT_NORM.ENABLED", True]
    model = build(small_cfg(config_files("Demo/faster_rcnn_shapes"), on))
    cfg = small_lazy("retinanet")
    cfg.train.update(output_dir=str(tmp_path), max_iter=1, device="cpu", init_checkpoint="")
    cfg.train.update(logit_norm={"num_images": 3})
    cfg.dataloader = {"train": [batch] * 3}
    cfg.optimizer.lr = 1e-4
    build_lazy_trainer(cfg, model).train()
    sums = model.roi_heads.box_predictor.logit_norm.sums
    assert sums[0, 0] > 1
    saved = torch.load(tmp_path / "model_final.pth")["model"]
    assert torch.equal(saved["roi_heads.box_predictor.logit_norm.sums"], sums)
    cfg.train.ema = {"enabled": True}
    with pytest.raises(ValueError, match="logits of the last weights, not of their average"):
        build_lazy_trainer(cfg, model)


SMALL = """
from d2ext.model_zoo import get_config_file
from detectron2.config import LazyConfig
from detectron2.layers import ShapeSpec
from detectron2.modeling.backbone.resnet import BasicBlock, ResNet

_cfg = LazyConfig.load(get_config_file("lazy/combined.py"))
model, optimizer, lr_multiplier, train = _cfg.model, _cfg.optimizer, _cfg.lr_multiplier, _cfg.train
dataloader = _cfg.dataloader
model.backbone.bottom_up.stages.depth = 18
del model.backbone.bottom_up.stages["stride_in_1x1"]
model.backbone.out_channels = 32
model.backbone.top_block.in_channels = 512
model.num_classes = 3
model.head.input_shape = [ShapeSpec(channels=32, stride=s) for s in (8, 16, 32, 64, 128)]
model.head.conv_dims = [32]
model.test_score_thresh = 0.0
train.init_checkpoint, train.device, train.seed = "", "cpu", 1
for _part in (dataloader.train, dataloader.test):
    _part.num_workers = 0
dataloader.train.total_batch_size = 2
dataloader.train.mapper.augmentations[0].update(short_edge_length=[96], max_size=128)
dataloader.test.mapper.augmentations[0].update(short_edge_length=96, max_size=128)
"""


def narrow_stages():
    """A ResNet-18 of few channels throughout: checkpoints of the usual one take long to write."""
    # A block has a convolution on its shortcut, which a stride needs, where the width changes.
    widths, strides = (64, 64, 48, 56, 64), (1, 2, 2, 2)
    return [
        ResNet.make_stage(
            BasicBlock, 2, stride_per_block=[s, 1], in_channels=a, out_channels=b, norm="FrozenBN"
        )
        for a, b, s in zip(widths, widths[1:], strides)
    ]


def lazy_run(folder, data, max_iter, **train):
    """A training with everything that a YAML training may have; returns the trainer.

    On smaller images the last level is a convolution of one point, whose gradient in bf16 is now
    and then NaN in oneDNN.
    """
    cfg = small_lazy("retinanet")
    cfg.model.backbone.bottom_up.stages = LazyCall(narrow_stages)()
    cfg.model.backbone.top_block.in_channels = 64
    for part in (cfg.dataloader.train, cfg.dataloader.test):
        part.dataset.names, part.num_workers = data, 0
    cfg.dataloader.train.total_batch_size = 2
    cfg.dataloader.train.mapper.augmentations[0].update(short_edge_length=[96, 112], max_size=128)
    cfg.dataloader.test.mapper.augmentations[0].update(short_edge_length=96, max_size=128)
    del cfg.dataloader["evaluator"]
    cfg.optimizer.lr = 1e-4
    cfg.train.update(output_dir=str(folder), max_iter=max_iter, device="cpu", seed=3)
    cfg.train.update(log_period=1, accumulate=2, ema={"enabled": True}, **train)
    cfg.train.checkpointer.period = 2
    model = instantiate(cfg.model)
    torch.manual_seed(0)
    for parameter in model.head.parameters():
        torch.nn.init.normal_(parameter, std=0.01)
    return build_lazy_trainer(cfg, model)


class _StopAfter(HookBase):
    def __init__(self, steps):
        self.steps = steps

    def before_step(self):
        if self.trainer.iter + 1 == self.steps:
            self.trainer.request_stop("a test", by_signal=True)


def test_a_lazy_run_has_what_a_yaml_run_has_and_resumes_exactly(tmp_path):
    torch.manual_seed(0)
    more = {
        "val_loss": {"period": 2, "max_batches": 2},
        "best_checkpoint": {"metric": "val/total_loss", "mode": "min"},
        "early_stopping": {"metric": "val/total_loss", "patience": 9, "mode": "min"},
        "amp": {"enabled": True, "dtype": "bf16"},
    }
    with tiny_dataset("coco", num_images=6, num_classes=CLASSES) as name:
        torch.manual_seed(1)
        whole = lazy_run(tmp_path / "whole", name, 4, **more)
        start = {key: value.clone() for key, value in whole.raw_model.state_dict().items()}
        whole.train()
        parts = lazy_run(tmp_path / "parts", name, 4, **more)
        parts.raw_model.load_state_dict(start)
        parts.register_hooks([_StopAfter(2)])
        parts.train()
        parts = lazy_run(tmp_path / "parts", name, 4, **more)
        parts.resume_or_load()
        assert parts.start_iter == 2 and parts.precision.dtype == "bf16"
        parts.train()
    for file in ("model_final", "model_final_ema", "model_best"):
        states = [torch.load(tmp_path / n / f"{file}.pth")["model"] for n in ("whole", "parts")]
        assert all(torch.equal(states[0][key], states[1][key]) for key in states[0]), file
    lines = [
        [json.loads(line) for line in (tmp_path / n / "metrics.json").read_text().splitlines()]
        for n in ("whole", "parts")
    ]
    figures = [[(x["iteration"], x.get("total_loss"), x.get("val/total_loss")) for x in part]
               for part in lines]  # fmt: skip
    assert figures[0] == figures[1] and len(figures[0]) == 4
    assert figures[0][1][2] is not None


def test_settings_of_a_lazy_run_are_checked_under_their_own_names():
    train = LazyConfig.load(str(ROOT / "retinanet.py")).train
    assert lazy_settings(train).ENGINE.EMA.ENABLED is False
    train.ema = {"decay": 2.0}
    with pytest.raises(ValueError, match="train.ema.decay is 2.0"):
        lazy_settings(train)
    train.ema = {"deacy": 0.9}
    with pytest.raises(KeyError, match="train.ema.deacy is not a key; choose ema.enabled"):
        lazy_settings(train)


@pytest.mark.slow
def test_train_net_trains_and_evaluates_a_lazy_config(tmp_path, capsys):
    """As ``train_net.py --lazy`` does, overrides included."""
    file = tmp_path / "small.py"
    file.write_text(SMALL)
    words = ["--lazy", "--fast-dev-run", "--config-file", str(file)]
    words += [f"train.output_dir={tmp_path}", "optimizer.lr=1e-6"]  # a step moves little
    with tiny_dataset("lvis", num_images=4) as name:
        words += [f"dataloader.{part}.dataset.names={name}" for part in ("train", "test")]
        assert run(argument_parser().parse_args(words)) == 0
        weights = str(tmp_path / "model_final.pth")
        words = ["--eval-only", "--init-from", weights, *words]
        assert run(argument_parser().parse_args(words)) == 0
    assert capsys.readouterr().out.count("copypaste: Task: bbox") == 2
    steps = [json.loads(line) for line in (tmp_path / "metrics.json").read_text().splitlines()]
    assert [step["iteration"] for step in steps if "total_loss" in step] == [0, 1, 2, 3]
    assert 0 <= steps[-1]["bbox/AP"] <= 100


def test_a_data_set_that_is_missing_is_named(capsys, caplog):
    words = [
        "--lazy",
        "--config-file",
        "lazy/harmonic.py",
        "dataloader.train.dataset.names=nowhere",
    ]
    assert run(argument_parser().parse_args(words)) == 1
    assert "'nowhere' is not registered" in capsys.readouterr().err + caplog.text
