"""LazyConfigs: YAML, explicit arguments and Lazy are one model with one set of losses."""

from pathlib import Path

import pytest
import torch
from detectron2.config import LazyConfig, instantiate
from detectron2.layers import ShapeSpec
from model_kit import build, make_batch, small_cfg, train_step

from d2ext.engine import HookBase, build_lazy_trainer
from d2ext.engine.hooks import LossWeights
from d2ext.model_zoo import config_root, get_config_file

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
    words = ["MODEL.FPN.OUT_CHANNELS", 64]
    if name == "sampling_free":
        words += ["MODEL.SAMPLING_FREE.PRIOR", 2e-5]
    return small_cfg(get_config_file(YAML[name]), words, num_classes=CLASSES)


@pytest.mark.parametrize("name", sorted(YAML))
def test_yaml_explicit_and_lazy_are_one(name):
    cfg = small_yaml(name)
    from_yaml = build(cfg)
    explicit = type(from_yaml)(**type(from_yaml).from_config(cfg))
    from_lazy = instantiate(small_lazy(name).model)
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


def test_train_net_offers_lazy():
    script = Path(__file__).resolve().parents[2] / "train_net.py"
    lines = script.read_text().splitlines()
    assert len(lines) <= 120 and any("train_lazy(args)" in line for line in lines)
