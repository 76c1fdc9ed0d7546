"""Methods by detectors: what the table says works trains a step, and what it says is refused is."""

import itertools
import re
import sys
from pathlib import Path

import pytest
import torch
from model_kit import make_batch, shrink

from d2ext import model_zoo
from d2ext.combinations import UNREAD, refusal
from d2ext.engine import Trainer
from d2ext.engine.hooks import build_loss_weights
from d2ext.losses import Criterion, EqualizedFocalLoss, HarmonicIoULoss

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools import combination_tables  # noqa: E402
from tools.combination_tables import METHODS, SHOWN, cells, overrides  # noqa: E402


def named(cell):
    return "-".join((cell[0], *cell[1])).replace(" ", "_")


def params(of):
    """Pairs build on what single methods show, so they run with the slow tests."""
    for cell in cells():
        if (refusal(cell[0], *cell[1]) is None) == of:
            marks = [pytest.mark.slow] if len(cell[1]) > 1 else []
            yield pytest.param(*cell, id=named(cell), marks=marks)


def config(detector, methods):
    cfg = shrink(model_zoo.get_config(SHOWN[detector].config))
    cfg.merge_from_list(overrides(detector, methods))
    return cfg


def in_use(method, parts, hook):
    """Whether a method is at work somewhere in a model or its trainer."""
    equalized = [c.cls_loss for c in parts if isinstance(c.cls_loss, EqualizedFocalLoss)]
    return {
        "EFL": any(not loss.needs_quality for loss in equalized),
        "EQFL": any(loss.needs_quality for loss in equalized),
        "Sampling-Free": any(c.guide is not None for c in parts),
        "Harmonic": any(c.coupling is not None for c in parts),
        "HIoU loss": any(isinstance(c.box_loss, HarmonicIoULoss) for c in parts),
        "ALWA": hook is not None and len(hook.groups) == 1,
    }[method]


@pytest.mark.parametrize("detector, methods", list(params(True)))
def test_allowed(detector, methods):
    cfg = config(detector, methods)
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    batch = make_batch((2, 0), size=64, masks=cfg.MODEL.MASK_ON)
    trainer = Trainer(
        model=model,
        data_loader=itertools.repeat(batch),
        optimizer=torch.optim.SGD(model.parameters(), lr=1e-3),
        max_iter=1,
    )
    hook = build_loss_weights(cfg)
    trainer.register_hooks([hook] if hook else [])
    trainer.train()
    parts = [m for m in model.modules() if isinstance(m, Criterion)]
    assert [m for m in METHODS if in_use(m, parts, hook)] == [m for m in METHODS if m in methods]
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("detector, methods", list(params(False)))
def test_refused(detector, methods):
    rule = refusal(detector, *methods)
    message = re.escape(rule.message.replace("{reason}", rule.reason))
    sentence = "RetinaNet has no" if rule is UNREAD else re.sub(r"\\{\w+\\}", ".*", message)
    with pytest.raises(ValueError, match=sentence) as caught:
        Trainer.build_model(config(detector, methods))
    assert any(word in str(caught.value) for word in ("set ", "choose ", "leave "))


def test_the_readme_has_the_table():
    assert combination_tables.main(["--check"]) == 0, "run python tools/combination_tables.py"
    assert combination_tables.markdown_table() in combination_tables.README.read_text()
