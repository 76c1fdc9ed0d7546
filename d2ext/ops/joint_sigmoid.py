"""Losses of a joint score ``p = sigmoid(x) * sigmoid(y)``, in logit space, with their gradients.

Shapes: M points (of all images), C classes, K pairs of a point and an object.

Every (point, class) cell has a negative loss ``P_neg p^gamma (-log(1 - p))``, and a few cells, one
for each pair, have a positive loss ``w (-log p)``. Autograd keeps a dozen (M, C) tensors for that;
here values and gradients are made in one go, and one (M, C) tensor is kept.
"""

from typing import Any, Optional, Tuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from .precision import drop_negligible, smallest_gradient

__all__ = ["joint_sigmoid_losses"]

# exp(80) is still finite in float32, and a score of exp(-80) is 0 for all purposes.
MAX_EXPONENT = 80.0
# Below this 1 - p counts as constant (both logits beyond 69). Its inverse must stay finite in
# float32, also summed over the classes: 0 * inf in the gradient would be NaN.
MIN_REST = 1e-30


def joint_sigmoid_losses(
    cls_logits: torch.Tensor,
    obj_logits: torch.Tensor,
    cell: torch.Tensor,
    pos_weight: torch.Tensor,
    neg_weight: torch.Tensor,
    gamma: float = 2.0,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Sums of the positive and of the negative loss.

    Equal to, but for rounding, with ``p = sigmoid(x) * sigmoid(y)``::

        positive = (pos_weight * -log(p[cell])).sum()
        negative = (P_neg * p**gamma * -log(1 - p)).sum()   # P_neg: neg_weight at cell, else 1

    The factor ``p**gamma`` has a gradient, the weights have none. Nothing overflows or loses its
    digits for saturated logits: ``1 - p = sigmoid(-x) + sigmoid(x) sigmoid(-y)`` is a sum of
    positive terms. Where both logits exceed 69, ``-log(1 - p)`` stays at 69 and has no gradient.

    A NaN makes the losses it enters NaN. So does an infinite ``obj_logits``: together with an
    infinite class logit it has an infinite loss, which the limit of 69 would hide.

    Args:
        cls_logits: (M, C), x.
        obj_logits: (M,), y.
        cell: (K,) int64, index of each pair's cell in the flattened (M, C); may repeat.
        pos_weight: (K,) weight of the positive loss; weights of repeated cells add up.
        neg_weight: (K,) weight of the negative loss; pairs of one cell must have equal values.
        gamma: exponent of the focal factor of the negative loss.

    Returns:
        the two sums, scalars.
    """
    sums: Tuple[torch.Tensor, torch.Tensor] = _JointSigmoidLosses.apply(
        cls_logits, obj_logits, cell, pos_weight, neg_weight, gamma
    )
    return sums


class _JointSigmoidLosses(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        y: torch.Tensor,
        cell: torch.Tensor,
        pos_weight: torch.Tensor,
        neg_weight: torch.Tensor,
        gamma: float,
    ) -> Tuple[torch.Tensor, torch.Tensor]:
        num_classes = x.shape[1]
        point = torch.div(cell, num_classes, rounding_mode="floor")
        x_pair, y_pair = x.reshape(-1)[cell], y[point]
        positive = (pos_weight * -(F.logsigmoid(x_pair) + F.logsigmoid(y_pair))).sum()

        needs_grad = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        loss, grad = _negative(x, y, gamma, needs_grad)
        _scale_cells(loss, cell, neg_weight)
        negative = -loss.sum()
        if grad is not None:
            _scale_cells(grad, cell, neg_weight)
            grad_y = grad.sum(dim=1) * torch.sigmoid(-y)
            grad_x = torch.threshold_(
                grad.mul_(x.neg().sigmoid_()), smallest_gradient(x.dtype), 0.0
            )
            pos_x = -pos_weight * torch.sigmoid(-x_pair)
            pos_y = -pos_weight * torch.sigmoid(-y_pair)
            grad_y, pos_x, pos_y = (drop_negligible(g) for g in (grad_y, pos_x, pos_y))
            ctx.save_for_backward(grad_x, grad_y, cell, point, pos_x, pos_y)
        return positive, negative

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, d_positive: torch.Tensor, d_negative: torch.Tensor
    ) -> Tuple[torch.Tensor, torch.Tensor, None, None, None, None]:
        grad_x, grad_y, cell, point, pos_x, pos_y = ctx.saved_tensors
        grad_x = grad_x * d_negative
        grad_x.view(-1).index_add_(0, cell, pos_x * d_positive)
        grad_y = (grad_y * d_negative).index_add_(0, point, pos_y * d_positive)
        return grad_x, grad_y, None, None, None, None


def _scale_cells(values: torch.Tensor, cell: torch.Tensor, factor: torch.Tensor) -> None:
    """Multiply some cells in place. Where cells repeat, equal values are written: no race."""
    flat = values.view(-1)
    flat[cell] = flat[cell] * factor


def _negative(
    x: torch.Tensor, y: torch.Tensor, gamma: float, needs_grad: bool
) -> Tuple[torch.Tensor, Optional[torch.Tensor]]:
    """``f = p^gamma * log(1 - p)`` of every cell and, if asked for, its gradient: (M, C) each.

    The gradient is that of ``-f`` by ``x``, which is ``p * d(-f)/dp * sigmoid(-x)``, but without
    its last factor: by ``y`` the same number is multiplied by ``sigmoid(-y)``.
    """
    e = x.neg().clamp_(max=MAX_EXPONENT).exp_()
    score = (e + 1).reciprocal_()  # sigmoid(x)
    rest = e.mul_(score)  # sigmoid(-x), with all its digits
    rest.addcmul_(score, torch.sigmoid(-y)[:, None])  # 1 - p
    # y - y: 0, or NaN where y is infinite.
    p = score.mul_(torch.sigmoid(y).add_(y - y)[:, None])
    rest.clamp_(min=MIN_REST)
    focal = p * p if gamma == 2 else p.pow(gamma)
    log_rest = rest.log()
    if not needs_grad:
        return log_rest.mul_(focal), None
    grad = torch.addcdiv(log_rest * -gamma, p, rest).mul_(focal)
    return log_rest.mul_(focal), grad
