"""The pairwise box losses against fvcore's and Detectron2's, which have the same arithmetic."""

import pytest
import torch
from detectron2.layers.losses import ciou_loss, diou_loss
from fvcore.nn import giou_loss, smooth_l1_loss

from d2ext.ops import boxes as ops

THEIRS = {
    ops.giou_loss: giou_loss,
    ops.diou_loss: diou_loss,
    ops.ciou_loss: ciou_loss,
}


def random_boxes(count, seed, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    xy = torch.rand(count, 2, generator=generator, dtype=dtype) * 50
    wh = torch.rand(count, 2, generator=generator, dtype=dtype) * 50 + 1
    return torch.cat([xy, xy + wh], dim=1)


@pytest.mark.parametrize("ours", list(THEIRS), ids=lambda f: f.__name__)
def test_values_have_the_bits_of_upstream_and_gradients_agree(ours):
    target = random_boxes(200, 1)
    target[:20] = random_boxes(20, 2)  # some rows equal their prediction exactly
    a = random_boxes(200, 2).requires_grad_()
    b = a.detach().clone().requires_grad_()
    weights = torch.linspace(0.1, 2, 200)
    (ours(a, target) * weights).sum().backward()
    (THEIRS[ours](b, target) * weights).sum().backward()
    assert torch.equal(ours(a, target), THEIRS[ours](b, target))
    # Terms of a gradient are added in another order.
    torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("beta", [0.0, 0.1, 1.0])
def test_smooth_l1(beta):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 100, 4, generator=generator)
    assert torch.equal(ops.smooth_l1_loss(x, y, beta), smooth_l1_loss(x, y, beta))


def test_iou_by_hand():
    a = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [0, 0, 1, 1]])
    b = torch.tensor([[5.0, 0, 15, 10], [20, 20, 30, 30], [1, 0, 2, 1]])
    expected = torch.tensor([1 / 3, 0.0, 0.0])
    torch.testing.assert_close(ops.pair_iou(a, b), expected)
    torch.testing.assert_close(ops.iou_loss(a, b), 1 - expected)


@pytest.mark.parametrize(
    "loss", [ops.iou_loss, ops.giou_loss, ops.diou_loss, ops.ciou_loss], ids=lambda f: f.__name__
)
def test_gradcheck(loss):
    a = random_boxes(8, 3, torch.float64).requires_grad_()
    b = random_boxes(8, 4, torch.float64)
    if loss is ops.ciou_loss:
        # alpha is a constant by definition, so only its value may be compared numerically.
        assert torch.isfinite(torch.autograd.grad(loss(a, b).sum(), a)[0]).all()
    else:
        assert torch.autograd.gradcheck(lambda x: loss(x, b), a)


@pytest.mark.parametrize(
    "loss", [ops.iou_loss, ops.giou_loss, ops.diou_loss, ops.ciou_loss], ids=lambda f: f.__name__
)
def test_degenerate_boxes_stay_finite(loss):
    a = torch.tensor([[5.0, 5, 5, 5], [0, 0, 0, 9], [0, 0, 9, 0], [1, 1, 2, 2]])
    b = torch.tensor([[5.0, 5, 5, 5], [0, 0, 0, 9], [4, 4, 4, 4], [1, 1, 2, 2]])
    a.requires_grad_()
    value = loss(a, b)
    value.sum().backward()
    assert torch.isfinite(value).all()
    assert torch.isfinite(a.grad).all()


def test_no_rows():
    empty = torch.zeros(0, 4, requires_grad=True)
    for loss in (ops.iou_loss, ops.giou_loss, ops.diou_loss, ops.ciou_loss):
        total = loss(empty, torch.zeros(0, 4)).sum()
        assert total.item() == 0 and total.requires_grad
