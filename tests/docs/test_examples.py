"""The examples of docs/extending.md, each imported from outside d2ext and trained."""

import importlib
from pathlib import Path

import pytest
import torch
from detectron2.structures import Boxes
from model_kit import build, make_batch, small_cfg, train_step

from d2ext.engine import Trainer
from d2ext.engine.hooks import build_registered_hooks
from d2ext.model_zoo import get_config_file
from d2ext.modeling.targets import Priors, pack_targets
from d2ext.ops.sigmoid_losses import sigmoid_focal_loss

EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "examples"
NAMES = ("class_loss", "box_loss", "assigner", "hook", "loss_weights")


@pytest.fixture
def example(monkeypatch):
    """Imports an example once, as ``--import`` with PYTHONPATH does."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


def model_of(name, *overrides):
    words = ["MODEL.FPN.OUT_CHANNELS", 64, *overrides]
    return build(small_cfg(get_config_file(name), words))


def test_the_page_shows_these_files():
    page = (EXAMPLES.parent / "extending.md").read_text()
    assert {path.stem for path in EXAMPLES.glob("*.py")} == set(NAMES)
    for name in NAMES:
        code = (EXAMPLES / f"{name}.py").read_text()
        assert f"(examples/{name}.py)" in page
        assert len(code.splitlines()) <= 55


def test_class_loss_trains_a_detector(example):
    loss = example("class_loss").CappedFocalLoss(cap=1e9)
    logits = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(40) % 5 - 1
    assert torch.allclose(loss(logits, labels), sigmoid_focal_loss(logits, labels), rtol=1e-5)
    loss.cap = 1e-3
    assert loss(logits, labels) < sigmoid_focal_loss(logits, labels)
    model = model_of("Base-RetinaNet", "MODEL.DENSE.CLS_LOSS", "capped_focal")
    losses, gradients = train_step(model, make_batch(size=160))
    assert torch.isfinite(sum(losses.values())) and len(gradients) > 10
    # The harmonic coupling takes it, too: it has a per-sample form.
    words = ["MODEL.DENSE.CLS_LOSS", "capped_focal", "MODEL.HARMONIC.ENABLED", True]
    train_step(model_of("Base-RetinaNet", *words), make_batch(size=160))


def test_box_loss_trains_a_detector(example):
    module = example("box_loss")
    model = model_of("Base-FCOS", "MODEL.DENSE.BOX_LOSS", "alpha_iou")
    assert isinstance(model.criterion.box_loss, module.AlphaIoULoss)
    losses, gradients = train_step(model, make_batch(size=160))
    assert losses["loss_fcos_loc"] > 0 and gradients["head.bbox_pred.weight"].abs().sum() > 0
    with pytest.raises(ValueError, match="above 0"):
        module.AlphaIoULoss(0)


def test_assigner_trains_a_detector(example):
    module = example("assigner")
    batch = make_batch((0, 2, 1), size=160)
    targets = pack_targets([item["instances"] for item in batch])
    centers = (targets.boxes[:, :2] + targets.boxes[:, 2:]) / 2
    priors = Priors.from_boxes([Boxes(torch.cat((centers - 4, centers + 4), dim=1))])
    found = module.InnerPartAssigner(share=0.01)(priors, targets, 3)
    assert found.labels[0].tolist() == [3, 3, 3]
    assert found.labels[2, 2] == targets.classes[2] and found.matched[2, 2] == 2
    assert found.labels[1, :2].tolist() == targets.classes[:2].tolist()
    model = model_of("Base-FCOS", "MODEL.DENSE.ASSIGNER", "inner_part")
    assert isinstance(model.assigner, module.InnerPartAssigner)
    losses, _ = train_step(model, batch)
    assert losses["loss_fcos_loc"] > 0
    losses, _ = train_step(model, make_batch((0, 0), size=160))
    assert torch.isfinite(sum(losses.values()))


class _Toy(torch.nn.Module):
    """A model with a class loss ten times its box loss."""

    def __init__(self):
        super().__init__()
        self.x = torch.nn.Parameter(torch.tensor(1.0))

    def forward(self, batch):
        return {"loss_cls": 10 * self.x**2, "loss_box_reg": self.x**2}


def train_toy(hooks, steps, folder):
    model = _Toy()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    trainer = Trainer(
        model=model, data_loader=[None], optimizer=optimizer, max_iter=steps, output_dir=str(folder)
    )
    trainer.register_hooks(hooks)
    trainer.train()
    return trainer


def test_hook_and_its_saved_state(example, tmp_path):
    example("hook")
    (hook,) = build_registered_hooks(None, ["build_loss_record"])
    trainer = train_toy([hook], 5, tmp_path)
    assert hook.step == 4 and 0 < hook.lowest < 11
    trainer.save_checkpoint("model_final")
    (again,) = build_registered_hooks(None, ["build_loss_record"])
    resumed = train_toy([again], 0, tmp_path)
    resumed.resume_or_load(resume=True)
    assert (again.lowest, again.step) == (hook.lowest, hook.step)


def test_loss_weight_rule(example, tmp_path):
    module = example("loss_weights")
    (hook,) = build_registered_hooks(None, ["build_equal_share"])
    hook.make_weighting = lambda: module.EqualShare(interval=2)
    train_toy([hook], 5, tmp_path)
    assert hook.weights["loss_cls"] == pytest.approx(0.1) and hook.weights["loss_box_reg"] == 1
    rule = module.EqualShare(interval=2)
    rule.observe(1.0, 3.0)
    copy = module.EqualShare(interval=2)
    copy.load_state_dict(rule.state_dict())
    assert copy.observe(1.0, 3.0) == rule.observe(1.0, 3.0) == 3.0
