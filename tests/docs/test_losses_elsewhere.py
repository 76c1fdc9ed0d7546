"""The recipes of docs/losses_elsewhere.md train torchvision's detectors."""

import re
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18
from torchvision.models.detection import fcos, retinanet

PAGE = Path(__file__).resolve().parents[2] / "docs" / "losses_elsewhere.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
# Which blocks make a recipe: the shared functions, what it builds on, and itself.
RECIPES = {
    "efl retinanet": (0, 1),
    "efl fcos": (0, 2),
    "dw fcos": (0, 3),
    "dw retinanet": (0, 4),
    "harmonic retinanet": (0, 5),
    "harmonic fcos": (0, 5, 6),
}


def batch():
    """Two images, the second without an object."""
    g = torch.Generator().manual_seed(0)
    images = [torch.rand(3, 64, 64, generator=g) for _ in range(2)]
    boxes = torch.tensor([[6.0, 6.0, 40.0, 40.0], [26.0, 20.0, 60.0, 54.0]])
    full = {"boxes": boxes, "labels": torch.tensor([1, 7])}
    return images, [full, {"boxes": boxes[:0], "labels": torch.zeros(0, dtype=torch.int64)}]


def model_of(blocks, monkeypatch):
    """What a recipe calls ``model``, with a small backbone and small images."""
    for module in (fcos, retinanet):
        monkeypatch.setattr(module, "resnet50", resnet18)
    torch.manual_seed(0)
    names = {}
    for number in blocks:
        exec(compile(BLOCKS[number], f"{PAGE.name}, block {number}", "exec"), names)
    names["model"].transform.min_size = (64,)
    return names["model"].train()


def test_every_block_of_the_page_is_in_a_recipe():
    assert sorted({n for blocks in RECIPES.values() for n in blocks}) == list(range(len(BLOCKS)))


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_recipe_trains(recipe, monkeypatch):
    model = model_of(RECIPES[recipe], monkeypatch)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    totals = []
    for _ in range(2):
        losses = model(*batch())
        total = sum(losses.values())
        assert torch.isfinite(total) and all(x.requires_grad for x in losses.values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    heads = [p for name, p in model.named_parameters() if name.startswith("head")]
    unused = [p for p in heads if p.grad is None]
    assert not unused and totals[-1] < totals[0]
    if recipe.startswith("efl"):
        state = model.state_dict()
        assert state["head.classification_head.loss.neg_grad"].sum() > 0
    if recipe.startswith("harmonic"):
        model.criterion.coupling.recording = True
        assert "tc" in model(*batch())
        assert "harmonic/dense/score_iou_gap" in model.criterion.coupling.record
    detections = model.eval()(batch()[0])
    assert {"boxes", "scores", "labels"} <= set(detections[0])


def test_equals_torchvision_where_it_computes_the_same(monkeypatch):
    """With the focal loss in EFL's place, one image and one divisor: torchvision's own number."""
    from d2ext.losses import FocalLoss

    model = model_of(RECIPES["efl retinanet"], monkeypatch)
    head, (images, targets) = model.head.classification_head, batch()
    head.loss = FocalLoss()
    ours = model(images[:1], targets[:1])["classification"]
    del head.compute_loss
    theirs = model(images[:1], targets[:1])["classification"]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
