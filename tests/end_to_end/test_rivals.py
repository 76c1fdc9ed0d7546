"""Every later idea on every detector: it trains a step, or is refused with its reason."""

import itertools
import re
import sys
from pathlib import Path

import pytest
import torch
from model_kit import make_batch, shrink

from d2ext import model_zoo
from d2ext.combinations import PARTS, UNREAD, refusal
from d2ext.engine import Trainer
from d2ext.engine.hooks import build_loss_weights
from d2ext.losses import CorrelationCoupling, Criterion, EffectiveClassMarginLoss
from d2ext.modeling.assigners import PredictionAssigner
from d2ext.modeling.roi_heads.logit_norm import LogitNorm

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tools.combination_tables import SHOWN, overrides  # noqa: E402

RIVALS = [name for name, part in PARTS.items() if part.rivals and name != "class weights"]
ONE_ANCHOR = ["MODEL.ANCHOR_GENERATOR.SIZES", [[32]],
              "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS", [[1.0]]]  # fmt: skip
CELLS = [pytest.param(d, r, id=f"{d}-{r}".replace(" ", "_")) for d in SHOWN for r in RIVALS]


def config(detector, rival, *more):
    cfg = shrink(model_zoo.get_config(SHOWN[detector].config))
    cfg.merge_from_list(overrides(detector, [rival]))
    if "needs predictions" in PARTS[rival].facts and detector == "RetinaNet":
        cfg.merge_from_list(ONE_ANCHOR)
    if rival == "GradNorm":
        cfg.merge_from_list(["SOLVER.ALWA.GRADNORM_LAYER", "backbone.fpn_*.weight"])
    cfg.merge_from_list(list(more))
    return cfg


def train(cfg, counts=(2, 0), steps=1, model=None):
    """A trained model, its hook of loss weights and the losses of the last step."""
    torch.manual_seed(0)
    model = model or Trainer.build_model(cfg)
    for module in model.modules():
        if isinstance(module, EffectiveClassMarginLoss) and module.waits_for_counts:
            module.take_image_counts([5, 0, 2])
    batch = make_batch(counts, size=64, masks=cfg.MODEL.MASK_ON)
    trainer = Trainer(
        model=model,
        data_loader=itertools.repeat(batch),
        optimizer=torch.optim.SGD(model.parameters(), lr=1e-3),
        max_iter=steps,
    )
    hook = build_loss_weights(cfg)
    trainer.register_hooks([hook] if hook else [])
    trainer.train()
    return model, hook, trainer


def in_use(rival, model, hook):
    """Whether a rival is at work somewhere in a model or its trainer."""
    kind = next(fact for fact in (*PARTS[rival].facts[::-1], "") if fact != "overlap")
    parts = [m for m in model.modules() if isinstance(m, Criterion)]
    key, name = next(iter(PARTS[rival].words.values()))[:2]
    if kind == "needs predictions":
        return isinstance(model.assigner, PredictionAssigner)
    if rival == "correlation":
        return any(isinstance(c.coupling, CorrelationCoupling) for c in parts)
    if rival == "LogN":
        return any(isinstance(m, LogitNorm) for m in model.modules())
    if kind in ("famo", "gradnorm"):
        return type(next(iter(hook.groups.values()))).__name__.lower() == f"{kind}weight"
    from d2ext.modeling.losses import BOX_LOSS_REGISTRY, CLS_LOSS_REGISTRY

    if key.endswith("CLS_LOSS"):
        return any(type(c.cls_loss) is CLS_LOSS_REGISTRY.get(name) for c in parts)
    return any(type(c.box_loss) is BOX_LOSS_REGISTRY.get(name) for c in parts)


@pytest.mark.parametrize("detector, rival", CELLS)
def test_it_trains_a_step_or_is_refused(detector, rival):
    rule = refusal(detector, rival)
    cfg = config(detector, rival)
    if rule is not None:
        message = re.escape(rule.message.replace("{reason}", rule.reason))
        sentence = "has no" if rule is UNREAD else re.sub(r"\\{\w+\\}", ".*", message)
        with pytest.raises(ValueError, match=sentence) as caught:
            Trainer.build_model(cfg)
        assert any(word in str(caught.value) for word in ("set ", "choose ", "leave "))
        return
    model, hook, _ = train(cfg)
    assert in_use(rival, model, hook)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
    # Nothing to learn from but background: zeros that are connected, and no NaN.
    model, _, trainer = train(cfg, counts=(0, 0), model=model)
    assert all(bool(torch.isfinite(p).all()) for p in model.parameters())
