"""LazyConfigs: YAML, explicit arguments and Lazy are one model with one set of losses."""

import json

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from model_kit import WIDE, build, make_batch, small_cfg, train_step

from d2ext.data import tiny_dataset
from d2ext.engine import HookBase, argument_parser, build_lazy_trainer, run
from d2ext.engine.hooks import LossWeights, MeasurePrior
from d2ext.model_zoo import config_root, get_config_file
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
    "alwa": "ALWA/COCO/retinanet_R_50_FPN_1x_ciou_recommended",
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
    return small_cfg(get_config_file(YAML[name]), words, num_classes=CLASSES)


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
    weights = next(h for h in trainer._hooks if isinstance(h, LossWeights))
    trainer.train()
    assert trainer.completed_steps == 3
    assert weights.groups and next(iter(weights.groups.values())).num_windows >= 1
    assert (tmp_path / "model_final.pth").is_file() and (tmp_path / "metrics.json").is_file()


def test_sampling_free_measures_its_prior_before_the_first_step(tmp_path):
    cfg = small_lazy("sampling_free")
    batch = make_batch(size=160, num_classes=CLASSES)
    cfg.train.update(output_dir=str(tmp_path), max_iter=1, device="cpu", init_checkpoint="")
    cfg.optimizer.lr = 0.0  # so that the bias is still there to be seen
    cfg.dataloader = {"train": [batch] * 20}
    model = instantiate(cfg.model)
    before = model.head.cls_score.bias.detach().clone()
    trainer = build_lazy_trainer(cfg, model)
    assert isinstance(next(iter(trainer._hooks)), MeasurePrior)
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


SMALL = """
from d2ext.model_zoo import get_config_file
from detectron2.config import LazyConfig
from detectron2.layers import ShapeSpec

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


def test_a_data_set_that_is_missing_is_named():
    words = [
        "--lazy",
        "--config-file",
        "lazy/harmonic.py",
        "dataloader.train.dataset.names=nowhere",
    ]
    with pytest.raises(KeyError, match="'nowhere' is not registered"):
        run(argument_parser().parse_args(words))
